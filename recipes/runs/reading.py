"""Read a run folder: metrics, restarts, rewinds and texts; and summarize the run in a few lines."""

from __future__ import annotations

import hashlib
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json
from data_prep.common.json_text import check_shape
from data_prep.common.redaction import without_credentials, without_credentials_within
from recipes.config.loading import read_typed_yaml
from recipes.dataloading import skipped_data
from recipes.runs.logged_lines import read_lines
from recipes.runs.mixed_data import mixed_in
from recipes.runs.names import CONFIG, METRICS, RECORD, TEXTS, TOKENIZER
from recipes.runs.record import read_told_record

SAMPLES = "samples.json"
TRAIN_LOSS, LR, SPEED = "loss/train/total", "lr-DecoupledAdamW/group0", "throughput/tokens_per_sec"
EVAL, EVAL_LOSS, EVAL_BITS = "metrics/eval/", "metrics/eval/LanguageCrossEntropy", "metrics/eval/BitsPerByte"
NOT_METRICS = ("batch", "tokens", "time_s", "event", "ranks", "rewinds", "computed_with")


@dataclass(frozen=True)
class RunData:
    """Everything that a report shows of one run folder.

    Attributes:
        series: metric -> (batch, value) of the batches that led to the current state of the run. Batches that were lost
            in a crash or a rewind are left out.
        places: batch -> tokens and hours of training up to it, without the time between two starts.
        starts: for each start of the run, the batch that it resumed from.
        rewinds: (batch of a loss spike, batch that the run was rewound to).
        skipped: batches that nan_guard skipped.
        last_time_s: time of the last line, in seconds of Unix time; None: nothing was logged.
        pause_s: longest time between two lines since the last start.
    """

    folder: Path
    record: JsonDict
    config: str
    series: dict[str, list[tuple[int, float]]]
    places: dict[int, tuple[int, float]]
    starts: list[int]
    rewinds: list[tuple[int, int]]
    skipped: list[int]
    last_time_s: float | None
    pause_s: float
    texts: dict[str, list[JsonDict]]
    samples: list[JsonDict]
    scorecard: JsonDict
    inputs_sha256: str

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def pretraining(self) -> bool:
        """Whether the run trained on token shards."""
        return "corpus" in self.record["data"]

    @property
    def loss_unit(self) -> str:
        """Unit of the training loss. Older fine-tuning runs did not record what their loss is a mean over."""
        return "nats/token" if self.pretraining else self.record.get("loss_unit", "nats")

    def last(self, metric: str) -> float | None:
        """The last value of a metric; None if it was never logged."""
        return self.series[metric][-1][1] if self.series.get(metric) else None

    def median(self, metric: str) -> float | None:
        """The median of a metric's values; None if it was never logged."""
        return statistics.median(value for _, value in self.series[metric]) if self.series.get(metric) else None

    @property
    def trained_batches(self) -> int:
        """Number of batches that led to the current state of the run."""
        return self.series[TRAIN_LOSS][-1][0] if self.series.get(TRAIN_LOSS) else 0

    @property
    def hours(self) -> float:
        """Hours of training up to the last line."""
        return max((hours for _, hours in self.places.values()), default=0.0)

    @property
    def left_s(self) -> float | None:
        """Remaining seconds at the pace since the last start, waiting included; None if the pace is not known."""
        first, batches = self.starts[-1] if self.starts else 0, self.trained_batches
        if batches <= first or first not in self.places:
            return None
        hours_each = (self.hours - self.places[first][1]) / (batches - first)
        return 3600 * hours_each * max(0, self.record["plan"]["batches"] - batches)

    @property
    def left(self) -> str:
        """Remaining time of an unfinished run, such as `about 2.1 h left`; empty if it is not known."""
        return "" if self.left_s is None or self.record["finished"] else f"about {_hours(self.left_s / 3600)} left"

    @property
    def changed(self) -> list[str]:
        """Settings that were changed when the run was resumed: `from batch 100: optimizer.lr: 0.001 -> 0.0005`."""
        return changed_settings(self.record)

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the validation split."""
        val = self.record["data"]["counts"]["val"]
        return val["bytes"] / (val["tokens"] + val["dropped_tokens"])


@dataclass
class MetricsLog:
    """Contents of metrics.jsonl for the batches that led to the current state of the run. It is read line by line.

    Attributes:
        metrics: metric -> batch -> value. The other fields have the meaning that they have in `RunData`.
    """

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    places: dict[int, tuple[int, float]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    last_time_s: float | None = None
    pause_s: float = 0.0
    _hours: float = 0.0

    def add(self, line: JsonDict) -> None:
        """Add the next line. The line of a new start removes what was logged for later batches."""
        batch = line["batch"]
        if line.get("event") == "start":
            self.starts.append(batch)
            self.last_time_s, self.pause_s = None, 0.0
            for values in (*self.metrics.values(), self.places):
                for lost in [n for n in values if n > batch] if values and max(values) > batch else ():
                    del values[lost]
        if self.last_time_s is not None:
            passed_s = max(0.0, line["time_s"] - self.last_time_s)
            self._hours += passed_s / 3600
            self.pause_s = max(self.pause_s, passed_s)
        self.last_time_s = line["time_s"]
        self.places[batch] = (line["tokens"], self._hours)
        for name, value in line.items():
            if name not in NOT_METRICS and isinstance(value, int | float):
                self.metrics.setdefault(name, {})[batch] = value


def read_metrics(path: Path) -> MetricsLog:
    """Read a metrics.jsonl, which may not exist yet.

    Raises:
        BadInput: a line does not have the form that a run writes; the message names the line and the key.
    """
    log = MetricsLog()
    for number, line in enumerate(read_lines(path), 1):
        check_shape(line, {"batch": int, "tokens": int, "time_s": (int, float)}, f"{path}, line {number}")
        log.add(line)
    return log


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        BadInput: the folder does not hold a run, or metrics.jsonl has a line that is not JSON.
    """
    if not (folder / RECORD).is_file():
        raise BadInput(f"{folder} holds no run ({RECORD} is missing)")
    record, metrics, texts = (folder / name for name in (RECORD, METRICS, TEXTS))
    samples, scorecard = folder / SAMPLES, folder / TOKENIZER / "scorecard.json"
    log = read_metrics(metrics)
    by_prompt: dict[str, dict[int, JsonDict]] = {}
    for number, text in enumerate(read_lines(texts), 1):
        check_shape(text, {"prompt": str, "text": str, "batch": int, "tokens": int}, f"{texts}, line {number}")
        by_prompt.setdefault(text["prompt"], {})[text["batch"]] = text
    told_samples = read_json(samples) if samples.is_file() else {"samples": []}
    check_shape(told_samples, {"samples": [{"prompt": str, "text": str, "stopped": bool}]}, str(samples))
    told_scores = read_json(scorecard) if scorecard.is_file() else {}
    check_shape(told_scores, dict, str(scorecard))
    rewinds = [(entry["from_batch"], entry["to_batch"]) for entry in skipped_data.read(folder)]
    inputs = [record, folder / CONFIG, metrics, texts, folder / skipped_data.LEDGER, samples, scorecard]
    content = b"".join(path.read_bytes() for path in inputs if path.is_file())
    return RunData(
        folder=folder,
        record=without_credentials_within(read_told_record(record)),  # an earlier version recorded credentials
        config=without_credentials(_text_of(folder / CONFIG)),
        series={name: sorted(points.items()) for name, points in log.metrics.items()},
        places=log.places,
        starts=log.starts,
        rewinds=rewinds,
        skipped=sorted(log.metrics.get("guard/skipped_batches", ())),
        last_time_s=log.last_time_s,
        pause_s=log.pause_s,
        texts={prompt: [by_batch[batch] for batch in sorted(by_batch)] for prompt, by_batch in by_prompt.items()},
        samples=told_samples["samples"],
        scorecard=told_scores,
        inputs_sha256=hashlib.sha256(content).hexdigest(),
    )


def _text_of(config: Path) -> str:
    """Return the text of a run's config.yaml, after a check that it is valid YAML."""
    read_typed_yaml(config)
    return config.read_text(encoding="utf-8")


def changed_settings(record: JsonDict) -> list[str]:
    """Changes of a run's fingerprint when it was resumed, with the batch from which each acts, in the order of batches.

    A start from an earlier checkpoint discards the batches after that checkpoint, and so the changes made there.

    Args:
        record: record of the run.
    """
    changed: dict[int, list[str]] = {}
    for start in record["starts"]:
        if "batch" in start:  # records of earlier versions have no batch
            changed = {batch: lines for batch, lines in changed.items() if batch < start["batch"]}
            changed[start["batch"]] = start["allowed_differences"]
    return [f"from batch {batch:,}: {line}" for batch, lines in changed.items() for line in lines]


def summary(data: RunData) -> dict[str, str]:
    """Summarize the run in a few lines: name -> value with unit."""
    batches, plan = data.trained_batches, data.record["plan"]
    speed, hours, cost = data.median(SPEED), data.last("cost/gpu_hours"), data.last("cost/total")
    rows = {}
    if data.pretraining:
        counts, baselines = data.record["data"]["counts"], data.record["data"]["baselines"]
        unigram, tokens = baselines["unigram_nats_per_token"], batches * plan["tokens_per_batch"]
        loss, bits = data.last(EVAL_LOSS), data.last(EVAL_BITS)
        rows = {
            "documents": f"{counts['train']['documents']:,} train + {counts['val']['documents']:,} val",
            "tokens": f"{counts['train']['tokens']:,} train + {counts['val']['tokens']:,} val",
            "bytes per token": f"{data.val_bytes_per_token:.3f} (val, end-of-text counted)",
            "parameters": f"{plan['parameters']:,}",
            "trained on": f"{tokens:,} tokens in {batches:,} of {plan['batches']:,} batches",
            "validation loss": f"{_value(loss)} nats/token (unigram {unigram:.4f})",
            "bits per byte": f"{_value(bits)} (unigram {unigram / math.log(2) / data.val_bytes_per_token:.4f}, "
            f"xz -9 {baselines['xz9_bits_per_byte']:.4f})",
        }
        for name in sorted(data.series):
            if name.startswith(f"{EVAL_BITS}/"):
                rows[f"… of {name.removeprefix(f'{EVAL_BITS}/')}"] = _value(data.last(name))
        rows |= {f"mixed in: {name}": text for name, text in mixed_in(data.record, data.last).items()}
    else:
        rows["parameters"] = f"{plan['parameters']:,}, {plan['trained_parameters']:,} of them trained"
        rows["trained on"] = f"{batches:,} of {plan['batches']:,} batches"
        for name in sorted(data.series):
            if name.startswith(EVAL):
                rows[f"{name.removeprefix(EVAL)} on dev"] = _value(data.last(name))
    rows["speed"] = f"{speed:,.0f} tokens/s (median)" if speed else "not logged"
    start = data.record["starts"][-1]
    of_all = f", {hours:,.2f} {'GPU' if start['gpus'] else 'rank'}-hours in all" if hours else ""
    rows["time"] = f"{_hours(data.hours)} of training{of_all}"
    if cost is not None:
        rows["cost"] = f"{cost:,.2f}"
    rows["hardware"] = hardware(start)
    dirty = " with uncommitted changes" if start["uncommitted"] else ""
    if data.changed:
        rows["changed on resuming"] = "; ".join(data.changed)
    rows["commit"] = (
        f"{start['commit'][:12]}{dirty}" if start["commit"] else start.get("no_commit") or "not from a git repository"
    )
    return rows


def hardware(start: JsonDict) -> str:
    """Hardware of a start, such as `8 × NVIDIA H100 80GB HBM3`, or the number of ranks on CPUs."""
    ranks, gpus = start["world_size"], start["gpus"]
    return f"{ranks} × {gpus[0]}" if gpus else f"{ranks} rank{'s' * (ranks > 1)} on CPU ({start['processor']})"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _value(number: float | None) -> str:
    return "not evaluated" if number is None else f"{number:.4f}"

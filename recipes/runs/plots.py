"""Report: what runs did, as one HTML page that needs nothing else, and as a short table.

python recipes/report.py runs/smoke                                # writes runs/smoke/report.html, prints the table
python recipes/report.py runs/a runs/b --out a-and-b.html          # side by side: curves in one plot, what differs
python recipes/report.py runs/a --from-batch 41000 --to-batch 42000 --out spike.html
python recipes/report.py runs/a --watch                            # again and again while it trains
python recipes/report.py runs/a --log                              # one entry more in docs/runs.md
python recipes/report.py runs/smoke --plot docs/smoke-loss.png     # the loss curve alone
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
from yaml import safe_load

from data_prep.stage import BadInput, JsonDict, read_json, run, write_text
from recipes.dataloading import ledger
from recipes.runs import run_folder

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES = "samples.json"
LOG = Path(__file__).parents[1] / "docs/runs.md"
TRAIN_LOSS, LR, SPEED = "loss/train/total", "lr-DecoupledAdamW/group0", "throughput/tokens_per_sec"
EVAL, EVAL_LOSS, EVAL_BITS = "metrics/eval/", "metrics/eval/LanguageCrossEntropy", "metrics/eval/BitsPerByte"
NOT_METRICS = ("batch", "tokens", "time_s", "event", "ranks")
PANELS = (  # title, metric, unit
    ("Learning rate", LR, "learning rate"),
    ("Speed", SPEED, "tokens per second"),
    ("Model FLOPs utilization", "throughput/device/mfu", "share of the GPU's peak"),
    ("Waiting for data", "throughput/data_wait_share", "share of the time of batches"),
    ("Gradient", "l2_norm/grad/global", "norm before it is clipped"),
    ("Weights", "l2_norm/param/global", "norm"),
    ("Memory", "memory/peak_reserved_mem", "GB reserved at most"),
    ("Cost", "cost/gpu_hours", "GPU-hours, lost ones included"),
)
AXES = {"batch": "batch", "tokens": "tokens", "hours": "hours of training"}
COLORS = ("#1f4e8c", "#b5532a", "#3c7a3f", "#7b4b94", "#8a6d1a", "#2b8a8a", "#a33a6a", "#555f6e")
POINTS = 1500  # of a curve; of more, each stretch shows its least, middle and greatest value, so no spike is lost
WATCH_S = 10.0


@dataclass(frozen=True)
class RunData:
    """All that a report shows of one run folder.

    Attributes:
        series: metric -> (batch, value) of the batches that led to where the run is: not those that a crash or a rewind
            has thrown away.
        places: batch -> its tokens, and its hours of training, the time between two starts left out.
        starts: batches after which a process began.
        rewinds: (batch of a loss spike, batch that the run went back to).
        skipped: batches that number_guard left out.
    """

    folder: Path
    record: JsonDict
    config: str
    series: dict[str, list[tuple[int, float]]]
    places: dict[int, tuple[int, float]]
    starts: list[int]
    rewinds: list[tuple[int, int]]
    skipped: list[int]
    texts: dict[str, list[JsonDict]]
    samples: list[JsonDict]
    scorecard: JsonDict
    inputs_sha256: str

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def pretraining(self) -> bool:
        """Whether it trained on token shards."""
        return "corpus" in self.record["data"]

    def last(self, metric: str) -> float | None:
        """The last value of a metric, None if it was never logged."""
        return self.series[metric][-1][1] if self.series.get(metric) else None

    def median(self, metric: str) -> float | None:
        """The median of a metric's values, None if it was never logged."""
        return statistics.median(value for _, value in self.series[metric]) if self.series.get(metric) else None

    @property
    def trained_batches(self) -> int:
        """Batches that led to where the run is."""
        return self.series[TRAIN_LOSS][-1][0] if self.series.get(TRAIN_LOSS) else 0

    @property
    def hours(self) -> float:
        """Of training, to the last line."""
        return max((hours for _, hours in self.places.values()), default=0.0)

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of text a token of the validation split stands for."""
        val = self.record["data"]["counts"]["val"]
        return val["bytes"] / (val["tokens"] + val["dropped_tokens"])


@dataclass
class _Log:
    """What metrics.jsonl says, read line by line."""

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    places: dict[int, tuple[int, float]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    _hours: float = 0.0
    _time_s: float | None = None

    def add(self, line: JsonDict) -> None:
        batch = line["batch"]
        if line.get("event") == "start":
            self.starts.append(batch)
            self._time_s = None
            for values in (*self.metrics.values(), self.places):
                for lost in [n for n in values if n > batch] if values and max(values) > batch else ():
                    del values[lost]
        if self._time_s is not None:
            self._hours += max(0.0, line["time_s"] - self._time_s) / 3600
        self._time_s = line["time_s"]
        self.places[batch] = (line["tokens"], self._hours)
        for name, value in line.items():
            if name not in NOT_METRICS and isinstance(value, int | float):
                self.metrics.setdefault(name, {})[batch] = value


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        BadInput: it holds no run, or metrics.jsonl has a line that is not JSON.
    """
    if not (folder / run_folder.RECORD).is_file():
        raise BadInput(f"{folder} holds no run ({run_folder.RECORD} is missing)")
    record, metrics, texts = (folder / name for name in (run_folder.RECORD, run_folder.METRICS, run_folder.TEXTS))
    samples, scorecard = folder / SAMPLES, folder / run_folder.TOKENIZER / "scorecard.json"
    log = _Log()
    for line in _json_lines(metrics):
        log.add(line)
    by_prompt: dict[str, dict[int, JsonDict]] = {}
    for text in _json_lines(texts):
        by_prompt.setdefault(text["prompt"], {})[text["batch"]] = text
    rewinds = [(entry["from_batch"], entry["to_batch"]) for entry in ledger.read(folder)]
    inputs = [record, folder / run_folder.CONFIG, metrics, texts, folder / ledger.LEDGER, samples, scorecard, TEMPLATE]
    content = b"".join(path.read_bytes() for path in [*inputs, Path(__file__)] if path.is_file())
    return RunData(
        folder=folder,
        record=read_json(record),
        config=(folder / run_folder.CONFIG).read_text(encoding="utf-8"),
        series={name: sorted(points.items()) for name, points in log.metrics.items()},
        places=log.places,
        starts=log.starts,
        rewinds=rewinds,
        skipped=sorted(log.metrics.get("guard/skipped_batches", ())),
        texts={prompt: [found[batch] for batch in sorted(found)] for prompt, found in by_prompt.items()},
        samples=read_json(samples)["samples"] if samples.is_file() else [],
        scorecard=read_json(scorecard) if scorecard.is_file() else {},
        inputs_sha256=hashlib.sha256(content).hexdigest(),
    )


def _json_lines(path: Path) -> list[JsonDict]:
    """The lines of a file that a run writes; a last line that a crash has cut is left out.

    Raises:
        BadInput: another line is not JSON.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            # orjson knows no NaN, which a broken batch's loss is.
            found.append(json.loads(line) if b"NaN" in line or b"Infinity" in line else orjson.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise BadInput(f"{path}, line {number} is not JSON") from None
    return found


def summary(data: RunData) -> dict[str, str]:
    """The run in a few lines: what -> value with unit."""
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
    else:
        rows["parameters"] = f"{plan['parameters']:,}, {plan['trained_parameters']:,} of them trained"
        rows["trained on"] = f"{batches:,} of {plan['batches']:,} batches"
        for name in sorted(data.series):
            if name.startswith(EVAL):
                rows[f"{name.removeprefix(EVAL)} on dev"] = _value(data.last(name))
    rows["speed"] = f"{speed:,.0f} tokens/s (median)" if speed else "not logged"
    rows["time"] = f"{_hours(data.hours)} of training" + (f", {hours:,.2f} GPU-hours in all" if hours else "")
    if cost is not None:
        rows["cost"] = f"{cost:,.2f}"
    start = data.record["starts"][-1]
    rows["hardware"] = hardware(start)
    dirty = " with changes of its own" if start["uncommitted"] else ""
    rows["commit"] = f"{start['commit'][:12]}{dirty}" if start["commit"] else "not from a git repository"
    return rows


def hardware(start: JsonDict) -> str:
    """`8 × NVIDIA H100 80GB HBM3`, or the ranks on CPUs."""
    ranks, gpus = start["world_size"], start["gpus"]
    return f"{ranks} × {gpus[0]}" if gpus else f"{ranks} rank{'s' * (ranks > 1)} on CPU ({start['processor']})"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _value(number: float | None) -> str:
    return "not evaluated" if number is None else f"{number:.4f}"


def differences(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Keys of the configurations whose values are not all the same -> each run's."""
    flat = [_flat(safe_load(data.config)) for data in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: [str(one.get(key, "–")) for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, sub in tree.items() for key, value in _flat(sub, f"{prefix}{name}.").items()}


def plots(runs: Sequence[RunData], axis: str = "batch", first: int = 0, last: int | None = None) -> dict[str, Any]:
    """Matplotlib figures by title; those whose metrics no run has logged are left out.

    Args:
        runs: in the order of their colours.
        axis: one of `AXES`.
        first: the first batch to show.
        last: the last one; None: to the end.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures: dict[str, Any] = {}

    def place(data: RunData, batch: int) -> float:
        tokens, hours = data.places.get(batch, (0, 0.0))
        return {"batch": batch, "tokens": tokens, "hours": hours}[axis]

    def panel(title: str, unit: str, curves: Sequence[tuple[str, str, dict[str, Any]]]) -> Any:
        """Of each run the metrics that it has: (metric, what the legend calls it, style)."""
        shown = [(n, data) for n, data in enumerate(runs) if any(data.series.get(metric) for metric, *_ in curves)]
        if not shown:
            return None
        figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        ax.set(xlabel=AXES[axis], ylabel=unit, title=title)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        for n, data in shown:
            for metric, label, style in curves:
                points = [p for p in data.series.get(metric, ()) if first <= p[0] <= (last or p[0])]
                name = ", ".join(filter(None, (data.name if len(runs) > 1 else "", label)))
                xs, ys = [place(data, batch) for batch, _ in points], [value for _, value in points]
                _curve(ax, xs, ys, {"color": COLORS[n % len(COLORS)], "label": name, **style})
            _marks(
                ax,
                data,
                lambda batch, data=data: place(data, batch),
                first,
                last,
                legend=title == "Loss" and n == shown[0][0],
            )
        figures[title] = figure
        return ax

    faint = {"alpha": 0.45, "lw": 0.9}
    ax = panel("Loss", "nats per token", [
        (TRAIN_LOSS, "training, each batch", faint),
        (EVAL_LOSS, "validation", {"marker": "o", "ms": 4, "lw": 1.6}),
    ])  # fmt: skip
    alike = {str(data.record["data"].get("baselines")) for data in runs}
    baselines = runs[0].record["data"].get("baselines") if len(alike) == 1 else None
    if ax and baselines and not (first or last):
        unigram = baselines["unigram_nats_per_token"]
        ax.axhline(unigram, color="0.45", ls="--", lw=1, label="unigram baseline")
    sources = sorted({name for data in runs for name in data.series if name.startswith(f"{EVAL_BITS}/")})
    styles = ({"ls": style} for style in ("--", "-.", ":", (0, (1, 4))))
    by_source = [
        (name, name.removeprefix(f"{EVAL_BITS}/"), style) for name, style in zip(sources, styles, strict=False)
    ]
    whole = (EVAL_BITS, "all" if by_source else "model", {"marker": "o", "ms": 4, "lw": 1.6})
    ax = panel("Bits per byte of validation text", "bits per byte", [whole, *by_source])
    if ax and baselines:
        unigram = baselines["unigram_nats_per_token"] / math.log(2) / runs[0].val_bytes_per_token
        ax.axhline(unigram, color="0.45", ls="--", lw=1, label="unigram")
        ax.axhline(baselines["xz9_bits_per_byte"], color="0.45", ls="-.", lw=1, label="xz -9")
    if not any(data.pretraining for data in runs):
        names = sorted({name for data in runs for name in data.series if name.startswith(EVAL)})
        for name in names:
            panel(f"{name.removeprefix(EVAL)} on dev", "", [(name, "", {"marker": "o", "ms": 4, "lw": 1.6})])
    for title, metric, unit in PANELS:
        ax = panel(title, unit, [(metric, "", {"lw": 1.3})])
        if ax and not (first or last):
            ax.set_ylim(bottom=0)
    for figure in figures.values():
        ax = figure.axes[0]
        labels = ax.get_legend_handles_labels()[1]
        longest = max(map(len, labels), default=0)
        if len(labels) > 5 or longest > 40:
            columns = 1 if longest > 40 else 2
            figure.set_figheight(3.6 + 0.2 * -(-len(labels) // columns))
            figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=columns)
        elif labels:
            ax.legend(frameon=False, fontsize=9)
    return figures


def _curve(ax: Any, xs: list[float], ys: list[float], style: dict[str, Any]) -> None:
    """A line; of many points one through the middle of each stretch, in a band from its least to its greatest."""
    if len(xs) > POINTS:
        size = -(-len(xs) // POINTS)
        stretches = [sorted(ys[n : n + size]) for n in range(0, len(ys), size)]
        xs = [statistics.fmean(xs[n : n + size]) for n in range(0, len(xs), size)]
        least, greatest = [part[0] for part in stretches], [part[-1] for part in stretches]
        ax.fill_between(xs, least, greatest, color=style["color"], alpha=0.2, lw=0)
        ys = [part[len(part) // 2] for part in stretches]
    if not style["label"]:
        style = {**style, "label": "_"}
    ax.plot(xs, ys, **style)


def _marks(ax: Any, data: RunData, place: Any, first: int, last: int | None, legend: bool) -> None:
    """Where the run was started again, went back, or left a batch out."""

    def seen(batch: int) -> bool:
        return first <= batch <= (last or batch)

    for n, start in enumerate(filter(seen, data.starts[1:])):
        ax.axvline(place(start), color="0.6", lw=0.8, ls=":", label="started again" if legend and n == 0 else None)
    for n, (spike, goal) in enumerate(pair for pair in data.rewinds if seen(pair[0])):
        label = "went back, around the data" if legend and n == 0 else None
        ax.axvspan(place(goal), place(min(spike, max(data.places))), color="#d9a441", alpha=0.25, lw=0, label=label)
    if skipped := [place(batch) for batch in data.skipped if seen(batch)]:
        where = {"transform": ax.get_xaxis_transform(), "marker": "x", "color": "#c0392b", "s": 18, "clip_on": False}
        ax.scatter(skipped, [0.0] * len(skipped), label="NaN or Inf, left out" if legend else None, **where)


def svg(figure: Any) -> str:
    """A figure as inline SVG, the same bytes for the same figure."""
    import matplotlib
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_report(
    runs: Sequence[RunData],
    path: Path,
    axis: str = "batch",
    first: int = 0,
    last: int | None = None,
    refresh_s: float | None = None,
) -> Path:
    """Write a page about runs, unless one of the same data is there.

    Args:
        runs: what it shows.
        path: where.
        axis: as `plots`, as are `first` and `last`.
        first: the first batch to show.
        last: the last one.
        refresh_s: seconds after which a browser reads the page again; None: never.
    """
    asked = f"{axis} {first} {last} {refresh_s}"
    key = hashlib.sha256("\n".join([asked, *(data.inputs_sha256 for data in runs)]).encode()).hexdigest()
    if path.is_file() and key in path.read_text(encoding="utf-8")[:1000]:
        print(f"{path} is up to date")
        return path
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    page = environment.get_template(TEMPLATE.name).render(
        key=key,
        runs=runs,
        refresh_s=refresh_s,
        thinned=any(len(points) > POINTS for data in runs for points in data.series.values()),
        summaries=[summary(data) for data in runs],
        differences=differences(runs) if len(runs) > 1 else {},
        figures={title: svg(figure) for title, figure in plots(runs, axis, first, last).items()},
    )
    write_text(path, page)
    return path


def watch(folders: Sequence[Path], path: Path, axis: str, interval_s: float = WATCH_S) -> None:
    """Write the page again whenever a run has logged more, until all are finished or the user ends it."""
    print(f"{path} is written every {interval_s:g} s while there is news; Ctrl-C ends this, not the run", flush=True)
    seen: list[str] = []
    while True:
        runs = [read_run(folder) for folder in folders]
        finished = all(data.record["finished"] for data in runs)
        if seen != (seen := [data.inputs_sha256 for data in runs]):
            write_report(runs, path, axis, refresh_s=None if finished else interval_s)
            told = ", ".join(f"{data.name}: batch {data.trained_batches:,}" for data in runs)
            print(f"{datetime.now(timezone.utc).astimezone():%H:%M:%S} {told}", flush=True)
        if finished:
            print(f"finished: {path}")
            return
        time.sleep(interval_s)


def log_entry(data: RunData) -> str:
    """A run as an entry of docs/runs.md."""
    start = data.record["starts"][-1]
    begun = datetime.fromtimestamp(data.record["starts"][0]["time_s"], timezone.utc)
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in summary(data).items())
    what = "" if data.record["finished"] else " It is not finished."
    return (
        f"## {begun:%Y-%m-%d}: {data.name}\n\n"
        f"`{' '.join(start['command'])}` on {hardware(start)}, Python {start['python']}, {versions}; "
        f"{len(data.starts)} start{'s' * (len(data.starts) != 1)}.{what}\n\n| | |\n|---|---|\n{rows}\n"
    )


def append_log(data: RunData, path: Path) -> None:
    """Add a run to the log.

    Raises:
        BadInput: it is there already, or the run has logged nothing.
    """
    if not data.trained_batches:
        raise BadInput(f"{data.folder} has logged no loss yet")
    text, entry = path.read_text(encoding="utf-8"), log_entry(data)
    heading = entry.splitlines()[0]
    if heading in text.splitlines():
        raise BadInput(f"{path} has an entry {heading[3:]!r} already; the log is append-only")
    write_text(path, f"{text.rstrip()}\n\n{entry}")
    print(f"{path}: {heading[3:]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write the page, print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="+", help="run folder, such as runs/smoke")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the folder of the only run)")
    parser.add_argument("--x", choices=AXES, default="batch", help="what curves are drawn against (default batch)")
    parser.add_argument("--from-batch", type=int, default=0, help="the first batch to draw")
    parser.add_argument("--to-batch", type=int, help="the last batch to draw")
    parser.add_argument("--watch", action="store_true", help="write the page again while the runs go on")
    parser.add_argument("--log", action="store_true", help=f"append an entry to {LOG.parent.name}/{LOG.name}, no page")
    parser.add_argument("--plot", type=Path, help="write the loss curve there (png, svg or pdf) and no page")
    arguments = parser.parse_args(argv)
    folders: list[Path] = arguments.run
    window = (arguments.from_batch, arguments.to_batch)
    part = window != (0, None)
    if (len(folders) > 1 or part) and not arguments.out and not (arguments.log or arguments.plot):
        raise BadInput("several runs, or a part of one, need --out PAGE.html; report.html in its folder is a run's own")
    if part and arguments.watch:
        raise BadInput("--watch draws whole runs; leave out --from-batch and --to-batch")
    path = arguments.out or folders[0] / REPORT
    runs = [read_run(folder) for folder in folders]
    if len({data.pretraining for data in runs}) > 1:
        kinds = ", ".join(f"{data.folder} {'pre-trained' if data.pretraining else 'fine-tuned'}" for data in runs)
        raise BadInput(f"runs of two kinds have nothing to compare: {kinds}")
    if arguments.log:
        for data in runs:
            append_log(data, LOG)
    elif arguments.plot:
        figures = plots(runs, arguments.x, *window)
        if "Loss" not in figures:
            raise BadInput(f"{folders[0]} has logged no loss yet")
        figures["Loss"].savefig(arguments.plot, dpi=160)
        print(arguments.plot)
    elif arguments.watch:
        try:
            watch(folders, path, arguments.x)
        except KeyboardInterrupt:
            print(f"\n{path}")
    else:
        written = write_report(runs, path, arguments.x, *window)
        for data in runs:
            rows = summary(data)
            if (model := data.folder / "model").is_dir():
                rows["model"] = str(model)
            rows["report"] = str(written)
            width = max(map(len, rows))
            print(f"\n{data.folder}")
            print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))


if __name__ == "__main__":
    run(main)

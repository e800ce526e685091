"""Report: what a run did, as one HTML page that needs nothing else, and as a short table.

python recipes/report.py runs/smoke                              # writes runs/smoke/report.html, prints the table
python recipes/report.py runs/smoke --plot docs/smoke-loss.png   # the loss curve alone
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.stage import BadInput, JsonDict, read_json, run, write_text
from recipes import run_folder

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES = "samples.json"
TRAIN_LOSS, LR, SPEED = "loss/train/total", "lr-DecoupledAdamW/group0", "throughput/tokens_per_sec"
EVAL_LOSS, EVAL_BITS = "metrics/eval/LanguageCrossEntropy", "metrics/eval/BitsPerByte"


@dataclass(frozen=True)
class RunData:
    """All that a report shows of one run folder."""

    folder: Path
    record: JsonDict
    config: str
    series: dict[str, list[tuple[int, float]]]  # metric -> (batch, value), of each batch the last time it was run
    starts: list[int]  # batches at which a process began
    samples: list[JsonDict]
    scorecard: JsonDict
    inputs_sha256: str

    def last(self, metric: str) -> float | None:
        """The last value of a metric, None if it was never logged."""
        return self.series[metric][-1][1] if self.series.get(metric) else None

    def median(self, metric: str) -> float | None:
        """The median of a metric's values, None if it was never logged."""
        return statistics.median(value for _, value in self.series[metric]) if self.series.get(metric) else None

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of text a token of the validation split stands for."""
        val = self.record["data"]["counts"]["val"]
        return val["bytes"] / (val["tokens"] + val["dropped_tokens"])


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        BadInput: it holds no run, or metrics.jsonl has a line that is not JSON.
    """
    if not (folder / run_folder.RECORD).is_file():
        raise BadInput(f"{folder} holds no run ({run_folder.RECORD} is missing)")
    metrics, optional = (
        folder / run_folder.METRICS,
        (folder / SAMPLES, folder / run_folder.TOKENIZER / "scorecard.json"),
    )
    by_metric: dict[str, dict[int, float]] = {}
    starts: list[int] = []
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            if number == len(lines):  # a crash while it was written
                break
            raise BadInput(f"{metrics}, line {number} is not JSON") from None
        if line.get("event") == "start":
            starts.append(line["batch"])
        for name, value in line.items():
            if name not in ("batch", "tokens", "time_s", "event") and isinstance(value, int | float):
                by_metric.setdefault(name, {})[line["batch"]] = value
    inputs = [folder / run_folder.RECORD, folder / run_folder.CONFIG, metrics, *optional, TEMPLATE, Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs if path.is_file()))
    return RunData(
        folder=folder,
        record=read_json(folder / run_folder.RECORD),
        config=(folder / run_folder.CONFIG).read_text(encoding="utf-8"),
        series={name: sorted(points.items()) for name, points in by_metric.items()},
        starts=starts,
        samples=read_json(optional[0])["samples"] if optional[0].is_file() else [],
        scorecard=read_json(optional[1]) if optional[1].is_file() else {},
        inputs_sha256=digest.hexdigest(),
    )


def summary(data: RunData) -> list[tuple[str, str]]:
    """The run in a few lines: (what, value with unit)."""
    counts, baselines = data.record["data"]["counts"], data.record["data"]["baselines"]
    bytes_per_token = data.val_bytes_per_token
    unigram = baselines["unigram_nats_per_token"]
    loss, bits, speed = data.last(EVAL_LOSS), data.last(EVAL_BITS), data.median(SPEED)
    trained = data.series[TRAIN_LOSS][-1][0] if data.series.get(TRAIN_LOSS) else 0
    plan = data.record["plan"]
    return [
        ("documents", f"{counts['train']['documents']:,} train + {counts['val']['documents']:,} val"),
        ("tokens", f"{counts['train']['tokens']:,} train + {counts['val']['tokens']:,} val"),
        ("bytes per token", f"{bytes_per_token:.3f} (val, end-of-text counted)"),
        ("trained on", f"{trained * plan['tokens_per_batch']:,} tokens in {trained:,} of {plan['batches']:,} batches"),
        ("validation loss", f"{_value(loss)} nats/token (unigram {unigram:.4f})"),
        (
            "bits per byte",
            f"{_value(bits)} (unigram {unigram / math.log(2) / bytes_per_token:.4f}, "
            f"xz -9 {baselines['xz9_bits_per_byte']:.4f})",
        ),
        ("speed", f"{speed:,.0f} tokens/s (median)" if speed else "not logged"),
    ]


def _value(number: float | None) -> str:
    return "not evaluated" if number is None else f"{number:.4f}"


def plots(data: RunData) -> dict[str, Any]:
    """Matplotlib figures by title; those whose metric was not logged are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    baselines = data.record["data"]["baselines"]
    figures: dict[str, Any] = {}

    def axes(title: str, unit: str) -> Any:
        figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        ax.set(xlabel="batch", ylabel=unit, title=title)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        for start in data.starts[1:]:
            ax.axvline(start, color="0.6", lw=0.8, ls=":")
        figures[title] = figure
        return ax

    def line(ax: Any, metric: str, **style: Any) -> None:
        ax.plot(*zip(*data.series[metric], strict=True), **style)

    if data.series.get(TRAIN_LOSS):
        ax = axes("Loss", "nats per token")
        line(ax, TRAIN_LOSS, color="#9db8d9", lw=0.9, label="training, each batch")
        if data.series.get(EVAL_LOSS):
            line(ax, EVAL_LOSS, color="#1f4e8c", marker="o", ms=4, lw=1.6, label="validation")
        ax.axhline(baselines["unigram_nats_per_token"], color="#b5532a", ls="--", lw=1, label="unigram baseline")
        ax.legend(frameon=False)
    if data.series.get(EVAL_BITS):
        ax = axes("Bits per byte of validation text", "bits per byte")
        line(ax, EVAL_BITS, color="#1f4e8c", marker="o", ms=4, lw=1.6, label="model")
        unigram = baselines["unigram_nats_per_token"] / math.log(2) / data.val_bytes_per_token
        ax.axhline(unigram, color="#b5532a", ls="--", lw=1, label="unigram")
        ax.axhline(baselines["xz9_bits_per_byte"], color="#5a7d3a", ls="-.", lw=1, label="xz -9")
        ax.legend(frameon=False)
    for title, metric, unit in (
        ("Learning rate", LR, "learning rate"),
        ("Speed", SPEED, "tokens per second"),
        ("Memory", "memory/peak_reserved_mem", "GB reserved at most"),
        ("Model FLOPs utilization", "throughput/device/mfu", "share of the GPU's peak"),
    ):
        if data.series.get(metric):
            ax = axes(title, unit)
            line(ax, metric, color="#1f4e8c", lw=1.4)
            ax.set_ylim(bottom=0)
    return figures


def svg(figure: Any) -> str:
    """A figure as inline SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_report(data: RunData) -> Path:
    """Write report.html into the run folder, unless one of the same data is there."""
    path = data.folder / REPORT
    if path.is_file() and data.inputs_sha256 in path.read_text(encoding="utf-8")[:1000]:
        print(f"{path} is up to date")
        return path
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE.name).render(
        run=data, summary=summary(data), figures={title: svg(figure) for title, figure in plots(data).items()}
    )
    write_text(path, page)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write the page, print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run folder, such as runs/smoke")
    parser.add_argument("--plot", type=Path, help="write the loss curve there (png, svg or pdf) and no page")
    arguments = parser.parse_args(argv)
    data = read_run(arguments.run)
    if arguments.plot:
        figures = plots(data)
        if "Loss" not in figures:
            raise BadInput(f"{arguments.run} has logged no loss yet")
        figures["Loss"].savefig(arguments.plot, dpi=160)
        print(arguments.plot)
        return
    rows = summary(data)
    if (model := data.folder / "model").is_dir():
        rows.append(("model", str(model)))
    rows.append(("report", str(write_report(data))))
    width = max(len(name) for name, _ in rows)
    print(f"\n{data.folder}")
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows))


if __name__ == "__main__":
    run(main)

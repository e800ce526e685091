"""Plots of runs, with matplotlib."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from recipes.runs.reading import EVAL, EVAL_BITS, EVAL_LOSS, LR, SPEED, TRAIN_LOSS, RunData

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

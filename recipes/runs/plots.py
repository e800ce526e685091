"""Plots of runs, with matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from recipes.runs.figures import add_legend, new_figure
from recipes.runs.mixed_data import eval_metrics
from recipes.runs.reading import EVAL, EVAL_BITS, EVAL_LOSS, LR, SPEED, TRAIN_LOSS, RunData

PANELS = (  # title, metric, unit
    ("Learning rate", LR, "learning rate"),
    ("Speed", SPEED, "tokens per second"),
    ("Model FLOPs utilization", "throughput/device/mfu", "share of the GPU's peak"),
    ("Waiting for data", "throughput/data_wait_share", "share of the time of batches"),
    ("Gradient", "l2_norm/grad/global", "norm before it is clipped"),
    ("Weights", "l2_norm/param/global", "norm"),
    ("Memory", "memory/peak_reserved_mem", "GB reserved at most"),
    ("Cost", "cost/gpu_hours", "hours of all ranks, lost ones included"),
)
AXES = {"batch": "batch", "tokens": "tokens", "hours": "hours of training"}
COLORS = ("#1f4e8c", "#b5532a", "#3c7a3f", "#7b4b94", "#8a6d1a", "#2b8a8a", "#a33a6a", "#555f6e")
# Largest number of points of a curve. A longer curve is divided into this number of parts, each drawn by its minimum,
# median and maximum, so that no spike is lost.
POINTS = 1500


def plots(runs: Sequence[RunData], axis: str = "batch", first: int = 0, last: int | None = None) -> dict[str, Any]:
    """Return Matplotlib figures by title, without those whose metrics no run has logged.

    Args:
        runs: runs to show, in the order of their colours.
        axis: horizontal axis, one of `AXES`.
        first: first batch to show.
        last: last batch to show; None: to the end.
    """
    panels = _Panels(runs, axis, first, last)
    panels.losses()
    panels.scores_on_dev()
    for title, metric, unit in PANELS:
        ax = panels.panel(title, unit, [(metric, "", {"lw": 1.3})])
        if ax and panels.whole:
            ax.set_ylim(bottom=0)
    for figure in panels.figures.values():
        add_legend(figure)
    return panels.figures


class _Panels:
    """Draws panels of the same runs over the same horizontal axis, one panel for each title."""

    def __init__(self, runs: Sequence[RunData], axis: str, first: int, last: int | None) -> None:
        self.runs, self.axis, self.first, self.last = runs, axis, first, last
        self.whole = not (first or last)
        self.figures: dict[str, Any] = {}

    def place(self, data: RunData, batch: int) -> float:
        """Position of a batch on the horizontal axis."""
        tokens, hours = data.places.get(batch, (0, 0.0))
        return {"batch": batch, "tokens": tokens, "hours": hours}[self.axis]

    def panel(self, title: str, unit: str, curves: Sequence[tuple[str, str, dict[str, Any]]]) -> Any:
        """Draw the given curves (metric, label, style) of each run that has them; None if no run has any of them."""
        shown = [(n, data) for n, data in enumerate(self.runs) if any(data.series.get(metric) for metric, *_ in curves)]
        if not shown:
            return None
        first, last = self.first, self.last
        self.figures[title], ax = new_figure()
        ax.set(xlabel=AXES[self.axis], ylabel=unit, title=title)
        ax.locator_params(axis="x", nbins=6, integer=self.axis != "hours", min_n_ticks=1)
        for n, data in shown:
            for metric, label, style in curves:
                points = [p for p in data.series.get(metric, ()) if first <= p[0] <= (last or p[0])]
                name = ", ".join(filter(None, (data.name if len(self.runs) > 1 else "", label)))
                xs, ys = [self.place(data, batch) for batch, _ in points], [value for _, value in points]
                _curve(ax, xs, ys, {"color": COLORS[n % len(COLORS)], "label": name, **style})
            in_legend = title == "Loss" and n == shown[0][0]
            _marks(ax, data, lambda batch, data=data: self.place(data, batch), first, last, in_legend)
        return ax

    def losses(self) -> None:
        """Draw losses and bits per byte, with the values that models without context reach on the same text."""
        faint, dots = {"alpha": 0.45, "lw": 0.9}, {"marker": "o", "ms": 4, "lw": 1.6}
        curves = [(TRAIN_LOSS, "training, each batch", faint), (EVAL_LOSS, "validation", dots)]
        loss = self.panel("Loss", ", ".join(dict.fromkeys(data.loss_unit for data in self.runs)), curves)
        sources = sorted({name for data in self.runs for name in data.series if name.startswith(f"{EVAL_BITS}/")})
        styles = ({"ls": style} for style in ("--", "-.", ":", (0, (1, 4))))
        mixed = {eval_metrics(name)[1]: name for data in self.runs for name in data.record["data"].get("mix", {})}
        names = {**{name: name.removeprefix(f"{EVAL_BITS}/") for name in sources}, **mixed}
        by_source = [(metric, name, style) for (metric, name), style in zip(names.items(), styles, strict=False)]
        all_of_it = (EVAL_BITS, "all" if by_source else "model", dots)
        bits = self.panel("Bits per byte of validation text", "bits per byte", [all_of_it, *by_source])
        alike = {str(data.record["data"].get("baselines")) for data in self.runs}
        baselines = self.runs[0].record["data"].get("baselines") if len(alike) == 1 else None
        if not baselines:
            return
        unigram = baselines["unigram_nats_per_token"]
        if loss and self.whole:
            loss.axhline(unigram, color="0.45", ls="--", lw=1, label="unigram baseline")
        if bits:
            in_bits = unigram / math.log(2) / self.runs[0].val_bytes_per_token
            bits.axhline(in_bits, color="0.45", ls="--", lw=1, label="unigram")
            bits.axhline(baselines["xz9_bits_per_byte"], color="0.45", ls="-.", lw=1, label="xz -9")

    def scores_on_dev(self) -> None:
        """Draw the scores of fine-tuning on dev."""
        if any(data.pretraining for data in self.runs):
            return
        for name in sorted({name for data in self.runs for name in data.series if name.startswith(EVAL)}):
            self.panel(f"{name.removeprefix(EVAL)} on dev", "", [(name, "", {"marker": "o", "ms": 4, "lw": 1.6})])


def _curve(ax: Any, xs: list[float], ys: list[float], style: dict[str, Any]) -> None:
    """Draw a line. A long curve becomes a line through the median of each part, in a band from minimum to maximum."""
    if len(xs) > POINTS:
        size = -(-len(xs) // POINTS)
        stretches = [sorted(filter(math.isfinite, ys[n : n + size])) or [math.nan] for n in range(0, len(ys), size)]
        xs = [statistics.fmean(xs[n : n + size]) for n in range(0, len(xs), size)]
        least, greatest = [part[0] for part in stretches], [part[-1] for part in stretches]
        ax.fill_between(xs, least, greatest, color=style["color"], alpha=0.2, lw=0)
        ys = [part[len(part) // 2] for part in stretches]
    if not style["label"]:
        style = {**style, "label": "_"}
    if "marker" not in style and (alone := _without_neighbours(ys)):
        style = {**style, "marker": "o", "ms": 4, "markevery": alone}
    ax.plot(xs, ys, **style)


def _without_neighbours(ys: Sequence[float]) -> list[int]:
    """Indices of values that have no finite neighbour, so that a line would not show them."""
    there = [False, *map(math.isfinite, ys), False]
    return [n for n in range(len(ys)) if there[n + 1] and not (there[n] or there[n + 2])]


def _marks(ax: Any, data: RunData, place: Any, first: int, last: int | None, legend: bool) -> None:
    """Mark where the run was restarted, was rewound, or skipped a batch."""

    def seen(batch: int) -> bool:
        return first <= batch <= (last or batch)

    for n, start in enumerate(filter(seen, data.starts[1:])):
        ax.axvline(place(start), color="0.6", lw=0.8, ls=":", label="restarted" if legend and n == 0 else None)
    for n, (spike, goal) in enumerate(pair for pair in data.rewinds if seen(pair[0])):
        label = "rewound, data skipped" if legend and n == 0 else None
        ax.axvspan(place(goal), place(min(spike, max(data.places))), color="#d9a441", alpha=0.25, lw=0, label=label)
    if skipped := [place(batch) for batch in data.skipped if seen(batch)]:
        where = {"transform": ax.get_xaxis_transform(), "marker": "x", "color": "#c0392b", "s": 18, "clip_on": False}
        ax.scatter(skipped, [0.0] * len(skipped), label="NaN or Inf, skipped" if legend else None, **where)

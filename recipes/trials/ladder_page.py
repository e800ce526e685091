"""Write the results of a ladder as an HTML page, a picture, JSON and lines to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.files import JsonDict, write_json, write_text
from recipes.planning import scaling_law
from recipes.runs.figures import add_legend, new_figure, save, svg
from recipes.trials.ladder import LEVEL, Point, answer, cannot_tell, fit_laws, measure, predict
from recipes.trials.rungs import Rung

RESULTS, PAGE, PICTURE = "ladder.json", "ladder.html", "ladder.png"
TEMPLATE = Path(__file__).with_name("ladder.html.jinja")


def draw(points: Sequence[Point], laws: dict[str, scaling_law.Fit], predictions: Sequence[JsonDict]) -> Any:
    """Draw the points, the first law with its interval, other laws dashed, and predictions with error bars."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    figure, axes = new_figure(height=4.4)
    ends = [point.compute for point in points] + [one["compute"] for one in predictions]
    line = np.geomspace(min(ends) / 2, max(ends) * 2, 100)
    band = np.array([answer(laws, compute)[1:] for compute in line])
    axes.fill_between(line, band[:, 0], band[:, 1], color="#9db8d9", alpha=0.35, lw=0, label=f"{LEVEL:.0%} interval")
    for number, (name, law) in enumerate(laws.items()):
        style = {"color": "#1f4e8c", "lw": 1.6} if number == 0 else {"color": "0.45", "lw": 1, "ls": "--"}
        axes.plot(line, law.predict(line), label=f"law, {name}", **style)
    for used, face, label in ((True, "#1f4e8c", "rungs"), (False, "white", "rungs left out")):
        chosen = [point for point in points if point.used is used]
        if chosen:
            x, y = [point.compute for point in chosen], [point.loss for point in chosen]
            axes.plot(x, y, "o", color="#1f4e8c", mfc=face, ms=6, label=label)
    for number, one in enumerate(predictions):
        (low, high), at = one["interval"], one["compute"]
        error = [[one["loss"] - low], [high - one["loss"]]]
        axes.errorbar(
            at, one["loss"], error, fmt="D", color="#b5532a", capsize=4, ms=5, label="" if number else "predicted"
        )
        axes.annotate(one["name"], (at, high), (0, 5), textcoords="offset points", ha="center")
    measured = [(one["compute"], one["measured"]) for one in predictions if one["measured"]]
    if measured:
        axes.plot(*zip(*measured, strict=True), "x", color="black", ms=8, mew=2, label="measured")
    losses = [point.loss for point in points] + [end for one in predictions for end in one["interval"]]
    axes.set(xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel="validation loss, nats per token")
    axes.set_ylim(max(min(losses), 0.1 * min(point.loss for point in points)) / 1.03, max(losses) * 1.06)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    add_legend(figure)
    return figure


def write_results(
    out: Path, rungs: Sequence[Rung], reasons: dict[str, str], targets: Sequence[Rung], floor: float | None
) -> JsonDict:
    """Measure the finished rungs, fit the laws, predict, and write the files. Return the contents of ladder.json."""
    points = [measure(rung, rung.name not in reasons) for rung in rungs if rung.finished]
    laws = fit_laws(points, floor)
    predictions = [predict(target, laws, points) for target in targets]
    results: JsonDict = {
        "points": [asdict(point) for point in points],
        "left_out": reasons,
        "level": LEVEL,
        "laws": {
            name: {
                "alpha": law.exponent,
                "E_nats": law.floor,
                "above_E_nats": law.reducible,
                "at_flops": law.center,
                "noise_nats": law.noise,
                "degrees_of_freedom": law.dof,
            }
            for name, law in laws.items()
        },
        "predictions": predictions,
        "cannot_tell": cannot_tell(rungs, points, laws, targets),
    }
    figure = draw(points, laws, predictions)
    save(figure, out / PICTURE, dpi=110)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE.name).render(**results, figure=svg(figure))
    write_text(out / PAGE, page)
    write_json(out / RESULTS, results)
    return results


def format_results(results: JsonDict) -> str:
    """Format points, laws and predictions as lines to print."""
    lines = ["loss of the rungs"]
    lines += [
        f"  {point['name']:<20} {point['compute']:.3g} FLOPs: {point['loss']:.4f} nats/token, "
        f"{point['bits_per_byte']:.4f} bits/byte{'' if point['used'] else ' (left out)'}"
        for point in results["points"]
    ]
    lines.append("laws: loss = E + B (C / C0)^-alpha, nats/token")
    for name, law in results["laws"].items():
        noise = (
            "unknown, the law passes through all points" if law["noise_nats"] is None else f"{law['noise_nats']:.2g}"
        )
        lines.append(
            f"  {name:<20} E {law['E_nats']:.4g}, B {law['above_E_nats']:.4g}, C0 {law['at_flops']:.3g}, "
            f"alpha {law['alpha']:.4g}; noise: {noise}"
        )
    lines.append(f"predictions, {results['level']:.0%} intervals")
    for one in results["predictions"]:
        low, high = one["interval"]
        low_bits, high_bits = one["interval_bits_per_byte"]
        measured = "" if one["measured"] is None else f"; measured {one['measured']:.4f}"
        lines.append(
            f"  {one['name']:<20} {one['compute']:.3g} FLOPs: {one['loss']:.4f} nats/token ({low:.4f} to {high:.4f}), "
            f"{one['bits_per_byte']:.4f} bits/byte ({low_bits:.4f} to {high_bits:.4f}){measured}"
        )
        for name, law in one["by_law"].items():
            ends = law["interval"]
            lines.append(
                f"    {name:<18} {law['loss']:.4f} "
                + (f"({ends[0]:.4f} to {ends[1]:.4f})" if ends else "(no interval)")
            )
    return "\n".join([*lines, "limits of these predictions", *(f"  - {note}" for note in results["cannot_tell"])])

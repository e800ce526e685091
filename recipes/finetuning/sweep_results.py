"""The results of a sweep: rank the configurations, draw them, and put them into a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from data_prep.common.files import JsonDict
from recipes.finetuning.sweep import Job, Sweep, dev_score
from recipes.runs.figures import new_figure, save


def choose(sweep: Sweep, failed: Sequence[Job]) -> JsonDict:
    """Rank the configurations by their mean score over seeds on dev, best first.

    A configuration with a failed run is left out. If means are equal, the first in the grid ranks higher.
    """
    ranked = []
    for configuration, jobs in sweep.configurations.items():
        if not any(job in failed for job in jobs):
            dev = [dev_score(job, sweep) for job in jobs]
            ranked.append(
                {
                    "configuration": configuration,
                    "runs": [job.name for job in jobs],
                    "dev": dev,
                    "mean": fmean(dev),
                    "standard_deviation": stdev(dev) if len(dev) > 1 else 0.0,
                }
            )
    ranked.sort(key=lambda one: -one["mean"])
    return {
        "sweep": sweep.name,
        "grid": sweep.grid,
        "metric": sweep.metric,
        "identity": sweep.identity,
        "compared": len(ranked),
        "left_out": [job.name for job in failed],
        "configurations": ranked,
        "test": None,
    }


def draw(results: JsonDict, path: Path) -> None:
    """Draw the dev scores of each configuration, best on top: a point for each seed, and a line at the mean."""
    ranked = results["configurations"]
    figure, axes = new_figure(8, 1.2 + 0.3 * len(ranked))
    for row, one in enumerate(ranked):
        color = "#c0392b" if row == 0 else "#2c3e50"
        axes.plot([100 * dev for dev in one["dev"]], [row] * len(one["dev"]), "o", color=color, alpha=0.5, markersize=5)
        axes.plot([100 * one["mean"]], [row], "|", color=color, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(ranked)), [one["configuration"] for one in ranked], fontsize=8)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_xlabel(f"{results['metric']} on dev, %: each seed, and their mean")
    save(figure, path)


def to_markdown(results: JsonDict, test: str) -> str:
    """Write the table of configurations by dev score, followed by the test scores of the best one."""
    ranked, metric = results["configurations"], results["metric"]
    seeds = len(ranked[0]["dev"])
    over = f"mean of {seeds} seeds ± standard deviation" if seeds > 1 else "one seed"
    lines = [f"| configuration | {metric} on dev, %, {over} |", "|---|---|"]
    for one in ranked:
        deviation = f" ± {100 * one['standard_deviation']:.1f}" if seeds > 1 else ""
        lines += [f"| {one['configuration']} | {100 * one['mean']:.1f}{deviation} |"]
    facts = [
        f"The best of {results['compared']} configurations on dev is {ranked[0]['configuration']}. Its dev score is "
        "too optimistic, because it is the highest of many. Only this configuration was scored on test, once."
    ]
    if equal := sum(one["mean"] == ranked[0]["mean"] for one in ranked[1:]):
        facts.append(f"{equal} more have the same score on dev; the first in the grid was chosen.")
    if results["left_out"]:
        facts.append(f"Left out because they failed: {', '.join(results['left_out'])}.")
    return "\n".join([*lines, "", " ".join(facts), "", test])

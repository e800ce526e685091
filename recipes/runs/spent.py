"""Compute the hours and device-hours of a run from its log, including work that was lost in a crash."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from recipes.runs.logged_lines import read_lines


class Spent(NamedTuple):
    """Time of a run, summed over its starts. Each start counts until its last line in metrics.jsonl.

    Attributes:
        seconds: wall time in seconds.
        device_seconds: ranks x seconds; each rank has one GPU, or is one process on a CPU.
    """

    seconds: float
    device_seconds: float

    @property
    def hours(self) -> float:
        """Wall time in hours."""
        return self.seconds / 3600

    @property
    def device_hours(self) -> float:
        """Ranks x hours."""
        return self.device_seconds / 3600


def spent(metrics: Path, to_batch: int | None = None) -> Spent:
    """Compute the time of a run. Where the clock was set back, the step counts as 0 s.

    Args:
        metrics: metrics.jsonl of the run, which may not exist.
        to_batch: count only to the last line of this batch, if the run has logged it; None: count everything.
    """
    seconds = device_seconds = last_s = 0.0
    ranks, counted = 0, None  # lines before the first start are not counted
    for line in read_lines(metrics, skip_damaged=True):
        if line.get("event") == "start":
            ranks = line.get("ranks", 1)
        elif ranks:
            passed_s = max(0.0, line["time_s"] - last_s)
            seconds, device_seconds = seconds + passed_s, device_seconds + ranks * passed_s
            if line["batch"] == to_batch:
                counted = Spent(seconds, device_seconds)
        last_s = line["time_s"]
    return counted or Spent(seconds, device_seconds)

"""What a run has taken by its own log: hours and device-hours, those parts that a crash has thrown away included."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from recipes.runs.logged_lines import read_lines


class Spent(NamedTuple):
    """From each start of training to the last line that it wrote.

    Attributes:
        seconds: seconds of wall time.
        device_seconds: ranks x seconds; a rank has one GPU, or is one of the processes on a CPU.
    """

    seconds: float
    device_seconds: float

    @property
    def hours(self) -> float:
        """Of wall time."""
        return self.seconds / 3600

    @property
    def device_hours(self) -> float:
        """Ranks x hours."""
        return self.device_seconds / 3600


def spent(metrics: Path, to_batch: int | None = None) -> Spent:
    """What a run took; where the clock was set back, it is counted from there on.

    Args:
        metrics: the run's metrics.jsonl, which may not be there.
        to_batch: count to the last line of this batch, if the run has logged it; None: all.
    """
    seconds = device_seconds = last_s = 0.0
    ranks, counted = 0, None  # none before the first start
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

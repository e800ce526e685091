"""Write every metric of a run, in full precision, as JSON lines in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.utils import dist

from data_prep.common.files import JsonDict
from recipes.training.batch_metrics import BatchMetrics

LINE_BYTES = 1 << 20  # no line is longer


class MetricsFile(BatchMetrics):
    """Appends one line for each batch, `{"batch": …, "tokens": …, "time_s": …, metric: value, …}`, to metrics.jsonl.

    Lines are never removed. A resumed run writes `{"event": "start", "batch": …}` and then appends its lines, so the
    lines of batches that were lost in a crash remain. If a batch occurs twice, the later line is valid.

    Args:
        path: the file.
        about_start: further facts for the line of this start, in addition to its batch and the number of ranks.
    """

    def __init__(self, path: Path, about_start: JsonDict) -> None:
        super().__init__()
        self.path, self.about_start = path, about_start
        if self._on and path.is_file():
            _drop_half_a_line(path)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Write the line of this start."""
        if self._on:
            self.write({"event": "start", "ranks": dist.get_world_size(), **self.about_start}, state)

    def write(self, metrics: JsonDict, state: State) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**_position(state), **metrics}) + "\n")


def _position(state: State) -> dict[str, Any]:
    return {
        "batch": int(state.timestamp.batch),
        "tokens": int(state.timestamp.token),
        "time_s": round(time.time(), 3),
    }


def _drop_half_a_line(path: Path) -> None:
    """Remove an incomplete last line, as after a kill. Otherwise the next line would be appended to it."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - LINE_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)

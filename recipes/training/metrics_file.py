"""Every metric of a run, exactly, as JSON lines in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from data_prep.common.files import JsonDict

LINE_BYTES = 1 << 20  # more than any line has


class MetricsFile(LoggerDestination):
    """Appends one line a batch (`{"batch": …, "tokens": …, "time_s": …, metric: value, …}`) to metrics.jsonl.

    The file is append-only: a resumed run writes `{"event": "start", "batch": …}` and goes on, so the lines of batches
    that were lost with a crash stay on record, and for a batch that occurs twice the later line is the run's.

    Args:
        path: the file.
        about_start: what the line of this start says beside its batch and the number of ranks.
    """

    def __init__(self, path: Path, about_start: JsonDict) -> None:
        self.path, self.about_start = path, about_start
        self._pending: dict[str, Any] = {}
        self._on = dist.get_global_rank() == 0
        if self._on and path.is_file():
            _drop_half_a_line(path)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep the metrics until the batch is over."""
        if self._on:
            self._pending.update({name: _number(value) for name, value in metrics.items()})

    def fit_start(self, state: State, logger: Logger) -> None:
        """Mark where this process begins."""
        self._write({"event": "start", **_position(state), "ranks": dist.get_world_size(), **self.about_start})

    def batch_end(self, state: State, logger: Logger) -> None:
        """One line for the batch; what callbacks log after this one goes to the next line."""
        self._flush(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """One line for an evaluation."""
        self._flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """What is left."""
        self._flush(state)

    def _flush(self, state: State) -> None:
        if self._pending:
            self._write({**_position(state), **self._pending})
            self._pending = {}

    def _write(self, line: dict[str, Any]) -> None:
        if self._on:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _position(state: State) -> dict[str, Any]:
    return {
        "batch": int(state.timestamp.batch),
        "tokens": int(state.timestamp.token),
        "time_s": round(time.time(), 3),
    }


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _drop_half_a_line(path: Path) -> None:
    """A line that a kill has cut: what is written next would stand in it."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - LINE_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)

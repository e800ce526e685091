"""Write event files for TensorBoard in the run folder: metrics, texts of the model, and the configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from composer import Logger, State

from recipes.training.batch_metrics import BatchMetrics

# Metrics that only repeat the step, or never change.
NO_CURVES = {f"time/{clock}{of}" for clock in ("batch", "sample", "token") for of in ("", "_in_epoch")}
NO_CURVES |= {"time/epoch", "time/iteration", "time/batch_in_iteration", "trainer/device_train_microbatch_size"}
# Characters with a special meaning in a Markdown table.
AS_THEY_STAND = str.maketrans({**{sign: f"&#{ord(sign)};" for sign in "\\`*_{}[]<>()#|&"}, "\n": "<br>"})


class TensorBoardFiles(BatchMetrics):
    """Writes event files that `tensorboard --logdir runs` shows. A resumed run replaces the batches it computes again.

    Args:
        folder: folder for the files.
        flush_interval: number of batches after which the files are flushed to disk.
        configuration: YAML file of the run.
    """

    def __init__(self, folder: Path, flush_interval: int, configuration: Path) -> None:
        super().__init__()
        self._folder, self._flush_interval, self._configuration = folder, flush_interval, configuration
        self._writer: Any = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open a file."""
        self._begin(state)

    def _begin(self, state: State) -> None:
        """Open the event file if none is open. An evaluation before the first batch also needs it.

        TensorBoard then ignores later batches in earlier files (`purge_step`).
        """
        from torch.utils.tensorboard import SummaryWriter

        if not self._on or self._writer is not None:  # otherwise each rank would open an empty file
            return
        batch = int(state.timestamp.batch)
        self._writer = SummaryWriter(str(self._folder), purge_step=batch + 1 if batch else None)
        if self._configuration.is_file():
            text = self._configuration.read_text(encoding="utf-8")
            self._writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()), batch)

    def write(self, metrics: dict[str, Any], state: State) -> None:
        """Add each finite number to its curve. TensorBoard cannot draw others."""
        self._begin(state)
        batch = int(state.timestamp.batch)
        for name, value in metrics.items():
            if name not in NO_CURVES and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, batch)
        if batch % self._flush_interval == 0:
            self._writer.flush()

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Add the model's texts as a table."""
        if self._writer is not None:
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
            self._writer.add_text(name, text, step)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the metrics of an evaluation, and flush them to disk."""
        super().eval_end(state, logger)
        if self._writer is not None:
            self._writer.flush()

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        if self._writer is not None:
            self._flush(state)
            self._writer.close()
            self._writer = None


def _cell(value: object) -> str:
    return str(value).translate(AS_THEY_STAND)

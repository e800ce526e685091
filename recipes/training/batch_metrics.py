"""Collect the metrics of a batch until the batch is over, so that every logger has one step for each batch.

Composer logs the loss of batch n at step n - 1, but the metrics of callbacks at step n.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist


class BatchMetrics(LoggerDestination):
    """A logger on rank 0 that writes once after each batch, after each evaluation, and at the end of training."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._pending: dict[str, Any] = {}
        self._on = dist.get_global_rank() == 0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep the metrics until the batch is over."""
        if self._on:
            self._pending.update({name: _number(value) for name, value in metrics.items()})

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the metrics of the batch. Metrics logged by later callbacks are written with the next batch."""
        self._flush(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the metrics of an evaluation."""
        self._flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the remaining metrics."""
        self._flush(state)

    def _flush(self, state: State) -> None:
        if self._pending:
            self.write(self._pending, state)
            self._pending = {}

    @abstractmethod
    def write(self, metrics: dict[str, Any], state: State) -> None:
        """Write the metrics of the current batch of `state`, as numbers and not tensors. Called only on rank 0."""


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

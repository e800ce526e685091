"""What is logged of a batch, gathered until the batch is over: one step for one batch in every logger.

Composer logs the loss at the number of batches before it, and what callbacks work out at the number after it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist


class BatchMetrics(LoggerDestination):
    """A logger of rank 0 that writes once a batch, once an evaluation, and at the end what is left."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._pending: dict[str, Any] = {}
        self._on = dist.get_global_rank() == 0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep the metrics until the batch is over."""
        if self._on:
            self._pending.update({name: _number(value) for name, value in metrics.items()})

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write those of the batch; what callbacks log after this logger is written with the next batch."""
        self._flush(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write those of an evaluation."""
        self._flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write what is left."""
        self._flush(state)

    def _flush(self, state: State) -> None:
        if self._pending:
            self.write(self._pending, state)
            self._pending = {}

    @abstractmethod
    def write(self, metrics: dict[str, Any], state: State) -> None:
        """Write the metrics of the batch at which `state` stands; numbers, not tensors. On rank 0 alone."""


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

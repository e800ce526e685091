"""How long the run waits for its data, and how much of it it has seen."""

from __future__ import annotations

import time

import torch
from composer import Callback, Logger, State
from composer.utils import dist


class DataMonitor(Callback):
    """Logs every `interval_batches`.

    | key                        | unit                                                             |
    |----------------------------|------------------------------------------------------------------|
    | throughput/data_wait_share | of the interval's time in batches, 0 to 1: waiting for a batch,  |
    |                            | on the rank that waited longest                                  |
    | time/passes                | passes over the training split                                   |

    Args:
        interval_batches: between two values.
        train_tokens: of the training split.
    """

    def __init__(self, interval_batches: int, train_tokens: int) -> None:
        self.interval_batches, self.train_tokens = interval_batches, train_tokens
        self._asked_s = time.monotonic()
        self._waited_s = self._batches_s = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """A batch is asked for."""
        self._asked_s = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """It is there."""
        self._waited_s += time.monotonic() - self._asked_s

    def batch_end(self, state: State, logger: Logger) -> None:
        """Evaluations and saves, which come after, are not of the interval."""
        self._batches_s += time.monotonic() - self._asked_s
        if int(state.timestamp.batch) % self.interval_batches:
            return
        waited_s = state.device.tensor_to_device(torch.tensor([self._waited_s]))
        dist.all_reduce(waited_s, reduce_operation="MAX")
        passes = int(state.timestamp.token) / self.train_tokens
        share = min(1.0, waited_s.item() / max(self._batches_s, 1e-9))
        logger.log_metrics({"throughput/data_wait_share": share, "time/passes": passes})
        self._waited_s = self._batches_s = 0.0

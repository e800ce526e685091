"""What a run has taken so far, those parts that a crash has thrown away included."""

from __future__ import annotations

import time
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist

from recipes.runs.spent import spent


class CostMonitor(Callback):
    """Logs each batch.

    | key            | unit                                                                            |
    |----------------|---------------------------------------------------------------------------------|
    | cost/gpu_hours | ranks x hours, from each start of training to the last line that it wrote       |
    | cost/total     | of these hours, in the currency of the price                                    |

    Args:
        metrics: the run's metrics.jsonl, which says what earlier starts took.
        price_per_gpu_hour: None: only hours are logged.
    """

    def __init__(self, metrics: Path, price_per_gpu_hour: float | None) -> None:
        self.metrics, self.price_per_gpu_hour = metrics, price_per_gpu_hour
        self._earlier_gpu_s = self._start_s = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count what was before."""
        if dist.get_global_rank() == 0:
            self._earlier_gpu_s = spent(self.metrics).device_seconds
        self._start_s = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Rank 0's count."""
        gpu_s = self._earlier_gpu_s + (time.monotonic() - self._start_s) * dist.get_world_size()
        logger.log_metrics({"cost/gpu_hours": gpu_s / 3600})
        if self.price_per_gpu_hour is not None:
            logger.log_metrics({"cost/total": gpu_s / 3600 * self.price_per_gpu_hour})

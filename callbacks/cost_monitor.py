"""Log the GPU-hours and the cost of a run so far, including work that was lost in a crash."""

from __future__ import annotations

import time
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist

from recipes.runs.spent import spent


class CostMonitor(Callback):
    """Logs these metrics after each batch.

    | key            | unit                                                                                    |
    |----------------|-----------------------------------------------------------------------------------------|
    | cost/gpu_hours | ranks x hours, summed over all starts; each counts until its last line in metrics.jsonl |
    | cost/total     | cost of these hours, in the currency of the price                                       |

    Args:
        metrics: metrics.jsonl of the run, from which the hours of earlier starts are read.
        price_per_gpu_hour: price of a GPU-hour in any currency; None: only hours are logged.
    """

    def __init__(self, metrics: Path, price_per_gpu_hour: float | None) -> None:
        self.metrics, self.price_per_gpu_hour = metrics, price_per_gpu_hour
        self._earlier_gpu_s = self._start_s = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Read the hours of earlier starts."""
        if dist.get_global_rank() == 0:
            self._earlier_gpu_s = spent(self.metrics).device_seconds
        self._start_s = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log hours and cost; only rank 0 knows the hours of earlier starts, and only rank 0 logs."""
        gpu_s = self._earlier_gpu_s + (time.monotonic() - self._start_s) * dist.get_world_size()
        logger.log_metrics({"cost/gpu_hours": gpu_s / 3600})
        if self.price_per_gpu_hour is not None:
            logger.log_metrics({"cost/total": gpu_s / 3600 * self.price_per_gpu_hour})

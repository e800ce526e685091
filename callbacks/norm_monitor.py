"""Log the norms of gradients and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist


class NormMonitor(Callback):
    """Logs global norms every `interval_batches`. Composer's OptimizerMonitor would see gradients after clipping.

    | key                  | unit                                                                   |
    |----------------------|------------------------------------------------------------------------|
    | l2_norm/grad/global  | norm of the batch's gradient, over all ranks, before it is clipped     |
    | l2_norm/param/global | norm of the trained parameters, after the step                         |

    Args:
        interval_batches: number of batches between two values. Each value waits for the device.
        replicas: number of copies of a sharded model; None: every rank has the whole model.
    """

    def __init__(self, interval_batches: int, replicas: int | None) -> None:
        self.interval_batches, self.replicas = interval_batches, replicas
        self._gradient: torch.Tensor | None = None

    def after_backward(self, state: State, logger: Logger) -> None:
        """Compute the norm after each microbatch. The last value is that of the whole batch, before clipping."""
        if (int(state.timestamp.batch) + 1) % self.interval_batches == 0:
            gradients = (parameter.grad for parameter in state.model.parameters())
            self._gradient = self._squares([gradient for gradient in gradients if gradient is not None])

    def batch_end(self, state: State, logger: Logger) -> None:
        """Sum over the ranks and log, at the end of an interval."""
        if self._gradient is None:
            return
        parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        squares = torch.stack([self._gradient, self._squares(parameters)])
        self._gradient = None
        if self.replicas is not None:
            dist.all_reduce(squares)
            squares /= self.replicas
        gradient, parameter = squares.sqrt().tolist()
        logger.log_metrics({"l2_norm/grad/global": gradient, "l2_norm/param/global": parameter})

    @torch.no_grad()
    def _squares(self, tensors: Sequence[Any]) -> torch.Tensor:
        local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
        return torch.stack(torch._foreach_norm([tensor.detach() for tensor in local])).float().square().sum()

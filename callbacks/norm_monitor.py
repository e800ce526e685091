"""How large gradients and weights are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist


class NormMonitor(Callback):
    """Logs global norms every `interval_batches`; Composer's OptimizerMonitor sees gradients when they are clipped.

    | key                  | unit                                                          |
    |----------------------|---------------------------------------------------------------|
    | l2_norm/grad/global  | of the batch's gradient, over all ranks, before it is clipped |
    | l2_norm/param/global | of what is trained, after the step                            |

    Args:
        interval_batches: between two values, each of which waits for the device.
        replicas: copies of a sharded model, each over ranks / this; None: every rank has all of it.
    """

    def __init__(self, interval_batches: int, replicas: int | None) -> None:
        self.interval_batches, self.replicas = interval_batches, replicas
        self._gradient: torch.Tensor | None = None

    def after_backward(self, state: State, logger: Logger) -> None:
        """After each microbatch; the last one's is the batch's, and clipping comes after it."""
        if (int(state.timestamp.batch) + 1) % self.interval_batches == 0:
            gradients = (parameter.grad for parameter in state.model.parameters())
            self._gradient = self._squares([gradient for gradient in gradients if gradient is not None])

    def batch_end(self, state: State, logger: Logger) -> None:
        """All ranks, every so many batches."""
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

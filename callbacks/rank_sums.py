"""Sum numbers of several callbacks over all ranks, with one collective and one wait for the device in each batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from composer import Callback, Logger, State
from composer.utils import dist

OfRank = Callable[[State], "int | torch.Tensor"]


class RankSums(Callback):
    """Sums numbers that other callbacks compute on each rank, after the last backward pass of a batch.

    This callback comes before them in the Trainer's list, so that they can read the sums in the same event.

    Attributes:
        of: sums of the newest batch, by the name given to `ask`; int64, which wraps around.
    """

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self._asked: dict[str, OfRank] = {}

    def ask(self, name: str, of_rank: OfRank) -> None:
        """Register `of_rank(state)` to be summed: it returns an int, or an integer tensor of shape () on the device."""
        self._asked[name] = of_rank

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Compute the sums, between the last backward pass and the optimizer step. All numbers are copied at once."""
        values = [of_rank(state) for of_rank in self._asked.values()]
        known = torch.tensor([0 if isinstance(value, torch.Tensor) else value for value in values])
        sums = state.device.tensor_to_device(known)  # NCCL sums only tensors on the GPU
        for n, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                sums[n] += value
        dist.all_reduce(sums)
        self.of = dict(zip(self._asked, sums.tolist(), strict=True))

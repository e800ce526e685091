"""What several callbacks want to know of all ranks, in one collective and one wait for the device a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from composer import Callback, Logger, State
from composer.utils import dist

OfRank = Callable[[State], "int | torch.Tensor"]


class RankSums(Callback):
    """Adds up over all ranks what other callbacks have to say of each batch, after its last backward pass.

    It stands before them in the Trainer's list, so that they read its sums in the same event.

    Attributes:
        of: the newest batch's sums, by the names that they were asked for under; int64, which wraps around.
    """

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self._asked: dict[str, OfRank] = {}

    def ask(self, name: str, of_rank: OfRank) -> None:
        """Add up `of_rank(state)`: a number that the host knows, or an integer tensor () on the device."""
        self._asked[name] = of_rank

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Between the last backward pass and the optimizer step. All numbers travel in one copy each way."""
        values = [of_rank(state) for of_rank in self._asked.values()]
        known = torch.tensor([0 if isinstance(value, torch.Tensor) else value for value in values])
        sums = state.device.tensor_to_device(known)  # a process group of GPUs takes no other tensor
        for n, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                sums[n] += value
        dist.all_reduce(sums)
        self.of = dict(zip(self._asked, sums.tolist(), strict=True))

"""The loss of one fixed batch, recorded in each checkpoint, to check that a resumed run computes as before.

It is the loss of a forward pass over one microbatch, with dropout, from the random state in the checkpoint. Unlike the
loss of the next batch, it is known even if the run ended right after the checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.utils import dist
from torch.nn.parallel import DistributedDataParallel

from data_prep.common.files import JsonDict


class Probe:
    """Computes the loss of the fixed batch. All ranks must take part.

    Args:
        loader: loader of the training data. Its first sample, repeated, makes a microbatch of the same shape as in
            training.
        microbatch_size: number of sequences that a rank computes at a time.
        computed_with: result of `computed_with.computed_with`.
    """

    def __init__(self, loader: Any, microbatch_size: int, computed_with: JsonDict) -> None:
        self.batch: Any = loader.collate_fn([loader.dataset[0]] * microbatch_size)
        self.computed_with = computed_with

    def record(self, state: State) -> JsonDict:
        """Return the values that a checkpoint records: `losses` and `computed_with`. All ranks must call it."""
        return {"losses": self.losses(state), "computed_with": self.computed_with}

    @torch.no_grad()
    def losses(self, state: State) -> list[float | None]:
        """Return the loss of each rank, since random states differ between ranks. All ranks must call it.

        A loss that is not finite becomes None. The random state and the model do not change.
        """
        model, batch = state.model, state.device.batch_to_device(self.batch)
        original: Any = model.module if isinstance(model, DistributedDataParallel) else model
        training = model.training
        model.train()
        with same_random_state_afterwards(state), get_precision_context(state.precision, state.precision_config):
            loss = float(original.loss(model(batch), batch))
        model.train(training)
        return dist.all_gather_object(loss if math.isfinite(loss) else None)


def same_random_state_afterwards(state: State) -> Any:
    """Context after which the random state is restored, so that later dropout masks do not change."""
    devices = [torch.cuda.current_device()] if state.device.name == "gpu" else []
    return torch.random.fork_rng(devices=devices)

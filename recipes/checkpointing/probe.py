"""The loss of one fixed batch, kept in each checkpoint, by which a resumed run shows that it computes as before.

It is a forward pass over a microbatch, with dropout, from the random state that the checkpoint holds. So it needs no
batch that comes after the checkpoint, which a run that was told to leave has not computed.
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
    """Computes it; every rank must.

    Args:
        loader: loader of the training data; its first sample, again and again, makes a batch of the shape of training.
        microbatch_size: sequences that a rank computes at once.
        computed_with: as `computed_with.computed_with` returns it.
    """

    def __init__(self, loader: Any, microbatch_size: int, computed_with: JsonDict) -> None:
        self.batch: Any = loader.collate_fn([loader.dataset[0]] * microbatch_size)
        self.computed_with = computed_with

    def record(self, state: State) -> JsonDict:
        """What a checkpoint keeps: `losses`, and `computed_with`. All ranks must call it."""
        return {"losses": self.losses(state), "computed_with": self.computed_with}

    @torch.no_grad()
    def losses(self, state: State) -> list[float | None]:
        """The loss of each rank, whose random states differ; None where it is not finite. All ranks must call it.

        The random state and the model are left as they are.
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
    """A context that what it draws leaves no trace of: a batch that is computed in it moves no dropout mask."""
    devices = [torch.cuda.current_device()] if state.device.name == "gpu" else []
    return torch.random.fork_rng(devices=devices)

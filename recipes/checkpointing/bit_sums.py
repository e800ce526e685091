"""Sums over the bits of weights and moments, by which what was loaded is held against what was saved.

The hashes of a checkpoint's files tell that what was read is what was written. These sums go further, from the devices
that it was saved from to those that it was loaded onto: the bits of each number taken as a whole number, added up
where the tensor lies. One bit that differs changes its tensor's sum. They add up over shards, so that any number of
ranks may have written and may load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from composer import State
from composer.devices import Device
from composer.utils import dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from data_prep.common.errors import BadInput

# By the bytes of a number. Sums of 2^31 numbers of 32 bits fit into 64.
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What wrappers of the model put into the names of its parameters.
WRAPPERS = re.compile(r"^module\.|(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor.

    Attributes:
        bits: their sum.
        copies: number of copies of the whole tensor, over all ranks.
        first: whether this is a part of the first copy.
    """

    bits: int
    copies: int
    first: bool


def own_parts(state: State, replicas: int | None) -> dict[str, Part]:
    """This rank's parts of all weights, moments and step numbers, by name; none under FSDP1, which mixes tensors.

    Args:
        state: the Trainer's.
        replicas: copies of a sharded model; None: every rank has all of it.
    """
    parts: dict[str, Part] = {}
    for module in state.model.modules():
        if isinstance(module, FSDPModule):  # within an evaluation, what it has gathered would stand for the parameter
            module.reshard()
    if replicas is not None and not all(isinstance(parameter, DTensor) for parameter in state.model.parameters()):
        return {}
    for name, parameter in state.model.named_parameters():
        plain = WRAPPERS.sub("", name)
        parts[plain] = _part(parameter, replicas)
        for optimizer in state.optimizers:
            for what, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    parts[f"{what} of {plain}"] = _part(value, replicas)
    return parts


def bits_of(local: torch.Tensor) -> torch.Tensor:
    """The sum over a tensor's bits, () int64, where it lies."""
    return local.view(WHOLE_NUMBERS[local.element_size()]).sum(dtype=torch.int64)


@torch.no_grad()
def _part(tensor: torch.Tensor, replicas: int | None) -> Part:
    bits = int(bits_of(tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()).item())
    if tensor.ndim == 0 or replicas is None or not isinstance(tensor, DTensor):  # a step number, or not sharded
        return Part(bits, dist.get_world_size(), dist.get_global_rank() == 0)
    places = zip(tensor.device_mesh.get_coordinate() or (), tensor.placements, strict=True)
    return Part(bits, replicas, all(place == 0 for place, placement in places if placement.is_replicate()))


def first_copy_sums(parts: Mapping[str, Part], device: Device) -> dict[str, int]:
    """The sums of the first copy, which is what is written: name -> sum. All ranks must call it.

    Args:
        parts: this rank's.
        device: whose process group adds them up.
    """
    return _over_ranks({name: part.bits if part.first else 0 for name, part in parts.items()}, device)


def differing(parts: Mapping[str, Part], saved: Mapping[str, int], device: Device) -> list[str]:
    """The names of tensors that are missing, or differ in any copy from what was saved. All ranks must call it.

    Args:
        parts: this rank's.
        saved: name -> sum.
        device: as in `first_copy_sums`.
    """
    loaded = _over_ranks({name: part.bits for name, part in parts.items()}, device)
    # 64 bits may overflow where many copies are added up; a bit that differs changes what is left all the same.
    return [
        name for name, bits in saved.items() if name not in loaded or (loaded[name] - parts[name].copies * bits) % 2**64
    ]


def _over_ranks(bits: Mapping[str, int], device: Device) -> dict[str, int]:
    sums = device.tensor_to_device(torch.tensor(list(bits.values()), dtype=torch.int64))
    dist.all_reduce(sums)
    return dict(zip(bits, sums.tolist(), strict=True))


def check_loaded(state: State, replicas: int | None, saved: Mapping[str, int] | None, checkpoint: str) -> None:
    """Hold what was loaded against what was saved. All ranks must call it, before the first step.

    Args:
        state: the Trainer's, which has loaded a checkpoint.
        replicas: as in `own_parts`.
        saved: the sums of its manifest; None: it has none.
        checkpoint: its name, for messages.

    Raises:
        BadInput: on all ranks: a bit differs.
    """
    rank_zero, own = dist.get_global_rank() == 0, own_parts(state, replicas)
    if saved is None or not own:
        if rank_zero:
            why = "under FSDP1" if not own else "an earlier version, or FSDP1, kept no sums of its bits"
            print(f"{checkpoint} is not compared on the device: {why}", flush=True)
        return
    if wrong := differing(own, saved, state.device):
        raise BadInput(
            f"{checkpoint}: {len(wrong)} of {len(saved)} tensors are not on the device what was saved, {wrong[0]} "
            "first. Its files are whole, so memory, a bus or the device has changed them; nothing was trained. Type "
            f"the same command again, better on other hardware. If it ends so again, remove {checkpoint}: then the "
            "checkpoint before it is taken"
        )
    if rank_zero:
        print(f"{len(saved)} tensors of weights and moments are what was saved, bit for bit", flush=True)

"""Compare loaded weights and moments with the saved ones, by sums over their bits.

The hashes of a checkpoint's files show that the files are unchanged. These sums check the whole way from the devices
that saved the tensors to the devices that loaded them: the bits of each number are read as an integer, and the integers
are added on the device of the tensor. A single changed bit changes the sum of its tensor. Sums of shards can be added,
so the number of ranks may differ between saving and loading.
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

# Bytes of a number -> integer type of the same size. The sum of 2^31 numbers of 32 bits fits into 64 bits.
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Parts that wrappers of the model add to the names of its parameters.
WRAPPERS = re.compile(r"^module\.|(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


@dataclass(frozen=True)
class Part:
    """The part of a tensor that one rank holds.

    Attributes:
        bits: sum over the bits of the part.
        copies: number of copies of the whole tensor over all ranks.
        first: whether this part belongs to the first copy.
    """

    bits: int
    copies: int
    first: bool


def own_parts(state: State, replicas: int | None) -> dict[str, Part]:
    """This rank's parts of all weights, moments and step numbers, by name. Empty under FSDP1, which joins tensors.

    Args:
        state: state of the Trainer.
        replicas: number of copies of a sharded model; None: every rank has the whole model.
    """
    parts: dict[str, Part] = {}
    for module in state.model.modules():
        if isinstance(module, FSDPModule):  # during an evaluation, a parameter may still be gathered
            module.reshard()
    if replicas is not None and not all(isinstance(parameter, DTensor) for parameter in state.model.parameters()):
        return {}
    for name, parameter in state.model.named_parameters():
        plain = WRAPPERS.sub("", name)
        parts[plain] = _part(parameter, replicas)
        for optimizer in state.optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    parts[f"{key} of {plain}"] = _part(value, replicas)
    return parts


def bits_of(local: torch.Tensor) -> torch.Tensor:
    """The sum over a tensor's bits, () int64, on the device of the tensor."""
    return local.view(WHOLE_NUMBERS[local.element_size()]).sum(dtype=torch.int64)


@torch.no_grad()
def _part(tensor: torch.Tensor, replicas: int | None) -> Part:
    bits = int(bits_of(tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()).item())
    if tensor.ndim == 0 or replicas is None or not isinstance(tensor, DTensor):  # a step number, or not sharded
        return Part(bits, dist.get_world_size(), dist.get_global_rank() == 0)
    places = zip(tensor.device_mesh.get_coordinate() or (), tensor.placements, strict=True)
    return Part(bits, replicas, all(place == 0 for place, placement in places if placement.is_replicate()))


def first_copy_sums(parts: Mapping[str, Part], device: Device) -> dict[str, int]:
    """Sums of the first copy of each tensor, which is the copy that is saved: name -> sum. All ranks must call it.

    Args:
        parts: parts that this rank holds.
        device: device whose process group computes the sum over ranks.
    """
    return _over_ranks({name: part.bits if part.first else 0 for name, part in parts.items()}, device)


def differing(parts: Mapping[str, Part], saved: Mapping[str, int], device: Device) -> list[str]:
    """Names of tensors that are missing, or of which any copy differs from the saved one. All ranks must call it.

    Args:
        parts: parts that this rank holds.
        saved: name -> sum of the saved tensor.
        device: as in `first_copy_sums`.
    """
    loaded = _over_ranks({name: part.bits for name, part in parts.items()}, device)
    # The sum of many copies may overflow 64 bits; a changed bit still changes the result modulo 2^64.
    return [
        name for name, bits in saved.items() if name not in loaded or (loaded[name] - parts[name].copies * bits) % 2**64
    ]


def _over_ranks(bits: Mapping[str, int], device: Device) -> dict[str, int]:
    sums = device.tensor_to_device(torch.tensor(list(bits.values()), dtype=torch.int64))
    dist.all_reduce(sums)
    return dict(zip(bits, sums.tolist(), strict=True))


def check_loaded(state: State, replicas: int | None, saved: Mapping[str, int] | None, checkpoint: str) -> None:
    """Compare loaded tensors with the saved ones. All ranks must call it before the first step.

    Args:
        state: state of the Trainer, after it has loaded a checkpoint.
        replicas: as in `own_parts`.
        saved: bit sums that the checkpoint's manifest records; None if it records none.
        checkpoint: name of the checkpoint, for messages.

    Raises:
        BadInput: on all ranks: a tensor differs.
    """
    rank_zero, own = dist.get_global_rank() == 0, own_parts(state, replicas)
    if saved is None or not own:
        if rank_zero:
            why = "FSDP1 joins tensors" if not own else "an earlier version, or FSDP1, saved it without sums of bits"
            print(f"the tensors of {checkpoint} are not compared on the device: {why}", flush=True)
        return
    if wrong := differing(own, saved, state.device):
        raise BadInput(
            f"{checkpoint}: {len(wrong)} of {len(saved)} tensors on the device differ from the saved ones, {wrong[0]} "
            "first. The files are intact, so memory, a bus or the device has changed them; nothing was trained. Type "
            f"the same command again, if possible on other hardware. If the error comes again, remove {checkpoint}: "
            "the run then resumes from the checkpoint before"
        )
    if rank_zero:
        print(f"{len(saved)} tensors of weights and moments are equal to the saved ones, bit for bit", flush=True)

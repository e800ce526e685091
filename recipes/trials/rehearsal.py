"""What a rehearsal sees of a run: how long a step takes, its memory, and whether a checkpoint gives everything back."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as distributed
import xxhash
from composer import Callback, Logger, State
from composer.core import Precision
from composer.distributed.fsdp2 import prepare_fully_shard
from composer.distributed.fsdp2_utils import generate_composer_model_policy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_prep.common.errors import BadInput
from recipes.config.schema import TrainConfig
from recipes.distributed.fsdp import parallelism_config
from recipes.modeling.gpt2 import BioMedLM
from recipes.planning.plan_text import gigabytes

SAME_LOSS = 1e-3  # share by which the loss may differ where a GPU's kernels do not repeat themselves


class Rehearsal(Callback):
    """Watches a few batches on this rank.

    Args:
        saved_at: the batch of the checkpoint that the last batches are run again from.

    Attributes:
        step_s: the median time of a batch, the first left out.
        saved: hashes of weights and moments at `saved_at`, where a run came to it.
        loaded: the same, where a run started from there.
        loss: of the last batch.
    """

    def __init__(self, saved_at: int) -> None:
        self.saved_at = saved_at
        self.saved: dict[str, str] = {}
        self.loaded: dict[str, str] = {}
        self.loss = float("nan")
        self._times_s: list[float] = []
        self._start_s = 0.0

    @property
    def step_s(self) -> float:
        """Seconds a batch."""
        return statistics.median(self._times_s[1:] or self._times_s)

    def fit_start(self, state: State, logger: Logger) -> None:
        """What was loaded; memory is counted from here."""
        if int(state.timestamp.batch) == self.saved_at:
            self.loaded = hashes(state)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def batch_start(self, state: State, logger: Logger) -> None:
        """The clock."""
        self._start_s = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Time, loss, and at the checkpoint what it will hold."""
        self.loss = float(state.total_loss_dict["loss/train/total"])  # waits for the device
        self._times_s.append(time.perf_counter() - self._start_s)
        if int(state.timestamp.batch) == self.saved_at:
            self.saved = hashes(state)

    def told_memory(self, planned_bytes: int, tolerance: float) -> str:
        """The peak of a GPU against the plan.

        Raises:
            BadInput: it is more than planned and tolerated.
        """
        if not torch.cuda.is_available():
            return f"{gigabytes(planned_bytes)} of tensors planned; not compared on a CPU, where freed blocks are kept"
        found_bytes = torch.cuda.max_memory_allocated()
        told = (
            f"{gigabytes(found_bytes)} of tensors, {gigabytes(planned_bytes)} planned "
            f"({found_bytes / planned_bytes - 1:+.1%}); {gigabytes(torch.cuda.max_memory_reserved())} reserved"
        )
        if found_bytes > planned_bytes * (1 + tolerance):
            raise BadInput(f"{told}: more than planned, so what make plan says of fitting does not hold here")
        return told

    def told_resumption(self, again: Rehearsal) -> str:
        """What came back from the checkpoint, against what went into it.

        Raises:
            BadInput: weights or moments differ, or the next batch has another loss.
        """
        if lost := [name for name, value in self.saved.items() if again.loaded.get(name) != value]:
            raise BadInput(f"after loading, {len(lost)} of {len(self.saved)} tensors are not those saved: {lost[0]} …")
        told = f"{len(self.saved)} tensors of weights and moments come back bit for bit"
        apart = abs(again.loss - self.loss) / max(abs(self.loss), sys.float_info.min)
        if not apart <= SAME_LOSS:
            raise BadInput(f"{told}, and the next batch has a loss of {again.loss:.6g} in the place of {self.loss:.6g}")
        same = "the same loss" if apart == 0 else f"a loss within {apart:.1e}: kernels here do not repeat themselves"
        return f"{told}; the next batch has {same}"


def hashes(state: State) -> dict[str, str]:
    """A hash of each weight's and moment's part on this rank."""
    for module in state.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass leaves the root's parameters gathered
    found = {}
    for name, parameter in state.model.named_parameters():
        tensors: dict[str, Any] = {"": parameter, **state.optimizers[0].state.get(parameter, {})}
        for kind, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                local: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                # A copy: FSDP2 could not resize a storage any more that numpy has looked at.
                data = local.detach().cpu().clone().reshape(-1).view(torch.uint8)
                found[f"{name} {kind}".strip()] = xxhash.xxh64_hexdigest(data.numpy())
    return found


def rank_bytes(cfg: TrainConfig, rank: int, world_size: int) -> int:
    """Bytes of the fp32 parameters of one rank, sharded as Composer does, without the other ranks and without memory.

    Raises:
        BadInput: FSDP1, which cannot be built so.
    """
    with torch.device("meta"):
        model = BioMedLM(cfg.model, eos_token_id=cfg.model.vocab_size - 1, draw_weights=False)
    if cfg.fsdp is None or world_size == 1:
        return sum(parameter.numel() * 4 for parameter in model.parameters())
    if cfg.fsdp.version != 2:
        raise BadInput("fsdp.version = 1 cannot be built without its ranks; give fsdp.version=2")
    distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        replicas = cfg.fsdp.data_parallel_replicate_degree
        fsdp2 = parallelism_config(cfg.fsdp, activation_checkpointing=False, device="cpu").fsdp2
        assert fsdp2
        shape = (replicas, world_size // replicas) if replicas > 1 else (world_size,)
        names = ("replicate", "shard") if replicas > 1 else ("shard",)
        fsdp2.device_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        prepare_fully_shard(model, fsdp2, Precision.FP32, generate_composer_model_policy(model))
        parts: list[Any] = list(model.parameters())
        return sum(part.to_local().numel() * 4 for part in parts)
    finally:
        distributed.destroy_process_group()

"""A rehearsal of a run: how long a step takes, its memory, and whether a checkpoint gives everything back."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from composer import Callback, Logger, State
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json, write_json
from data_prep.sharding.shard_format import ShardsInfo
from recipes.checkpointing.checkpoint import complete_checkpoints, remove, saved_at
from recipes.config.schema import TrainConfig
from recipes.distributed.rank_zero import on_rank_zero
from recipes.planning.gpus import CUDA_NAMES, GPUS
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import Plan, make_plan
from recipes.runs.lock import held_by_rank_zero
from recipes.runs.names import CHECKPOINTS, RECORD
from recipes.training.pretraining import fit
from recipes.training.trainer import give_memory_back
from recipes.trials.check_runner import Checks, gathered
from recipes.trials.memory_check import planned_bytes

BATCHES, SAVED_AT = 3, 2  # the first is slow, the last is run once more, resumed from before it
MEMORY_TOLERANCE = 0.10  # of measured against planned memory
STRAGGLER = 1.15  # a rank whose steps take so much longer than the median's is named
SAME_LOSS = 1e-3  # share by which the loss may differ where a GPU's kernels do not repeat themselves


class Rehearsal(Callback):
    """Watches a few batches on this rank.

    Args:
        saved_at: the batch of the checkpoint that the last batches are run again from.

    Attributes:
        step_s: the median time of a batch, the first left out.
        saved: hashes of weights and moments at `saved_at`, where a run came to it.
        loaded: the same, where a run started from there.
        loss: loss of the last batch.
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
        text = (
            f"{gigabytes(found_bytes)} of tensors, {gigabytes(planned_bytes)} planned "
            f"({found_bytes / planned_bytes - 1:+.1%}); {gigabytes(torch.cuda.max_memory_reserved())} reserved"
        )
        if found_bytes > planned_bytes * (1 + tolerance):
            raise BadInput(f"{text}: more than planned, so what make plan says of fitting does not hold here")
        return text

    def told_resumption(self, again: Rehearsal) -> str:
        """What came back from the checkpoint, against what went into it.

        Raises:
            BadInput: weights or moments differ, or the next batch has another loss.
        """
        if lost := [name for name, value in self.saved.items() if again.loaded.get(name) != value]:
            raise BadInput(f"after loading, {len(lost)} of {len(self.saved)} tensors are not those saved: {lost[0]} …")
        text = f"{len(self.saved)} tensors of weights and moments come back bit for bit"
        apart = abs(again.loss - self.loss) / max(abs(self.loss), sys.float_info.min)
        if not apart <= SAME_LOSS:
            raise BadInput(f"{text}, and the next batch has a loss of {again.loss:.6g} in the place of {self.loss:.6g}")
        same = "the same loss" if apart == 0 else f"a loss within {apart:.1e}: kernels here do not repeat themselves"
        return f"{text}; the next batch has {same}"


def hashes(state: State) -> dict[str, str]:
    """A hash of each weight's and moment's part on this rank."""
    for module in state.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass leaves the root's parameters gathered
    by_name = {}
    for name, parameter in state.model.named_parameters():
        tensors: dict[str, Any] = {"": parameter, **state.optimizers[0].state.get(parameter, {})}
        for kind, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                local: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                # A copy: FSDP2 could not resize a storage any more that numpy has looked at.
                data = local.detach().cpu().clone().reshape(-1).view(torch.uint8)
                by_name[f"{name} {kind}".strip()] = xxhash.xxh64_hexdigest(data.numpy())
    return by_name


def rehearse(cfg: TrainConfig, plan: Plan, shards: ShardsInfo, checks: Checks) -> None:
    """A few batches of the real run, a checkpoint, and the last batch once more from it."""
    folder = Path(f"{cfg.run_dir}.preflight")
    tried = rehearsal_config(cfg, folder)
    short = make_plan(tried, plan.world_size, shards, plan.ranks_per_node)
    first, second = Rehearsal(SAVED_AT), Rehearsal(SAVED_AT)
    with held_by_rank_zero(folder):
        try:
            on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))
            on_rank_zero(lambda: folder.mkdir(parents=True))

            def steps() -> str:
                try:
                    fit(tried, short, shards, [first])
                except torch.OutOfMemoryError as error:
                    raise BadInput(f"{str(error).splitlines()[0]}; make plan GPU=… says what would fit") from None
                give_memory_back()
                return _speed(plan, first)

            if not checks.run("step", steps):
                return
            checks.run("peak memory", lambda: first.told_memory(planned_bytes(cfg, plan), MEMORY_TOLERANCE))

            def again() -> str:
                on_rank_zero(lambda: _forget_the_end(folder))
                fit(tried, short, shards, [second])
                return first.told_resumption(second)

            checks.run("resume", again)
        finally:
            on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))


def rehearsal_config(cfg: TrainConfig, folder: Path) -> TrainConfig:
    """The run, but for a few batches in a folder of its own, and without what tells others of it."""
    callbacks = replace(cfg.callbacks, generate_samples=None, console=None, spike_guard=None, runtime_estimator=None)
    return replace(
        cfg,
        run_dir=str(folder),
        max_duration=f"{BATCHES}ba",
        scheduler=replace(cfg.scheduler, t_warmup="1ba"),
        eval_interval=f"{BATCHES}ba",
        eval_subset_num_batches=1,
        save_interval="1ba",
        save_num_checkpoints_to_keep=-1,
        save_permanent_interval=None,
        save_remote=None,
        on_save_error="stop",
        progress_bar=False,
        callbacks=callbacks,
        loggers=replace(cfg.loggers, wandb=None, tensorboard=None),
    )


def _forget_the_end(folder: Path) -> None:
    """As a crash after the checkpoint would leave the folder."""
    for checkpoint in complete_checkpoints(folder / CHECKPOINTS):
        if saved_at(checkpoint)["batch"] > SAVED_AT:
            remove(checkpoint)
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, "finished": False})


def _speed(plan: Plan, rehearsal: Rehearsal) -> str:
    """Step time of all ranks, and of the slowest."""
    steps_s = gathered(rehearsal.step_s)
    median_s = statistics.median(steps_s)
    tokens_per_s = plan.tokens_per_batch / max(steps_s)
    text = f"{max(steps_s):.3f} s a batch, {tokens_per_s:,.0f} tokens/s, {plan.tokens / tokens_per_s / 86400:.3g} days"
    if torch.cuda.is_available() and (known := CUDA_NAMES.get(torch.cuda.get_device_name())):
        peak_flops = GPUS[known].bf16_flops * plan.world_size
        text += f", MFU {tokens_per_s * plan.flops_per_token / peak_flops:.1%} of {known}'s bf16 peak"
    slow = [rank for rank, s in enumerate(steps_s) if s > STRAGGLER * median_s]
    if slow:
        text += f"; slower than the others: ranks {slow} ({max(steps_s) / median_s:.2f} of the median)"
    return text

"""Rehearse a run: measure the time and memory of a step, and check that a checkpoint restores everything."""

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

BATCHES, SAVED_AT = 3, 2  # the first batch is slow; the last batch is run a second time after a resume
MEMORY_TOLERANCE = 0.10  # share by which measured memory may exceed planned memory
STRAGGLER = 1.15  # a rank is reported if its step time is this many times the median
SAME_LOSS = 1e-3  # share by which the loss may differ on GPUs whose kernels are not deterministic


class Rehearsal(Callback):
    """Measures a few batches on this rank.

    Args:
        saved_at: batch of the checkpoint from which the run is resumed.

    Attributes:
        step_s: median time of a batch in seconds, without the first batch.
        saved: hashes of weights and moments after batch `saved_at`.
        loaded: hashes of weights and moments at the start of a run that resumes from `saved_at`.
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
        """Median time of a batch in seconds."""
        return statistics.median(self._times_s[1:] or self._times_s)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Hash what was loaded, and start to measure the peak of memory."""
        if int(state.timestamp.batch) == self.saved_at:
            self.loaded = hashes(state)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Note the time."""
        self._start_s = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Record time and loss; at the batch of the checkpoint, also hash weights and moments."""
        self.loss = float(state.total_loss_dict["loss/train/total"])  # waits for the device
        self._times_s.append(time.perf_counter() - self._start_s)
        if int(state.timestamp.batch) == self.saved_at:
            self.saved = hashes(state)

    def told_memory(self, planned_bytes: int, tolerance: float) -> str:
        """Compare the peak memory of a GPU with the plan.

        Raises:
            BadInput: the peak is above the plan and the tolerance.
        """
        if not torch.cuda.is_available():
            return f"{gigabytes(planned_bytes)} of tensors planned; not measured on a CPU, where freed memory is kept"
        found_bytes = torch.cuda.max_memory_allocated()
        text = (
            f"{gigabytes(found_bytes)} of tensors, {gigabytes(planned_bytes)} planned "
            f"({found_bytes / planned_bytes - 1:+.1%}); {gigabytes(torch.cuda.max_memory_reserved())} reserved"
        )
        if found_bytes > planned_bytes * (1 + tolerance):
            raise BadInput(f"{text}: more than planned, so do not rely on make plan for whether the run fits")
        return text

    def told_resumption(self, again: Rehearsal) -> str:
        """Compare the state that was loaded from the checkpoint with the state that was saved.

        Raises:
            BadInput: weights or moments differ, or the next batch has another loss.
        """
        if lost := [name for name, value in self.saved.items() if again.loaded.get(name) != value]:
            raise BadInput(
                f"after loading, {len(lost)} of {len(self.saved)} tensors differ from the saved: {lost[0]} …"
            )
        text = f"{len(self.saved)} tensors of weights and moments are restored bit for bit"
        apart = abs(again.loss - self.loss) / max(abs(self.loss), sys.float_info.min)
        if not apart <= SAME_LOSS:
            raise BadInput(f"{text}, but the next batch has a loss of {again.loss:.6g} and not {self.loss:.6g}")
        same = "the same loss" if apart == 0 else f"a loss within {apart:.1e}: kernels here are not deterministic"
        return f"{text}; the next batch has {same}"


def hashes(state: State) -> dict[str, str]:
    """Hash the part of each weight and moment that this rank holds."""
    for module in state.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass leaves the root's parameters gathered
    by_name = {}
    for name, parameter in state.model.named_parameters():
        tensors: dict[str, Any] = {"": parameter, **state.optimizers[0].state.get(parameter, {})}
        for kind, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                local: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                # A copy, because FSDP2 cannot resize a storage that numpy shares.
                data = local.detach().cpu().clone().reshape(-1).view(torch.uint8)
                by_name[f"{name} {kind}".strip()] = xxhash.xxh64_hexdigest(data.numpy())
    return by_name


def rehearse(cfg: TrainConfig, plan: Plan, shards: ShardsInfo, checks: Checks) -> None:
    """Train a few batches of the real run, save a checkpoint, and train the last batch again from it."""
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
                    raise BadInput(f"{str(error).splitlines()[0]}; make plan GPU=… shows what would fit") from None
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
    """The configuration of the run, with few batches, another folder, and without W&B, TensorBoard and remote."""
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
    """Bring the folder into the state after a crash that follows the checkpoint."""
    for checkpoint in complete_checkpoints(folder / CHECKPOINTS):
        if saved_at(checkpoint)["batch"] > SAVED_AT:
            remove(checkpoint)
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, "finished": False})


def _speed(plan: Plan, rehearsal: Rehearsal) -> str:
    """Describe the speed, which the slowest rank determines, and name slow ranks."""
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

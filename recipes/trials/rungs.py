"""The rungs of a ladder: read them, check whether they fit the machine, and estimate their cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import MANIFEST
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.planning.cluster_estimate import make_forecast, needed_bytes
from recipes.planning.estimate_text import refusal
from recipes.planning.gpus import CUDA_NAMES, GPUS, LOCK
from recipes.planning.memory import Layout, peak, step_memory
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import Plan, check_shards, make_plan
from recipes.runs.fingerprint import changes, check_fingerprint, pretraining_fingerprint
from recipes.runs.processes import command_of

# Up to four passes, repeated tokens help nearly as much as new ones; after that, less and less (arXiv 2305.16264).
MAX_PASSES = 4.0


@dataclass(frozen=True)
class Rung:
    """A run of the ladder.

    Attributes:
        name: run_name of the rung.
        yaml: path of its YAML.
        cfg: its configuration, from YAML and overrides.
        plan: its plan, for the number of ranks in the configuration.
        shards: token shards that it reads; None if they are not built.
        overrides: overrides in its command.
    """

    name: str
    yaml: Path
    cfg: TrainConfig
    plan: Plan
    shards: ShardsInfo | None
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Run folder of the rung."""
        return Path(self.cfg.run_dir)

    @property
    def compute(self) -> float:
        """FLOPs of the training."""
        return float(self.plan.tokens * self.plan.flops_per_token)

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens of the training, repeated ones included, divided by the parameters."""
        return self.plan.tokens / self.plan.parameters

    @property
    def fingerprint(self) -> JsonDict:
        """Fingerprint of the run."""
        return pretraining_fingerprint(self.cfg, self.plan, self.shards)

    def check(self) -> JsonDict | None:
        """Return the record of the run folder; None if the rung has not begun.

        Raises:
            BadInput: the folder holds another run, or files that are not a run.
        """
        return check_fingerprint(self.folder, self.fingerprint, self.cfg.resume.allow)

    @property
    def record(self) -> JsonDict | None:
        """The record as `check` returns it; also None if the folder holds something else."""
        try:
            return self.check()
        except BadInput:
            return None

    @property
    def finished(self) -> bool:
        """Whether the run folder holds the finished run, with this length and these settings."""
        record = self.record
        return bool(record and record["finished"] and not changes(record["identity"], self.fingerprint))

    @property
    def passes(self) -> float | None:
        """Number of passes over the data; None if the shards are not built and the rung has not begun."""
        return self.record["plan"]["passes"] if self.record else self.plan.passes

    @property
    def repeats(self) -> bool:
        """Whether the rung reads its data more than MAX_PASSES times."""
        return self.passes is not None and self.passes > MAX_PASSES

    @property
    def text_sha256(self) -> str | None:
        """Hash of the shards for training and validation; None if they are not built and the rung has not begun."""
        if self.record:
            return self.record["identity"]["shards_sha256"]
        return self.shards.sha256 if self.shards else None

    @property
    def command(self) -> list[str]:
        """The command that runs the rung."""
        return [*command_of("train.py", self.yaml, self.cfg.world_size), *self.overrides]


@dataclass(frozen=True)
class Machine:
    """GPUs to run on. 0 GPUs means a CPU."""

    gpus: int
    gpu_bytes: int
    name: str | None  # name in recipes/planning/gpus.py


def read_rung(yaml: Path, overrides: Sequence[str] = ()) -> Rung:
    """Read a rung, or a run to predict, from its YAML.

    Raises:
        BadInput: the configuration or the shards cannot be used.
    """
    cfg = load_config(yaml, overrides)
    if cfg.init_from is not None:
        raise BadInput(f"{yaml}: init_from = {cfg.init_from}, but all runs of a ladder must begin with random weights")
    if cfg.data.mix:
        raise BadInput(
            f"{yaml}: data.mix has {', '.join(cfg.data.mix)}, but the rungs of a ladder read only data.shards"
        )
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    return Rung(cfg.run_name, yaml, cfg, make_plan(cfg, cfg.world_size, shards), shards, tuple(overrides))


def load_rungs(yamls: Sequence[Path], overrides: Sequence[str]) -> list[Rung]:
    """Read all rungs before any of them starts, and sort them by compute, smallest first.

    Raises:
        BadInput: a configuration, its shards or its run folder cannot be used; or two rungs share a folder, or are
            measured on different texts.
    """
    for override in overrides:
        if override.partition("=")[0] in ("run_name", "run_dir"):
            raise BadInput(f"{override}: each rung must have its own name and folder, which its YAML sets")
    rungs = []
    for yaml in yamls:
        rung = read_rung(yaml, overrides)
        rung.check()
        rungs.append(rung)
    rungs.sort(key=lambda rung: rung.compute)
    folders: dict[Path, Rung] = {}
    first = next((rung for rung in rungs if rung.text_sha256), rungs[0])
    for rung in rungs:
        if (other := folders.setdefault(rung.folder, rung)) is not rung:
            raise BadInput(f"{other.yaml} and {rung.yaml} share run_dir = {rung.folder}; give each its own run_name")
        for key, one, another in (
            ("data.shards", first.text_sha256, rung.text_sha256 or first.text_sha256),
            ("data.seq_len", first.cfg.data.seq_len, rung.cfg.data.seq_len),
            ("eval_subset_num_batches", evaluated(first.cfg), evaluated(rung.cfg)),
        ):
            if one != another:
                raise BadInput(
                    f"{key} differs between {first.yaml} and {rung.yaml}, so their losses are on different texts and "
                    f"cannot be compared; set {key}=… after the YAMLs, for all rungs"
                )
    return rungs


def evaluated(cfg: TrainConfig) -> int:
    """Number of sequences in an evaluation; -1: the whole validation split."""
    ranks_batch = cfg.device_eval_batch_size * cfg.world_size
    return -1 if cfg.eval_subset_num_batches == -1 else cfg.eval_subset_num_batches * ranks_batch


def this_machine() -> Machine:
    """The GPUs that CUDA finds on this machine."""
    import torch

    if not torch.cuda.is_available():
        return Machine(0, 0, None)
    device = torch.cuda.get_device_properties(0)
    return Machine(torch.cuda.device_count(), device.total_memory, CUDA_NAMES.get(device.name))


def why_not(rung: Rung, machine: Machine, planned_for: str | None, stack: str = LOCK) -> str | None:
    """Explain why a rung does not fit, and what would make it fit; None if it fits.

    Args:
        rung: the rung.
        machine: machine that the rung would run on.
        planned_for: name of a GPU to plan for, with as many GPUs as the rung asks for; None: plan for `machine`.
        stack: software to run on `planned_for`.

    Raises:
        BadInput: the GPU is unknown, or the stack cannot run it.
    """
    cfg, plan = rung.cfg, rung.plan
    layout = Layout.of(cfg, cfg.world_size)
    if on_cpu(rung):
        microbatch, accumulates = plan.device_train_microbatch_size, plan.grad_accumulation > 1
        memory = peak(step_memory(cfg, layout, microbatch, accumulates=accumulates, device="cpu"))
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if memory.total_bytes <= there:
            return None
        return f"needs {gigabytes(memory.total_bytes)} of memory, but this machine has {gigabytes(there)}"
    if planned_for:
        cast = make_forecast(cfg, plan, planned_for, None, None, None, stack)
        return None if cast.fits else refusal(cast, cfg, plan)
    if machine.gpus < cfg.world_size:
        fewer = f"set world_size={machine.gpus}, or " if machine.gpus else ""
        return (
            f"needs {cfg.world_size} GPU{'s' * (cfg.world_size > 1)}, but this machine has {machine.gpus or 'none'}; "
            f"{fewer}run it elsewhere (recipes/train.py {rung.yaml}) and copy its run folder here"
        )
    needed = needed_bytes(cfg, plan, layout, plan.device_train_microbatch_size)
    if needed <= machine.gpu_bytes:
        return None
    return (
        f"needs {gigabytes(needed)} on each GPU, which has {gigabytes(machine.gpu_bytes)}; a smaller "
        "device_train_microbatch_size=… or activation_checkpointing=true may make it fit (make plan shows it)"
    )


def on_cpu(rung: Rung) -> bool:
    """Whether the rung asks for CPUs."""
    return rung.cfg.device == "cpu"


def left_out(
    rungs: Sequence[Rung], machine: Machine, planned_for: str | None, with_repeated: bool, stack: str = LOCK
) -> dict[str, str]:
    """Rungs that are not run or not used in the fit: name -> reason. A finished rung need not fit the machine."""
    reasons = {}
    for rung in rungs:
        if rung.repeats and not with_repeated:
            reasons[rung.name] = (
                f"makes {rung.passes:.1f} passes over its data, but repeated tokens help less after "
                f"{MAX_PASSES:g} passes; --with-repeated includes it"
            )
        elif not rung.finished and (why := why_not(rung, machine, planned_for, stack)):
            reasons[rung.name] = why
    return reasons


def format_ladder(
    rungs: Sequence[Rung], reasons: dict[str, str], gpu: str | None, mfu: float | None, stack: str | None = LOCK
) -> str:
    """Format the rungs and their cost as lines to print.

    Args:
        rungs: all rungs.
        reasons: rungs that are left out: name -> reason.
        gpu: GPU of recipes/planning/gpus.py for hours and cost; None: hours and cost are not known.
        mfu: MFU as for `make_forecast`.
        stack: software stack as for `make_forecast`.
    """
    width = max(len(rung.name) for rung in rungs)
    lines = [
        f"{'rung':<{width}}  {'parameters':>13}  {'tokens':>8}  {'tokens/p.':>9}  {'passes':>6}  {'FLOPs':>7}  "
        f"{'hours':>11}  {'GPU-hours':>13}  {'cost':>13}"
    ]
    for rung in rungs:
        plan = rung.plan
        hours = gpu_hours = cost = "–"
        if gpu and not on_cpu(rung):
            cast = make_forecast(rung.cfg, plan, gpu, mfu, rung.cfg.price_per_gpu_hour, None, stack)
            spans = [[speed.days * 24 for speed in cast.speeds], [speed.gpu_hours for speed in cast.speeds]]
            prices = [speed.cost for speed in cast.speeds if speed.cost is not None]
            hours, gpu_hours, cost = (_span(values) for values in (*spans, prices))
            if not cast.speeds:
                hours = f"> {cast.full_speed_days * 24:.3g}"
        state = "finished" if rung.finished else "left out" if rung.name in reasons else "to do"
        passes = "?" if rung.passes is None else f"{rung.passes:.2f}"
        lines.append(
            f"{rung.name:<{width}}  {plan.parameters:>13,}  {_short(plan.tokens):>8}  "
            f"{rung.tokens_per_parameter:>9.3g}  {passes:>6}  {rung.compute:>7.2g}  {hours:>11}  {gpu_hours:>13}  "
            f"{cost:>13}  {state}"
        )
    lines += [f"left out: {name}: {reason}" for name, reason in reasons.items()]
    timed = [rung for rung in rungs if not on_cpu(rung)]
    if gpu is None and timed:
        lines.append(
            "--gpu NAME adds hours, GPU-hours and whether a rung fits; price_per_gpu_hour=… adds the cost; NAME is one "
            f"of {', '.join(GPUS)}"
        )
    elif timed:
        speed = "from the slowest to the fastest published run" if mfu is None else f"at MFU {mfu:g}"
        no_price = any(rung.cfg.price_per_gpu_hour is None for rung in timed)
        cost = "; price_per_gpu_hour=… adds the cost" if no_price else ""
        lines.append(f"hours and GPU-hours: with world_size GPUs {gpu} for each rung, {speed}{cost}")
    return "\n".join(lines)


def _span(values: Sequence[float]) -> str:
    """Write the smallest and the largest value as a range."""
    texts = list(dict.fromkeys(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in sorted(values)))
    return " to ".join(texts[:1] + texts[-1:] if len(texts) > 1 else texts) or "–"


def _short(tokens: int) -> str:
    return f"{tokens / 1e9:.3g}B" if tokens >= 1e9 else f"{tokens / 1e6:.3g}M"

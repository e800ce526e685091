"""What is checked before a run, on the ranks that will run it."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import read_json, write_json
from data_prep.common.world import world
from data_prep.sharding import verification
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.checks import check_account
from recipes.config.schema import TrainConfig
from recipes.distributed.hang_detector import watching_the_start
from recipes.planning.cluster_estimate import needed_bytes
from recipes.planning.gpus import CUDA_NAMES, GPUS, dotted
from recipes.planning.memory import Layout, peak, step_memory
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import Plan, check_shards, make_plan
from recipes.runs.fingerprint import check_fingerprint, pretraining_fingerprint
from recipes.runs.names import CHECKPOINTS, RECORD
from recipes.training.pretraining import fit, ranks_per_node

CLOCKS_APART_S = 30.0  # S3 refuses requests a quarter of an hour off; logs of several hosts are read side by side
BATCHES, SAVED_AT = 3, 2  # of the rehearsal: the first is slow, the last is run once more, resumed from before it
MEMORY_TOLERANCE = 0.10  # of measured against planned memory
STRAGGLER = 1.15  # a rank whose steps take so much longer than the median's is named
MESSAGE_BYTES = (1 << 20, 16 << 20, 128 << 20)
ROUNDS = 5


class Checks:
    """Runs checks on all ranks, prints a line for each on rank 0, and counts those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.rank = world().rank

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Run one check; all ranks must call it. A check says what it found, or raises what is wrong.

        Returns:
            Whether it passed on all ranks.
        """
        start_s = time.monotonic()
        try:
            found, problem = check(), ""
        except (BadInput, Unavailable) as error:
            found, problem = "", str(error)
        problems = {text: rank for rank, text in reversed(list(enumerate(_gathered(problem)))) if text}
        if self.rank == 0:
            took = f"({time.monotonic() - start_s:.1f} s)"
            print(f"{name:<14} {'FAILED' if problems else 'ok'}{'' if problems else f'  {found}'} {took}", flush=True)
            for text, rank in problems.items():
                print("\n".join(f"  rank {rank}: {line}" for line in text.splitlines()), flush=True)
        if problems:
            self.failed.append(name)
        return not problems


def _gathered(value: Any) -> list[Any]:
    """Every rank's value; this one's alone before the ranks have met."""
    if world().size == 1:
        return [value]
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    from composer.utils import dist

    return dist.all_gather_object(value)


def run_checks(cfg: TrainConfig, verify_all: bool) -> None:
    """Check everything that can be checked before `cfg` runs, on the ranks that this process is one of.

    Raises:
        BadInput: something failed; everything that did was printed.
    """
    world_size, checks = world().size, Checks()
    plan: Plan | None = None
    shards: ShardsInfo | None = None

    def data() -> str:
        nonlocal shards, plan
        if cfg.data.remote:
            from recipes.dataloading.mds_reader import fetch_manifest

            fetch_manifest(Path(cfg.data.shards), cfg.data.remote)
        shards = check_shards(cfg)
        plan = make_plan(cfg, world_size, shards, ranks_per_node())
        train = shards.counts["train"]
        passes = f"{plan.passes:.2f} passes of {train.tokens:,} tokens"
        return f"{plan.batches:,} batches on {world_size} ranks, {passes}; the tokenizer is the shards' own"

    # Before the ranks meet, which takes torch: what a laptop would find, too.
    usable = checks.run("data", data)
    checks.run("account", lambda: _account(cfg))
    if usable:
        checks.run("shards", lambda: _shards(cfg, shards, verify_all))
    from recipes.training.trainer import connect

    connect(cfg)  # a GPU that torch cannot run, unlike and unreachable ranks end here, with what they are
    with watching_the_start(Path(cfg.run_dir), cfg.stall_timeout_s, cfg.connect_timeout_s):
        checks.run("ranks", lambda: _ranks(cfg))
        checks.run("clocks", _clocks)
        if world_size > 1:
            checks.run("network", _network)
        if (planned := plan) and (found := shards):
            checks.run("memory", lambda: _fits(cfg, planned))
            writable = checks.run("run folder", lambda: _folder(cfg, planned, found))
            if writable and not {"memory", "shards"} & {*checks.failed}:
                _rehearse(cfg, planned, found, checks)
    if checks.failed:
        raise BadInput(f"the run cannot start as it is: {', '.join(checks.failed)}")
    if checks.rank == 0:
        print(f"ready: {cfg.run_name} can start")


def _account(cfg: TrainConfig) -> str:
    check_account(cfg)
    return "W&B has a key" if cfg.loggers.wandb and cfg.loggers.wandb.mode == "online" else "none is needed"


def _shards(cfg: TrainConfig, shards: ShardsInfo | None, verify_all: bool) -> str:
    """Rank 0's answer: sizes and index of all files, hashes of a few; or everything."""
    assert shards
    if world().local_rank:
        return ""
    from recipes.dataloading.mds_reader import open_shards

    if verify_all and not cfg.data.remote:
        verification.verify(shards.folder)
        return "every file hashed, every token counted"
    looked_at = 0
    for split in shards.counts:
        found = open_shards(shards, split, cfg.data.remote)
        for shard in {found[0], found[len(found) // 2], found[-1]}:
            shard.prepare()
            looked_at += 1
    return f"{looked_at} of them read and hashed; --verify-all reads all"


def _ranks(cfg: TrainConfig) -> str:
    """Versions, commit and configuration were compared when the ranks met; hardware is here."""
    import torch
    import torch.version

    from recipes.training.device_check import loaded_driver

    gpu = torch.cuda.is_available() and cfg.device != "cpu"
    device = torch.cuda.current_device() if gpu else None
    properties = torch.cuda.get_device_properties(device) if gpu else None
    mine = (properties.name, properties.total_memory) if properties else ("CPU", 0)
    capability = f", compute capability {dotted((properties.major, properties.minor))}" if properties else ""
    kinds = _gathered(mine)
    if len(set(kinds)) > 1:
        told = {kind: [rank for rank, other in enumerate(kinds) if other == kind] for kind in set(kinds)}
        raise BadInput(f"ranks differ: {', '.join(f'{name} on ranks {ranks}' for (name, _), ranks in told.items())}")
    memory = f" of {gigabytes(mine[1])}" if mine[1] else ""
    cuda = f", CUDA {torch.version.cuda}, driver {loaded_driver() or 'unknown'}" if gpu else ""
    return (
        f"{len(kinds)} × {mine[0]}{memory}{capability}, torch {torch.__version__}{cuda}; "
        "commit, versions, configuration alike"
    )


def _clocks() -> str:
    """How far the hosts' clocks lie apart, by what each says right after a barrier."""
    if world().size == 1:
        return "one rank"
    from composer.utils import dist

    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        rounds.append(dist.all_gather_object(time.time()))
    return judge_clocks(rounds)


def judge_clocks(rounds: Sequence[Sequence[float]]) -> str:
    """How far clocks lie apart.

    Args:
        rounds: what each rank's clock said at about the same moment, several times.

    Raises:
        BadInput: they lie further apart than logs and object stores bear.
    """
    ahead = [[said - one[0] for said in one] for one in rounds]
    offsets = [statistics.median(of_rank) for of_rank in zip(*ahead, strict=True)]
    unsure_s = max(max(of_rank) - min(of_rank) for of_rank in zip(*ahead, strict=True)) / 2
    apart_s = max(offsets) - min(offsets)
    told = f"{apart_s:.3f} s apart, ± {unsure_s:.3f} s"
    if apart_s > CLOCKS_APART_S + unsure_s:
        rank = max(range(len(offsets)), key=lambda n: abs(offsets[n]))
        raise BadInput(f"{told}: rank {rank}'s is {offsets[rank]:+.0f} s off rank 0's; set it by NTP")
    return told


def _network() -> str:
    """All-reduce and all-gather of three sizes, in GB/s of bus bandwidth: what each link carried."""
    import torch
    import torch.distributed as distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    ranks, told = distributed.get_world_size(), []
    for size_bytes in MESSAGE_BYTES:
        values = torch.ones(size_bytes // 4 // ranks * ranks, device=device)
        part = values.chunk(ranks)[0].clone()
        whole = torch.empty_like(values)
        reduce_s = _median_s(lambda values=values: distributed.all_reduce(values), device)
        gather_s = _median_s(lambda whole=whole, part=part: distributed.all_gather_into_tensor(whole, part), device)
        sent = values.nbytes * (ranks - 1) / ranks / 1e9
        told.append(f"{size_bytes >> 20} MiB {2 * sent / reduce_s:.2f}/{sent / gather_s:.2f}")
    return f"all-reduce/all-gather GB/s: {', '.join(told)}"


def _median_s(action: Callable[[], object], device: str) -> float:
    import torch

    times = []
    for _ in range(ROUNDS + 1):
        start_s = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times[1:])  # the first connects


def _fits(cfg: TrainConfig, plan: Plan) -> str:
    """Planned memory against this rank's GPU, or what this machine has left."""
    import torch

    layout = Layout.of(cfg, plan.world_size)
    if torch.cuda.is_available() and cfg.device != "cpu":
        needed = needed_bytes(cfg, plan, layout, plan.device_train_microbatch_size)
        has, where = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory, "the GPU"
    else:
        needed = planned_bytes(cfg, plan) * world().local_size
        has, where = _available_bytes(), "this machine"
    if needed > has:
        raise BadInput(
            f"the plan is {gigabytes(needed)}, and {where} has {gigabytes(has)}, {gigabytes(needed - has)} too little; "
            "make plan GPU=… says which microbatch, sharding or checkpointing would fit"
        )
    return f"{gigabytes(needed)} planned, {where} has {gigabytes(has)}"


def planned_bytes(cfg: TrainConfig, plan: Plan) -> int:
    """The tensors of a rank at the fullest moment of a step."""
    import torch

    gpu = torch.cuda.is_available() and cfg.device != "cpu"
    moments = step_memory(
        cfg,
        Layout.of(cfg, plan.world_size),
        plan.device_train_microbatch_size,
        accumulates=plan.grad_accumulation > 1,
        device="gpu" if gpu else "cpu",
    )
    return peak(moments).total_bytes


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise BadInput("/proc/meminfo does not say what is available")


def _folder(cfg: TrainConfig, plan: Plan, shards: ShardsInfo) -> str:
    """No other run there; a file written, flushed and renamed; room for the checkpoints; the remote."""
    folder, rank = Path(cfg.run_dir), world().rank
    check_fingerprint(folder, pretraining_fingerprint(cfg, plan, shards), cfg.resume.allow)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    one, other = (existing / f".preflight-{os.getpid()}-{rank}{end}" for end in ("", ".there"))
    try:
        with one.open("wb") as file:
            file.write(b"preflight")
            file.flush()
            os.fsync(file.fileno())
        one.rename(other)
        other.unlink()
    except OSError as error:
        raise BadInput(f"run_dir = {folder}: cannot write in {existing}: {error.strerror}") from None
    free, wanted = shutil.disk_usage(existing).free, plan.checkpoint_bytes * plan.checkpoints
    if free < wanted:
        raise BadInput(
            f"{existing} has {gigabytes(free)} free, and {plan.checkpoints} checkpoints take {gigabytes(wanted)}; free "
            "some space, keep fewer (save_num_checkpoints_to_keep), or put run_dir=… elsewhere"
        )
    told = f"writable, {gigabytes(free)} free, {plan.checkpoints} checkpoints take {gigabytes(wanted)}"
    if cfg.save_remote and rank == 0:
        from data_prep.files.object_store import Store

        store = Store(f"{cfg.save_remote.rstrip('/')}/{cfg.run_name}", "save_remote")
        store.check_writable()
        told += f"; {cfg.save_remote} takes files"
    return told


def _rehearse(cfg: TrainConfig, plan: Plan, shards: ShardsInfo, checks: Checks) -> None:
    """A few batches of the real run, a checkpoint, and the last batch once more from it."""
    import torch

    from recipes.distributed.rank_zero import on_rank_zero
    from recipes.training.trainer import give_memory_back
    from recipes.trials.rehearsal import Rehearsal

    folder = Path(f"{cfg.run_dir}.preflight")
    tried = rehearsal_config(cfg, folder)
    short = make_plan(tried, plan.world_size, shards, plan.ranks_per_node)
    first, second = Rehearsal(SAVED_AT), Rehearsal(SAVED_AT)
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
    from recipes.checkpointing.checkpoint import complete_checkpoints, remove, saved_at

    for checkpoint in complete_checkpoints(folder / CHECKPOINTS):
        if saved_at(checkpoint)["batch"] > SAVED_AT:
            remove(checkpoint)
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, "finished": False})


def _speed(plan: Plan, rehearsal: Any) -> str:
    """Step time of all ranks, and of the slowest."""
    import torch

    steps_s = _gathered(rehearsal.step_s)
    median_s = statistics.median(steps_s)
    tokens_per_s = plan.tokens_per_batch / max(steps_s)
    told = f"{max(steps_s):.3f} s a batch, {tokens_per_s:,.0f} tokens/s, {plan.tokens / tokens_per_s / 86400:.3g} days"
    if torch.cuda.is_available() and (known := CUDA_NAMES.get(torch.cuda.get_device_name())):
        peak_flops = GPUS[known].bf16_flops * plan.world_size
        told += f", MFU {tokens_per_s * plan.flops_per_token / peak_flops:.1%} of {known}'s bf16 peak"
    slow = [rank for rank, s in enumerate(steps_s) if s > STRAGGLER * median_s]
    if slow:
        told += f"; slower than the others: ranks {slow} ({max(steps_s) / median_s:.2f} of the median)"
    return told

"""The checks of preflight, on the ranks of the run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.world import world
from data_prep.sharding import verification
from data_prep.sharding.shard_format import ShardsInfo
from recipes.checkpointing.origin import check_tokens, origin_sha256
from recipes.config.schema import TrainConfig
from recipes.config.wandb_account import check_account
from recipes.distributed.hang_detector import watching_the_start
from recipes.planning.mixing import shard_folders
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import Plan, check_shards, make_plan
from recipes.runs.fingerprint import check_fingerprint, pretraining_fingerprint
from recipes.training.pretraining import fetch_manifests, ranks_per_node
from recipes.trials.check_runner import Checks
from recipes.trials.machine_checks import check_clocks, check_network, check_ranks
from recipes.trials.memory_check import check_memory


def run_checks(cfg: TrainConfig, verify_all: bool) -> None:
    """Run all checks of a configuration. All ranks must call it.

    Raises:
        BadInput: a check failed; the details were printed.
    """
    world_size, checks = world().size, Checks()
    plan: Plan | None = None
    shards: ShardsInfo | None = None

    def data() -> str:
        nonlocal shards, plan
        fetch_manifests(cfg)
        shards = check_shards(cfg)
        check_tokens(cfg, shards)
        plan = make_plan(cfg, world_size, shards, ranks_per_node())
        passes = f"{plan.passes:.2f} passes of {plan.train_tokens:,} tokens"
        return f"{plan.batches:,} batches on {world_size} ranks, {passes}; tokenizer and shards match"

    # These checks come before the ranks connect, which needs torch.
    usable = checks.run("data", data)
    checks.run("account", lambda: _account(cfg))
    if usable:
        checks.run("shards", lambda: _shards(cfg, shards, verify_all))
    from recipes.training.trainer import connect

    connect(cfg)  # raises an error for a GPU that torch cannot use, and for ranks that differ or cannot be reached
    with watching_the_start(Path(cfg.run_dir), cfg.stall_timeout_s, cfg.connect_timeout_s):
        checks.run("ranks", lambda: check_ranks(cfg))
        checks.run("clocks", check_clocks)
        if world_size > 1:
            checks.run("network", check_network)
        if (planned := plan) and (read := shards):
            checks.run("memory", lambda: check_memory(cfg, planned))
            writable = checks.run("run folder", lambda: _folder(cfg, planned, read))
            if writable and not {"memory", "shards"} & {*checks.failed}:
                from recipes.trials.rehearsal import rehearse

                rehearse(cfg, planned, read, checks)
    if checks.failed:
        raise BadInput(f"the run cannot start; failed checks: {', '.join(checks.failed)}")
    if checks.rank == 0:
        print(f"ready: {cfg.run_name} can start")


def _account(cfg: TrainConfig) -> str:
    check_account(cfg, resumed=False)
    return "W&B accepts the key" if cfg.loggers.wandb and cfg.loggers.wandb.mode == "online" else "none is needed"


def _shards(cfg: TrainConfig, shards: ShardsInfo | None, verify_all: bool) -> str:
    """Read and hash a few shards of each split, or with `verify_all` everything, on the first rank of each node."""
    assert shards
    if world().local_rank:
        return ""
    from recipes.dataloading.mds_reader import open_shards

    folders, looked_at = shard_folders(cfg, shards), 0
    for folder in folders:
        if verify_all and not folder.remote:
            verification.verify(folder.info.folder)
            continue
        for split in folder.info.counts:
            opened = open_shards(folder.info, split, folder.remote, f"{folder.key}.remote")
            for shard in {opened[0], opened[len(opened) // 2], opened[-1]}:
                shard.prepare()
                looked_at += 1
    every = "all files hashed, all tokens counted"
    if verify_all and not looked_at:
        return every
    text = f"{looked_at} shards read and hashed; "
    whole = [str(folder.info.folder) for folder in folders if verify_all and not folder.remote]
    return text + (f"{', '.join(whole)}: {every}" if whole else "--verify-all reads all")


def _folder(cfg: TrainConfig, plan: Plan, shards: ShardsInfo) -> str:
    """Check the run folder: it holds no other run, is writable, has space for the checkpoints; and check the remote."""
    folder, rank = Path(cfg.run_dir), world().rank
    check_fingerprint(folder, pretraining_fingerprint(cfg, plan, shards, origin_sha256(cfg)), cfg.resume.allow)
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
            f"{existing} has {gigabytes(free)} free, but {plan.checkpoints} checkpoints take {gigabytes(wanted)}; free "
            "some space, keep fewer (save_num_checkpoints_to_keep), or set run_dir=… to a folder on another disk"
        )
    text = f"writable, {gigabytes(free)} free, {plan.checkpoints} checkpoints take {gigabytes(wanted)}"
    if cfg.save_remote and rank == 0:
        from data_prep.files.object_store import Store

        store = Store(f"{cfg.save_remote.rstrip('/')}/{cfg.run_name}", "save_remote")
        store.check_writable()
        text += f"; {cfg.save_remote} is writable"
    return text

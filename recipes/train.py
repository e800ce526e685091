"""Train: one configuration in, one run folder out. Typing the same command again goes on where the run stopped.

composer recipes/train.py yamls/biomedlm-2.7b.yaml                       # all GPUs of a node
python recipes/train.py yamls/smoke-cpu.yaml run_name=mine seed=18       # one process, two values changed
python recipes/train.py yamls/biomedlm-2.7b.yaml --dry-run               # print the configuration and plan, stop
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shard_format import ShardsInfo
from data_prep.stage import MANIFEST, BadInput, run
from recipes import run_folder
from recipes.config import TrainConfig, batches_of, load_config, to_yaml
from recipes.exit_codes import leave_at_once_when_preempted, leave_with_the_launcher
from recipes.plan import RANKS_PER_NODE, Plan, check_shards, format_plan, make_plan

if TYPE_CHECKING:
    from composer import Trainer


def main(cfg: TrainConfig) -> Trainer | None:
    """Train `cfg`; the Trainer, or None if its run folder already holds the finished run.

    Raises:
        BadInput: the shards, tokenizer or run folder do not fit the configuration.
        Unavailable: the remote of its checkpoints does not answer.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if cfg.data.remote:
        from recipes.shard_reader import fetch_manifest  # imports the clients of object stores, and torch

        fetch_manifest(Path(cfg.data.shards), cfg.data.remote)
    shards = check_shards(cfg)
    plan = make_plan(cfg, world_size, shards, ranks_per_node())
    folder = Path(cfg.run_dir)
    if rank == 0:
        print(format_plan(plan, cfg), flush=True)
    record = run_folder.check_identity(folder, run_folder.identity(cfg, plan, shards), cfg.resume.allow)
    if record and record["finished"]:
        print(f"{folder} is finished: nothing to do")
        return None
    run_folder.check_space(folder, plan)
    connect(cfg)
    with run_folder.held_by_rank_zero(folder):
        while (trainer := fit(cfg, plan, shards)) is None:  # the loss spiked: again, from before it, around its data
            leave_at_once_when_preempted()  # nothing is to be saved before the next fit
            gc.collect()  # the model, its optimizer and the loaders' workers
    return trainer


def ranks_per_node() -> int:
    """Ranks on a node: the launcher's number if it started several nodes, else as many as a node usually holds."""
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    several = local_world_size < int(os.environ.get("WORLD_SIZE", "1"))
    return local_world_size if several else max(RANKS_PER_NODE, local_world_size)


def connect(cfg: TrainConfig) -> None:
    """Join the other ranks.

    Raises:
        BadInput: a precision that this device lacks.
    """
    from composer.utils import dist, get_device

    from recipes.cpu import keep_freed_memory, repair_gloo_gradient_average, repair_hybrid_sharding

    leave_at_once_when_preempted()  # Composer has installed a handler of its own
    device = get_device(cfg.device)
    if device.name == "cpu" and cfg.precision != "fp32":
        raise BadInput(f"precision = {cfg.precision!r}, but no GPU was found, and Composer trains a CPU in fp32 only")
    dist.initialize_dist(device, cfg.dist_timeout_s)
    if device.name == "cpu":
        keep_freed_memory()
        repair_gloo_gradient_average()
        if cfg.fsdp and cfg.fsdp.data_parallel_replicate_degree > 1:
            repair_hybrid_sharding()


def fit(cfg: TrainConfig, plan: Plan, shards: ShardsInfo) -> Trainer | None:
    """Assemble model, data, optimizer, schedule, callbacks and loggers; run; return the Trainer.

    Returns:
        None if the loss spiked and the run is to be started again: its ledger now says what to leave out.
    """
    # Here, not above: these take seconds, and --help, --dry-run and a mistyped key should not.
    import torch
    from composer import Trainer
    from composer.algorithms import GradientClipping
    from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
    from composer.utils import dist, get_device

    from callbacks import (
        CheckpointWriter,
        LanguageMetrics,
        ParityGate,
        Preemption,
        RestoreRNG,
        Rewind,
        SampleFingerprint,
        SpikeGuard,
        StallWatch,
    )
    from recipes.data import build_dataloader
    from recipes.model import BioMedLM, checkpoint_activations
    from recipes.parallel import parallelism_config
    from recipes.ranks import on_rank_zero
    from recipes.remote import RemoteRun
    from recipes.resume import find_start
    from recipes.safe_loading import guard_composer_loading

    folder = Path(cfg.run_dir)
    identity = run_folder.identity(cfg, plan, shards)
    remote = RemoteRun(cfg.save_remote, cfg.run_name) if cfg.save_remote else None
    start = find_start(folder, cfg, identity, remote)
    on_rank_zero(lambda: run_folder.open_run(folder, cfg, plan, shards))
    run_folder.check_seen_by_all(folder)
    guard_composer_loading()

    # Every rank draws the same weights from the seed. With FSDP only rank 0 does, and hands out the shards: the others
    # build the model without memory.
    fsdp = None
    if cfg.fsdp and start.sharded:
        fsdp = parallelism_config(cfg.fsdp, cfg.activation_checkpointing, get_device(cfg.device).name)
    torch.manual_seed(cfg.seed)
    with torch.device("meta" if fsdp and dist.get_global_rank() != 0 else "cpu"):
        model = BioMedLM(cfg.model, shards.eos_token_id, draw_weights=start.load_path is None)
    if cfg.activation_checkpointing and not fsdp:
        checkpoint_activations(model)

    optimizer = DecoupledAdamW(
        model.parameters(),
        lr=cfg.optimizer.lr,
        betas=(cfg.optimizer.betas[0], cfg.optimizer.betas[1]),
        eps=cfg.optimizer.eps,
        weight_decay=cfg.optimizer.weight_decay,
    )
    scheduler = CosineAnnealingWithWarmupScheduler(t_warmup=cfg.scheduler.t_warmup, alpha_f=cfg.scheduler.alpha_f)
    clip = cfg.gradient_clipping_norm
    writer = CheckpointWriter(
        folder=folder / run_folder.CHECKPOINTS,
        interval_batches=batches_of(cfg.save_interval),
        keep=cfg.save_num_checkpoints_to_keep,
        permanent_interval_batches=batches_of(permanent) if (permanent := cfg.save_permanent_interval) else None,
        batches=plan.batches,
        identity=identity,
        stop_on_error=cfg.on_save_error == "stop",
        remote=remote,
    )
    rng = RestoreRNG()
    callbacks = [ParityGate(), rng, LanguageMetrics(shards.counts["val"].bytes_per_token), SampleFingerprint()]
    callbacks += build_callbacks(cfg)
    if cfg.callbacks.spike_guard:
        # Before the writer: what is in a spike is not saved.
        callbacks.append(SpikeGuard(**asdict(cfg.callbacks.spike_guard), folder=folder, writer=writer))
    callbacks += [writer, Preemption(writer)]  # in this order: what is due is saved before the run is left
    if cfg.stall_timeout_s:
        callbacks.append(StallWatch(folder, cfg.stall_timeout_s))
    trainer = Trainer(
        model=model,
        optimizers=optimizer,
        schedulers=scheduler,
        step_schedulers_every_batch=True,
        algorithms=[GradientClipping("norm", clip)] if clip else None,
        train_dataloader=build_dataloader(cfg, "train", plan.world_size, start.skipped),
        eval_dataloader=build_dataloader(cfg, "val", plan.world_size),
        eval_interval=cfg.eval_interval,
        eval_subset_num_batches=cfg.eval_subset_num_batches,
        max_duration=f"{plan.batches}ba",
        device_train_microbatch_size=plan.device_train_microbatch_size,
        precision=cfg.precision,
        device=cfg.device,
        parallelism_config=fsdp,
        seed=cfg.seed,
        dist_timeout=cfg.dist_timeout_s,
        callbacks=callbacks,
        loggers=build_loggers(cfg, plan, folder),
        progress_bar=cfg.progress_bar and sys.stderr.isatty(),
        run_name=cfg.run_name,
        load_path=start.load_path,
        load_ignore_keys=start.ignore_absent_callbacks,
    )
    rng.rng = trainer._rng_state
    trainer._rng_state = None
    start.close()
    try:
        if trainer.state.timestamp.batch < plan.batches:  # not if it was stopped between its last save and its end
            trainer.fit()
    except Rewind:
        trainer.close()
        return None
    trainer.close()  # flushes the loggers
    writer.finish()
    on_rank_zero(lambda: run_folder.finish_run(folder, remote.put if remote else None))
    return trainer


def build_callbacks(cfg: TrainConfig) -> list[Any]:
    """The callbacks that the YAML asks for by Composer's names."""
    from callbacks import CALLBACKS

    chosen = {name: getattr(cfg.callbacks, name) for name in CALLBACKS}
    return [CALLBACKS[name](**asdict(arguments)) for name, arguments in chosen.items() if arguments is not None]


def build_loggers(cfg: TrainConfig, plan: Plan, folder: Path) -> list[Any]:
    """metrics.jsonl always; console lines and W&B if the YAML asks for them."""
    from callbacks import Console, MetricsFile

    loggers: list[Any] = [MetricsFile(folder / run_folder.METRICS)]
    if cfg.callbacks.console:
        loggers.append(Console(batches_of(cfg.callbacks.console.interval), plan.batches))
    if cfg.loggers.wandb:
        from composer.loggers import WandBLogger

        arguments = asdict(cfg.loggers.wandb)
        mode = arguments.pop("mode")
        # Its console capture would swallow ours; its closing table repeats metrics.jsonl; online, its link is wanted.
        settings = {"console": "off", "silent": mode == "offline"}
        loggers.append(WandBLogger(**arguments, init_kwargs={"mode": mode, "dir": str(folder), "settings": settings}))
    return loggers


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train, or print what would be done."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("yaml", help="configuration, such as yamls/smoke-cpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as optimizer.lr=2e-4")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, and stop")
    arguments = parser.parse_intermixed_args(argv)
    leave_at_once_when_preempted()
    leave_with_the_launcher()
    cfg = load_config(arguments.yaml, arguments.overrides)
    if not arguments.dry_run:
        main(cfg)
        return
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    print(to_yaml(cfg))
    print(format_plan(make_plan(cfg, int(os.environ.get("WORLD_SIZE", cfg.world_size)), shards), cfg))


if __name__ == "__main__":
    run(command_line)

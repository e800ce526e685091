"""Pre-training: assemble model, data and schedule, and train to the end; rewind after a loss spike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.world import world
from data_prep.sharding.shard_format import ShardsInfo
from recipes.checkpointing.origin import begin_with, check_tokens, origin_facts, origin_sha256
from recipes.config.schema import TrainConfig
from recipes.config.wandb_account import check_account
from recipes.distributed.hang_detector import watching_the_start
from recipes.modeling.model_config import CONFIG_JSON
from recipes.modeling.tokenizer_folder import TOKENIZER_FILES
from recipes.planning.mixing import ShardFolder, section_of, shard_folders
from recipes.planning.plan_text import format_plan
from recipes.planning.run_plan import RANKS_PER_NODE, Plan, check_shards, make_plan
from recipes.runs.fingerprint import check_fingerprint, pretraining_fingerprint
from recipes.runs.folder import check_space, finish_run, is_finished, pretraining_facts
from recipes.runs.lock import held_by_rank_zero
from recipes.runs.names import COMPILED, RECORD
from recipes.runs.signals import leave_at_once_when_told

if TYPE_CHECKING:
    from composer import Callback, Trainer

    from recipes.modeling.gpt2 import BioMedLM
    from recipes.modeling.token_loss import TokenSources
    from recipes.training.prepared_run import PreparedRun


def train(cfg: TrainConfig) -> Trainer | None:
    """Train a model. Return the Trainer, or None if the run folder already holds the finished run.

    Raises:
        BadInput: the shards, tokenizer or run folder do not fit the configuration, or W&B refuses the run.
        Unavailable: the remote of the checkpoints does not answer.
    """
    folder = Path(cfg.run_dir)
    check_account(cfg, resumed=(folder / RECORD).is_file())
    fetch_manifests(cfg)
    shards = check_shards(cfg)
    check_tokens(cfg, shards)
    plan = make_plan(cfg, world().size, shards, ranks_per_node())
    if world().rank == 0:
        print(format_plan(plan, cfg), flush=True)
    wanted = pretraining_fingerprint(cfg, plan, shards, origin_sha256(cfg))
    if is_finished(folder, check_fingerprint(folder, wanted, cfg.resume.allow), wanted):
        print(f"{folder} is finished: nothing to do")
        return None
    check_space(folder, plan)
    from recipes.training.trainer import connect, give_memory_back

    connect(cfg)
    watching = partial(watching_the_start, folder, cfg.stall_timeout_s, cfg.connect_timeout_s)
    with watching(), held_by_rank_zero(folder):
        while True:
            with watching():
                trainer = fit(cfg, plan, shards)
            if trainer:
                return trainer
            # After a loss spike: train again, from an earlier checkpoint and without the data of the spike.
            leave_at_once_when_told()  # there is nothing to save before the next fit
            give_memory_back()  # frees model and optimizer, and ends the workers of the loaders


def fetch_manifests(cfg: TrainConfig) -> None:
    """Fetch the manifests of all shards that have a remote.

    Raises:
        BadInput: a manifest cannot be fetched.
    """
    mix = {section_of(name): (of.shards, of.remote) for name, of in (cfg.data.mix or {}).items()}
    for key, (shards, remote) in {"data": (cfg.data.shards, cfg.data.remote), **mix}.items():
        if remote:
            from recipes.dataloading.mds_reader import fetch_manifest  # imports the clients of object stores, and torch

            fetch_manifest(Path(shards), remote, f"{key}.remote")


def ranks_per_node() -> int:
    """Ranks of a node: the launcher's number if there are several nodes, otherwise the number that is usual."""
    ranks = world()
    return ranks.local_size if ranks.local_size < ranks.size else max(RANKS_PER_NODE, ranks.local_size)


def fit(cfg: TrainConfig, plan: Plan, shards: ShardsInfo, watching: Sequence[Callback] = ()) -> Trainer | None:
    """Assemble model, data and schedule, and train.

    Args:
        cfg: configuration of the run.
        plan: plan made from the configuration.
        shards: token shards of `data.shards`.
        watching: further callbacks, in addition to those of the configuration.

    Returns:
        The Trainer; None if the loss spiked and the run must be restarted. Then skipped.jsonl lists the data to skip.
    """
    # These imports take seconds, which --help, --dry-run and a mistyped key should not wait for.
    from recipes.checkpointing.remote import RemoteRun
    from recipes.checkpointing.resume import find_start
    from recipes.dataloading.loader import build_dataloader
    from recipes.distributed.rank_zero import on_rank_zero
    from recipes.modeling.speedups import attention_backend, check_attention_backend
    from recipes.modeling.token_loss import read_token_sources
    from recipes.training.prepared_run import prepare_run
    from recipes.training.schedules import SCHEDULES
    from recipes.training.trainer import TrainingParts, run_trainer

    check_attention_backend(cfg.kernels, cfg.model, cfg.precision)
    remote = RemoteRun(cfg.save_remote, cfg.run_name) if cfg.save_remote else None
    fingerprint = pretraining_fingerprint(cfg, plan, shards, origin_sha256(cfg))
    folders = shard_folders(cfg, shards)
    facts = {**pretraining_facts(plan, folders), **origin_facts(cfg)}
    tokenizer = partial(shutil.copytree, cfg.data.tokenizer, ignore=_all_but_the_tokenizer)
    start = find_start(Path(cfg.run_dir), cfg, fingerprint, remote)
    prepared = prepare_run(cfg, start, fingerprint, facts, tokenizer, plan.world_size, remote)
    sources = read_token_sources(shards.folder / "val", shards.seq_len)
    model = build_model(cfg, folders, sources, prepared)
    mixed = {of.eval_label: build_dataloader(cfg, "val", plan.world_size, mixed=of.name) for of in folders if of.name}
    parts = TrainingParts(
        model=model,
        scheduler=SCHEDULES[cfg.scheduler.name](cfg.scheduler),
        train_dataloader=build_dataloader(cfg, "train", plan.world_size, start.skipped),
        eval_dataloader=build_dataloader(cfg, "val", plan.world_size, sources=sources),
        batches=plan.batches,
        device_train_microbatch_size=plan.device_train_microbatch_size,
        folders=folders,
        sources=sources,
        mixed_eval_dataloaders=mixed,
        watching=watching,
    )
    with attention_backend(cfg.kernels):
        trainer = run_trainer(cfg, prepared, parts)
    if trainer:
        on_rank_zero(lambda: finish_run(Path(cfg.run_dir), remote.put if remote else None))
    return trainer


def _all_but_the_tokenizer(folder: str, names: list[str]) -> set[str]:
    """Files that are not copied into the run folder if `data.tokenizer` is a model folder, such as its weights."""
    return {*names} - {*TOKENIZER_FILES} if CONFIG_JSON in names else set()


def build_model(
    cfg: TrainConfig, folders: Sequence[ShardFolder], sources: TokenSources | None, prepared: PreparedRun
) -> BioMedLM:
    """Build the model to train: draw its weights, compile its blocks or make them recompute their activations.

    Every rank draws the same weights from the seed. With FSDP only rank 0 draws them and sends out the shards; the
    other ranks build the model on the meta device.
    """
    import torch
    from composer.utils import dist

    from recipes.modeling.gpt2 import BioMedLM, checkpoint_activations
    from recipes.modeling.speedups import compile_blocks

    begins, drawn_elsewhere = prepared.start.load_path is None, bool(prepared.fsdp) and dist.get_global_rank() != 0
    torch.manual_seed(cfg.seed)
    with torch.device("meta" if drawn_elsewhere else "cpu"):
        model = BioMedLM(
            cfg.model,
            folders[0].info.eos_token_id,
            cfg.kernels,
            cfg.activation_checkpointing_blocks,
            draw_weights=begins and cfg.init_from is None,
            eval_samples=max(folder.info.counts["val"].samples for folder in folders),
            eval_sources=sources.names if sources else (),
        )
    if cfg.init_from is not None and begins and not drawn_elsewhere:
        difference = begin_with(model.model, cfg)
        if dist.get_global_rank() == 0:
            print(
                f"training starts from {cfg.init_from}: same logits within {difference:.1e} of the largest",
                flush=True,
            )
    if cfg.kernels.compile:
        compile_blocks(model.model, Path(cfg.run_dir) / COMPILED)
    if cfg.activation_checkpointing and not prepared.fsdp:
        checkpoint_activations(model)
    return model

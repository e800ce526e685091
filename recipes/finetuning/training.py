"""Fine-tuning: train a model, export it, and score it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.files import JsonDict, read_json, write_json, write_text
from data_prep.common.world import world
from data_prep.tasks.description import describe
from data_prep.tasks.registry import load
from data_prep.tasks.task_set import Splits, TaskSet
from recipes.checkpointing.trained_model import Source, find_source
from recipes.config.loading import to_yaml
from recipes.config.schema import FinetuneConfig
from recipes.config.wandb_account import check_account
from recipes.distributed.hang_detector import watching_the_start
from recipes.finetuning.data import build_task_dataloader, encode, encoded_sha256, load_tokenizer
from recipes.finetuning.kind import Encoder
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.names import SCORES
from recipes.finetuning.planning import (
    FinetunePlan,
    architecture,
    finetuning_fingerprint,
    format_finetune_plan,
    make_finetune_plan,
    splits,
)
from recipes.finetuning.release import build_model, export
from recipes.finetuning.scoring import score
from recipes.finetuning.task_head import TaskHead
from recipes.runs.fingerprint import changes, check_fingerprint
from recipes.runs.folder import finish_run, is_finished
from recipes.runs.lock import held_by_rank_zero, running
from recipes.runs.names import CONFIG, RECORD

if TYPE_CHECKING:
    from recipes.checkpointing.remote import RemoteRun


def finetune(cfg: FinetuneConfig) -> bool:
    """Fine-tune a model. Return False if the run folder already holds the finished run, otherwise True.

    Raises:
        BadInput: the model, the set or the run folder does not fit the configuration, or W&B refuses the run.
    """
    folder = Path(cfg.run_dir)
    check_account(cfg, resumed=(folder / RECORD).is_file())
    ranks = world()
    task, source = load(cfg.task, Path(cfg.data)), find_source(Path(cfg.model), None)
    parts = splits(task)
    plan = make_finetune_plan(cfg, architecture(source), task, len(parts["train"]), ranks.size)
    if ranks.rank == 0:
        print(f"{describe(task)}\n{format_finetune_plan(plan, cfg)}", flush=True)
    wanted = finetuning_fingerprint(cfg, plan, task, source)
    record = check_fingerprint(folder, wanted, cfg.resume.allow)
    if record and is_finished(folder, record, wanted):
        if ranks.rank == 0:
            _score_again(cfg, parts, record, wanted)
        return False
    from recipes.training.trainer import connect

    connect(cfg)
    watching = watching_the_start(folder, cfg.stall_timeout_s, cfg.connect_timeout_s)
    with watching, held_by_rank_zero(folder):
        fit(cfg, plan, task, parts, source, wanted)
    return True


def _score_again(cfg: FinetuneConfig, parts: Splits, record: JsonDict, wanted: JsonDict) -> None:
    """Score the splits of a finished run that are not scored yet; or all, if settings of generation have changed."""
    folder = Path(cfg.run_dir)
    scored = read_json(folder / SCORES)["scores"]
    due = tuple(split for split in ("dev", "test") if split in scored or (split == "test" and cfg.score_test))
    if changed := changes(record["identity"], wanted):
        print("scoring again with", "; ".join(changed), flush=True)
    else:
        due = tuple(split for split in due if split not in scored)
    if not due:
        print(f"{folder} is finished: nothing to do")
        return
    with running(folder):
        score(cfg, parts, due)
        write_text(folder / CONFIG, to_yaml(cfg))
        write_json(folder / RECORD, {**record, "identity": record["identity"] | wanted})


def fit(
    cfg: FinetuneConfig, plan: FinetunePlan, task: TaskSet, parts: Splits, source: Source, wanted: JsonDict
) -> None:
    """Train, export, and score dev and test. Each step frees its memory before the next one."""
    from recipes.checkpointing.remote import RemoteRun
    from recipes.distributed.rank_zero import on_rank_zero
    from recipes.training.trainer import give_memory_back

    kind = KINDS[task.kind]
    head = TaskHead(task.name, task.kind, kind.labels(task), cfg.seq_len)
    encoder = Encoder(load_tokenizer(source, kind), kind, cfg.seq_len, head.labels)
    remote = RemoteRun(cfg.save_remote, cfg.run_name) if cfg.save_remote else None
    train(cfg, plan, parts, source, wanted, head, encoder, remote)
    give_memory_back()
    on_rank_zero(lambda: export(cfg, source, head, encoder, parts))
    give_memory_back()
    on_rank_zero(lambda: score(cfg, parts, ("dev", "test") if cfg.score_test else ("dev",)))
    on_rank_zero(lambda: finish_run(Path(cfg.run_dir), remote.put if remote else None))


def train(
    cfg: FinetuneConfig, plan: FinetunePlan, parts: Splits, source: Source, wanted: JsonDict, head: TaskHead,
    encoder: Encoder, remote: RemoteRun | None,
) -> None:  # fmt: skip
    """Assemble model, data and schedule, and train. The result is the newest checkpoint in the run folder.

    The function returns nothing, so that model, gradients, moments and Trainer are freed with its variables.
    """
    from composer.optim import LinearWithWarmupScheduler

    from recipes.checkpointing.resume import find_start
    from recipes.modeling.gpt2 import is_block
    from recipes.training.prepared_run import prepare_run
    from recipes.training.trainer import TrainingParts, run_trainer

    tokenizer = encoder.tokenizer
    encoded = {split: encode(encoder, parts[split], split) for split in ("train", "dev")}
    wanted = {**wanted, "encoded_sha256": encoded_sha256(*encoded.values())}
    check_fingerprint(Path(cfg.run_dir), wanted, cfg.resume.allow)  # again, now with the hash of the encoded examples
    counts = {split: len(examples) for split, examples in parts.items()}
    facts = {"plan": asdict(plan), "data": counts, "loss_unit": encoder.kind.loss_unit}
    start = find_start(Path(cfg.run_dir), cfg, wanted, remote)
    write_tokenizer = partial(tokenizer.save_pretrained, save_jinja_files=False)
    prepared = prepare_run(cfg, start, wanted, facts, write_tokenizer, plan.world_size, remote)
    model, _ = build_model(cfg, source, head, len(tokenizer))
    if cfg.activation_checkpointing and not prepared.fsdp:
        from composer.distributed.activation_checkpointing import apply_ac

        apply_ac(model, activation_checkpointing=True, activation_cpu_offload=False, check_fn=is_block)
    loader = partial(build_task_dataloader, encoder=encoder, world_size=plan.world_size)
    device_batch_size = cfg.global_train_batch_size // plan.world_size
    run_trainer(
        cfg,
        prepared,
        TrainingParts(
            model=model,
            scheduler=LinearWithWarmupScheduler(t_warmup=f"{cfg.warmup_share}dur"),
            train_dataloader=loader(encoded["train"], batch_size=device_batch_size, seed=cfg.seed),
            eval_dataloader=loader(encoded["dev"], batch_size=cfg.device_eval_batch_size, seed=None),
            batches=plan.batches,
            device_train_microbatch_size=plan.device_train_microbatch_size,
        ),
    )

"""Plan a fine-tuning run before it starts: splits, batches, memory, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, canonical_json, sha256_file
from data_prep.tasks.task_set import Splits, TaskSet, split_by_hash
from recipes.checkpointing.trained_model import Source
from recipes.config.loading import load_recorded_config
from recipes.config.schema import Duration, FinetuneConfig, ModelConfig
from recipes.finetuning.kinds import KINDS
from recipes.modeling.model_config import read_model_config
from recipes.modeling.size import lora_parameters, parameter_count
from recipes.planning.memory import FinetuningWork, Layout, finetuning_moments, peak, with_reserve
from recipes.runs.fingerprint import common_fingerprint
from recipes.runs.names import CONFIG

DEV_SHARE = 0.05  # share of train that becomes dev, if the scored split is the published dev


def splits(task: TaskSet) -> Splits:
    """Return the splits for training, for evaluation during training, and for the final score: `train`, `dev`, `test`.

    If published numbers are on dev (MedMCQA), that split is `test` here, and a part of train becomes `dev`.

    Raises:
        BadInput: the set has no train split.
    """
    parts: dict[str, Any] = dict(task.splits)
    if "train" not in parts:
        raise BadInput(f"{task.name} has no train split, so no model can be trained on it")
    scored = parts[task.scored]
    if task.scored == "dev" or "dev" not in parts:
        shares = {"dev": DEV_SHARE, "train": 1 - DEV_SHARE}
        place = {example.id: split_by_hash(example.id, shares) for example in parts["train"]}
        parts = {s: [e for e in task.splits["train"] if place[e.id] == s] for s in ("train", "dev")}
    return {"train": parts["train"], "dev": parts["dev"], "test": scored}


def architecture(source: Source) -> ModelConfig:
    """Read the architecture of the base model from its configuration, without its weights.

    Raises:
        BadInput: the model is not a GPT-2.
    """
    if source.run is not None:
        return load_recorded_config(source.run / CONFIG).model
    config = read_model_config(source.weights)
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return ModelConfig(**{name: config[name] for name in names})


@dataclass(frozen=True)
class FinetunePlan:
    """Numbers that follow from the configuration of a run. Memory is in bytes, on one GPU."""

    batches: int
    batches_per_epoch: int
    world_size: int
    device_train_microbatch_size: int
    parameters: int
    trained_parameters: int
    memory_bytes: int  # including allocator and driver of a GPU
    fullest_bytes: dict[str, int]  # size of all tensors at the peak of training, export and scoring
    checkpoint_bytes: int


def make_finetune_plan(
    cfg: FinetuneConfig, model: ModelConfig, task: TaskSet, n_train: int, world_size: int
) -> FinetunePlan:
    """Make the plan of a run.

    Raises:
        BadInput: the batch cannot be divided over ranks or microbatches, there are fewer examples than a batch, the
            sequence is too long for the model, or the memory is not enough.
    """
    batch = cfg.global_train_batch_size
    if batch % world_size:
        raise BadInput(f"global_train_batch_size = {batch} is not a multiple of {world_size} ranks")
    microbatch = min(cfg.device_train_microbatch_size, batch // world_size)
    if (batch // world_size) % microbatch:
        raise BadInput(
            f"{batch // world_size} examples on each rank are not a multiple of device_train_microbatch_size = "
            f"{microbatch}"
        )
    if not (per_epoch := n_train // batch):
        raise BadInput(f"{task.name} has {n_train} training examples, fewer than one batch of {batch}")
    duration = Duration.parse(cfg.max_duration, "max_duration")
    if cfg.seq_len > model.n_positions:
        raise BadInput(
            f"seq_len = {cfg.seq_len}, but the model reads at most {model.n_positions} tokens: set "
            f"seq_len={model.n_positions} or less"
        )
    parameters = parameter_count(model)
    trained = lora_parameters(model, cfg.lora) if cfg.lora else parameters
    kind, accumulates = KINDS[task.kind], microbatch < batch // world_size
    work = FinetuningWork(microbatch, accumulates, kind.sequences, bool(kind.target_start))
    stages = finetuning_moments(cfg, model, Layout.of(cfg, world_size), work)
    tensors = max(peak(moments).total_bytes for moments in stages)
    plan = FinetunePlan(
        batches=duration.value * per_epoch if duration.unit == "ep" else duration.value,
        batches_per_epoch=per_epoch,
        world_size=world_size,
        device_train_microbatch_size=microbatch,
        parameters=parameters,
        trained_parameters=trained,
        memory_bytes=tensors if cfg.device == "cpu" else max(map(with_reserve, stages)),
        fullest_bytes={memory.moment: memory.total_bytes for memory in map(peak, stages)},
        checkpoint_bytes=4 * parameters + 8 * trained,
    )
    if cfg.gpu_memory_gb and plan.memory_bytes > cfg.gpu_memory_gb * 1e9:
        raise BadInput(
            f"this run needs about {plan.memory_bytes / 1e9:.1f} GB on each GPU, but gpu_memory_gb = "
            f"{cfg.gpu_memory_gb:g}: "
            "lower device_train_microbatch_size, device_eval_batch_size or seq_len, or use preset=one-gpu-24gb (LoRA) "
            "or preset=full (8 GPUs)"
        )
    return plan


def format_finetune_plan(plan: FinetunePlan, cfg: FinetuneConfig) -> str:
    """Format the plan as lines to print."""
    tensors = ", ".join(f"{size / 1e9:.3g} in {moment}" for moment, size in plan.fullest_bytes.items() if size)
    reserve = "" if cfg.device == "cpu" else " with allocator and driver"
    room = f", of {cfg.gpu_memory_gb:g} GB" if cfg.gpu_memory_gb else ""
    rows = [
        ("parameters", f"{plan.parameters:,}, {plan.trained_parameters:,} of them trained"),
        ("batches", f"{plan.batches:,} of {cfg.global_train_batch_size} examples, {plan.batches_per_epoch:,} a pass"),
        ("batch split", f"{plan.world_size} ranks, {plan.device_train_microbatch_size} examples at once"),
        ("learning rate", f"0 -> {cfg.optimizer.lr:g} in {cfg.warmup_share:.0%} of the run, then linear to 0"),
        ("planned memory", f"{plan.memory_bytes / 1e9:.3g} GB a rank{reserve}{room}; tensors: {tensors}"),
        ("checkpoints", f"every {cfg.save_interval}, about {plan.checkpoint_bytes / 1e9:.3g} GB each"),
    ]
    return "\n".join([f"plan of {cfg.run_name}", *(f"  {name:<15} {value}" for name, value in rows)])


def finetuning_fingerprint(cfg: FinetuneConfig, plan: FinetunePlan, task: TaskSet, source: Source) -> JsonDict:
    """The fingerprint of a fine-tuning run. For a task of texts it includes the settings of generation."""
    return {
        **common_fingerprint(cfg),
        "task": {"name": task.name, "files": task.files},
        "model_sha256": source.sha256,
        "model_config_sha256": _model_config_sha256(source),
        "tokenizer_sha256": _tokenizer_sha256(source.tokenizer),
        "seed": cfg.seed,
        "batch": {"examples": cfg.global_train_batch_size, "seq_len": cfg.seq_len},
        "schedule": {"batches": plan.batches, "warmup_share": cfg.warmup_share},
        "lora": asdict(cfg.lora) if cfg.lora else None,
        "generation": asdict(cfg.generation) if KINDS[task.kind].target_start else None,
    }


def _model_config_sha256(source: Source) -> str:
    """Hash of the base model's configuration: dropout, scales, sizes."""
    if source.run is None:
        return sha256_file(source.weights / "config.json")
    model = asdict(load_recorded_config(source.run / CONFIG).model)
    model.pop("attn_implementation")
    return hashlib.sha256(canonical_json(model).encode()).hexdigest()


def _tokenizer_sha256(folder: Path) -> str:
    """Hash of the tokenizer files."""
    names = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
    return hashlib.sha256(
        "".join(sha256_file(folder / n) for n in names if (folder / n).is_file()).encode()
    ).hexdigest()

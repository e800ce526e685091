"""Values that have the right type and cannot work: each is refused with its key and the rule."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput
from recipes.config.schema import (
    SCHEDULES,
    Duration,
    FinetuneConfig,
    RunConfig,
    SchedulerConfig,
    TrainConfig,
    batches_of,
)

Require = Callable[[bool, str, object, str], None]


def _refuser(name: str) -> Require:
    """`require(good, key, value, rule)`, which refuses what is not good."""

    def require(good: bool, key: str, value: object, rule: str) -> None:
        if not good:
            raise BadInput(f"{name}: {key} = {value!r}, but {rule}")

    return require


def check_pretraining(cfg: TrainConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what pre-training alone has."""
    require = _refuser(name)
    model, data = cfg.model, cfg.data
    for key, value in {
        "model.vocab_size": model.vocab_size,
        "model.n_positions": model.n_positions,
        "model.n_embd": model.n_embd,
        "model.n_layer": model.n_layer,
        "model.n_head": model.n_head,
        "data.seq_len": data.seq_len,
        "data.num_canonical_nodes": data.num_canonical_nodes,
        "data.prefetch_factor": data.prefetch_factor,
    }.items():
        require(value > 0, key, value, "it must be above 0")
    require(
        model.n_embd % model.n_head == 0, "model.n_embd", model.n_embd, f"it must divide by n_head = {model.n_head}"
    )
    require(
        data.seq_len <= model.n_positions,
        "data.seq_len",
        data.seq_len,
        f"the model has n_positions = {model.n_positions}",
    )
    require(data.num_workers >= 0, "data.num_workers", data.num_workers, "it cannot be negative")
    for key, p in (("attn", model.attn_pdrop), ("resid", model.resid_pdrop), ("embd", model.embd_pdrop)):
        require(0 <= p < 1, f"model.{key}_pdrop", p, "a dropout lies in [0, 1)")
    for key, value, choices in (
        ("model.attn_implementation", model.attn_implementation, ("sdpa", "flash_attention_2")),
        ("model.activation_function", model.activation_function, ("gelu_new",)),
    ):
        require(value in choices, key, value, f"it must be one of {', '.join(map(str, choices))}")
    kernels = cfg.kernels
    backend, chunk = kernels.sdpa_backend, kernels.loss_chunk_tokens
    known = ("flash", "cudnn", "efficient", "math")
    require(
        backend in (None, *known), "kernels.sdpa_backend", backend, f"it must be one of {', '.join(known)}, or null"
    )
    require(
        backend is None or model.attn_implementation == "sdpa", "kernels.sdpa_backend", backend,
        f"model.attn_implementation = {model.attn_implementation} has no such choice; say null",
    )  # fmt: skip
    require(chunk is None or chunk > 0, "kernels.loss_chunk_tokens", chunk, "it must be above 0, or null for all")
    blocks = cfg.activation_checkpointing_blocks
    require(
        blocks is None or blocks > 0, "activation_checkpointing_blocks", blocks, "it must be above 0, or null for all"
    )
    require(
        blocks is None or cfg.activation_checkpointing, "activation_checkpointing_blocks", blocks,
        "activation_checkpointing = false, so no block recomputes",
    )  # fmt: skip
    _check_schedule(require, cfg.scheduler)
    _check_interval(require, name, "scheduler.t_warmup", cfg.scheduler.t_warmup, least=0)


def _check_schedule(require: Require, schedule: SchedulerConfig) -> None:
    name, end, share = schedule.name, schedule.alpha_f, schedule.decay_share
    require(name in SCHEDULES, "scheduler.name", name, f"it must be one of {', '.join(SCHEDULES)}")
    require(0 <= end <= 1, "scheduler.alpha_f", end, "it is a share of lr")
    require(
        name != "constant" or end == 1, "scheduler.alpha_f", end,
        "scheduler.name = constant ends at its peak: say scheduler.alpha_f=1",
    )  # fmt: skip
    if name == "warmup_stable_decay":
        require(
            share is not None and 0 < share < 1, "scheduler.decay_share", share,
            "it is the share of the run that falls, such as 0.1",
        )  # fmt: skip
    else:
        require(share is None, "scheduler.decay_share", share, f"scheduler.name = {name} has no such part; say null")


def check_finetuning(cfg: FinetuneConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what fine-tuning alone has."""
    require = _refuser(name)
    writing = cfg.generation
    positive: dict[str, float] = {
        "seq_len": cfg.seq_len,
        "generation.num_beams": writing.num_beams,
        "generation.max_new_tokens": writing.max_new_tokens,
        "gpu_memory_gb": cfg.gpu_memory_gb or 1,
    }
    if cfg.lora:
        positive |= {"lora.r": cfg.lora.r, "lora.lora_alpha": cfg.lora.lora_alpha}
        require(0 <= cfg.lora.lora_dropout < 1, "lora.lora_dropout", cfg.lora.lora_dropout, "it lies in [0, 1)")
    for key, value in positive.items():
        require(value > 0, key, value, "it must be above 0")
    require(0 <= cfg.warmup_share < 1, "warmup_share", cfg.warmup_share, "it is a share of the run, in [0, 1)")
    require(writing.temperature >= 0, "generation.temperature", writing.temperature, "it cannot be negative")
    require(0 < writing.top_p <= 1, "generation.top_p", writing.top_p, "it lies in (0, 1]")
    require(cfg.max_duration.strip()[-2:] != "ok", "max_duration", cfg.max_duration, "it is in ep or ba here")
    for key in ("spike_guard", "data_monitor", "generate_samples"):
        require(getattr(cfg.callbacks, key) is None, f"callbacks.{key}", "…", "it belongs to pre-training; say null")


def _check_interval(require: Require, name: str, key: str, value: str, least: int) -> None:
    duration = Duration.parse(value, f"{name}: {key}")
    require(duration.value >= least, key, value, f"it must be at least {least}")
    require(key == "max_duration" or duration.unit == "ba", key, value, "it must be in batches, such as 100ba")


def check_values(cfg: RunConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what every run has."""
    require, optimizer = _refuser(name), cfg.optimizer
    positive = {
        "global_train_batch_size": cfg.global_train_batch_size,
        "device_train_microbatch_size": cfg.device_train_microbatch_size,
        "device_eval_batch_size": cfg.device_eval_batch_size,
        "world_size": cfg.world_size,
        "connect_timeout_s": cfg.connect_timeout_s,
        "dist_timeout_s": cfg.dist_timeout_s,
        "optimizer.lr": optimizer.lr,
        "optimizer.eps": optimizer.eps,
    }
    if (spike := cfg.callbacks.spike_guard) is not None:
        positive |= {f"callbacks.spike_guard.{name}": value for name, value in vars(spike).items()}
    for key, value in positive.items():
        require(value > 0, key, value, "it must be above 0")
    require(bool(cfg.run_name.strip()), "run_name", cfg.run_name, "a run needs a name")
    for key, value, choices in (
        ("precision", cfg.precision, ("fp32", "amp_bf16")),
        ("device", cfg.device, (None, "cpu", "gpu")),
        ("on_save_error", cfg.on_save_error, ("stop", "continue")),
        ("fsdp.mixed_precision", cfg.fsdp.mixed_precision if cfg.fsdp else "DEFAULT", ("DEFAULT", "PURE", "FULL")),
        ("fsdp.version", cfg.fsdp.version if cfg.fsdp else 2, (1, 2)),
        ("loggers.wandb.mode", cfg.loggers.wandb.mode if cfg.loggers.wandb else "offline", ("offline", "online")),
    ):
        require(value in choices, key, value, f"it must be one of {', '.join(map(str, choices))}")
    require(
        not (cfg.device == "cpu" and cfg.precision != "fp32"),
        "precision",
        cfg.precision,
        "Composer trains a CPU in fp32",
    )
    require(len(optimizer.betas) == 2 and all(0 <= b < 1 for b in optimizer.betas), "optimizer.betas", optimizer.betas,
            "it must be two numbers in [0, 1)")  # fmt: skip
    require(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "it cannot be negative")
    clip = cfg.gradient_clipping_norm
    require(clip is None or clip > 0, "gradient_clipping_norm", clip, "it must be above 0, or null for none")
    require(
        cfg.save_remote is None or bool(re.fullmatch(r"s3://[\w.-]{3,}(/[^\s/?#@]+)*/?", cfg.save_remote)),
        "save_remote",
        cfg.save_remote,
        "it must be of the form s3://bucket/prefix, or null for none",
    )
    replicas = cfg.fsdp.data_parallel_replicate_degree if cfg.fsdp else 1
    require(replicas > 0, "fsdp.data_parallel_replicate_degree", replicas, "it must be above 0")
    keep, permanent = cfg.save_num_checkpoints_to_keep, cfg.save_permanent_interval
    require(keep == -1 or keep > 0, "save_num_checkpoints_to_keep", keep, "it must be above 0, or -1 for all")
    price, texts = cfg.price_per_gpu_hour, cfg.callbacks.generate_samples
    require(price is None or price >= 0, "price_per_gpu_hour", price, "it cannot be negative; null for none")
    if texts is not None:
        require(
            bool(texts.prompts) and all(prompt.strip() for prompt in texts.prompts),
            "callbacks.generate_samples.prompts",
            texts.prompts,
            "each is a text to continue; null in the place of callbacks.generate_samples for none",
        )
        key, value = "callbacks.generate_samples.max_new_tokens", texts.max_new_tokens
        require(value > 0, key, value, "it must be above 0")
    stall_s = cfg.stall_timeout_s
    require(stall_s is None or stall_s > 0, "stall_timeout_s", stall_s, "it must be above 0, or null for none")
    for key, value in (
        ("max_duration", cfg.max_duration),
        ("save_permanent_interval", permanent or cfg.save_interval),
        ("eval_interval", cfg.eval_interval),
        ("save_interval", cfg.save_interval),
        *(
            (f"callbacks.{key}.interval", callback.interval)
            for key in ("console", "norm_monitor", "data_monitor")
            if (callback := getattr(cfg.callbacks, key)) is not None
        ),
    ):
        _check_interval(require, name, key, value, least=1)
    require(
        permanent is None or batches_of(permanent) % batches_of(cfg.save_interval) == 0,
        "save_permanent_interval",
        permanent,
        f"it must be a multiple of save_interval = {cfg.save_interval}",
    )


def check_account(cfg: RunConfig) -> None:
    """Refuse to start a run that W&B would stop, after minutes, for want of a key; none is read here.

    Raises:
        BadInput: `loggers.wandb.mode` is `online`, and neither WANDB_API_KEY nor a netrc file has a key.
    """
    if not cfg.loggers.wandb or cfg.loggers.wandb.mode != "online" or os.environ.get("WANDB_API_KEY"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [Path(os.environ.get("NETRC", "~/.netrc")), Path("~/_netrc")]
    for file in filter(Path.is_file, (path.expanduser() for path in files)):
        try:
            if netrc.netrc(file).authenticators(host):
                return
        except netrc.NetrcParseError:
            continue
    raise BadInput(
        f"loggers.wandb.mode = 'online', and there is no key for {host}: run `wandb login`, or set WANDB_API_KEY, "
        "or say loggers.wandb.mode=offline (nothing leaves the machine) or loggers.wandb=null"
    )

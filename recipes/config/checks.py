"""Values that have the right type and cannot work: each is refused with its key and the rule."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput
from recipes.config.schema import (
    SCHEDULES,
    CallbacksConfig,
    Duration,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    SchedulerConfig,
    TrainConfig,
    batches_of,
)


class _Rules:
    """Refuses the first value that breaks a rule, with the file, the key and the rule.

    Args:
        name: of the configuration, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self, good: bool, key: str, value: object, rule: str) -> None:
        """Refuse a value that is not good."""
        if not good:
            raise BadInput(f"{self.name}: {key} = {value!r}, but {rule}")

    def above_0(self, values: Mapping[str, float | None], null: str = "") -> None:
        """Numbers that must be above 0, or null where the schema allows it: `null` says what that means."""
        rule = "it must be above 0" + (f", or null {null}" if null else "")
        for key, value in values.items():
            self.require(value is None or value > 0, key, value, rule)

    def one_of(self, key: str, value: object, choices: Iterable[object]) -> None:
        """A value out of a few."""
        known = tuple(choices)
        self.require(value in known, key, value, f"it must be one of {', '.join(map(str, known))}")

    def share(self, key: str, value: float, what: str) -> None:
        """A number in [0, 1)."""
        self.require(0 <= value < 1, key, value, what)

    def interval(self, key: str, value: str, least: int = 1) -> None:
        """A span in batches; the length of the run may be in tokens or epochs."""
        duration = Duration.parse(value, f"{self.name}: {key}")
        self.require(duration.value >= least, key, value, f"it must be at least {least}")
        self.require(key == "max_duration" or duration.unit == "ba", key, value, "it must be in batches, such as 100ba")


def check_pretraining(cfg: TrainConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what pre-training alone has."""
    rules = _Rules(name)
    _check_model(rules, cfg.model)
    rules.above_0(
        {
            "data.seq_len": cfg.data.seq_len,
            "data.num_canonical_nodes": cfg.data.num_canonical_nodes,
            "data.prefetch_factor": cfg.data.prefetch_factor,
        }
    )
    most, workers = cfg.model.n_positions, cfg.data.num_workers
    rules.require(cfg.data.seq_len <= most, "data.seq_len", cfg.data.seq_len, f"the model has n_positions = {most}")
    rules.require(workers >= 0, "data.num_workers", workers, "it cannot be negative")
    _check_kernels(rules, cfg)
    _check_schedule(rules, cfg.scheduler)


def _check_model(rules: _Rules, model: ModelConfig) -> None:
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    rules.above_0({f"model.{size}": getattr(model, size) for size in sizes})
    whole = model.n_embd % model.n_head == 0
    rules.require(whole, "model.n_embd", model.n_embd, f"it must divide by n_head = {model.n_head}")
    for key in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        rules.share(f"model.{key}", getattr(model, key), "a dropout lies in [0, 1)")
    rules.one_of("model.attn_implementation", model.attn_implementation, ("sdpa", "flash_attention_2"))
    rules.one_of("model.activation_function", model.activation_function, ("gelu_new",))


def _check_kernels(rules: _Rules, cfg: TrainConfig) -> None:
    backend, chunk = cfg.kernels.sdpa_backend, cfg.kernels.loss_chunk_tokens
    blocks, attention = cfg.activation_checkpointing_blocks, cfg.model.attn_implementation
    rules.above_0({"kernels.loss_chunk_tokens": chunk, "activation_checkpointing_blocks": blocks}, "for all")
    known = ("flash", "cudnn", "efficient", "math")
    choice = f"it must be one of {', '.join(known)}, or null"
    rules.require(backend in (None, *known), "kernels.sdpa_backend", backend, choice)
    no_choice = f"model.attn_implementation = {attention} has no such choice; say null"
    rules.require(backend is None or attention == "sdpa", "kernels.sdpa_backend", backend, no_choice)
    nothing = "activation_checkpointing = false, so no block recomputes"
    acts = blocks is None or cfg.activation_checkpointing
    rules.require(acts, "activation_checkpointing_blocks", blocks, nothing)


def _check_schedule(rules: _Rules, schedule: SchedulerConfig) -> None:
    name, end, share = schedule.name, schedule.alpha_f, schedule.decay_share
    rules.one_of("scheduler.name", name, SCHEDULES)
    rules.require(0 <= end <= 1, "scheduler.alpha_f", end, "it is a share of lr")
    flat = "scheduler.name = constant ends at its peak: say scheduler.alpha_f=1"
    rules.require(name != "constant" or end == 1, "scheduler.alpha_f", end, flat)
    if name == "warmup_stable_decay":
        falls = share is not None and 0 < share < 1
        rules.require(falls, "scheduler.decay_share", share, "it is the share of the run that falls, such as 0.1")
    else:
        none = f"scheduler.name = {name} has no such part; say null"
        rules.require(share is None, "scheduler.decay_share", share, none)
    rules.interval("scheduler.t_warmup", schedule.t_warmup, least=0)


def check_finetuning(cfg: FinetuneConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what fine-tuning alone has."""
    rules, writing = _Rules(name), cfg.generation
    rules.above_0(
        {
            "seq_len": cfg.seq_len,
            "generation.num_beams": writing.num_beams,
            "generation.max_new_tokens": writing.max_new_tokens,
            "gpu_memory_gb": cfg.gpu_memory_gb,
        }
    )
    if cfg.lora:
        rules.above_0({"lora.r": cfg.lora.r, "lora.lora_alpha": cfg.lora.lora_alpha})
        rules.share("lora.lora_dropout", cfg.lora.lora_dropout, "it lies in [0, 1)")
    rules.share("warmup_share", cfg.warmup_share, "it is a share of the run, in [0, 1)")
    rules.require(writing.temperature >= 0, "generation.temperature", writing.temperature, "it cannot be negative")
    rules.require(0 < writing.top_p <= 1, "generation.top_p", writing.top_p, "it lies in (0, 1]")
    rules.require(cfg.max_duration.strip()[-2:] != "ok", "max_duration", cfg.max_duration, "it is in ep or ba here")
    for key in ("spike_guard", "data_monitor", "generate_samples"):
        absent = getattr(cfg.callbacks, key) is None
        rules.require(absent, f"callbacks.{key}", "…", "it belongs to pre-training; say null")


def check_values(cfg: RunConfig, name: str) -> None:
    """Refuse what has the right type and cannot work, of what every run has."""
    rules = _Rules(name)
    rules.require(bool(cfg.run_name.strip()), "run_name", cfg.run_name, "a run needs a name")
    rules.above_0(
        {
            "global_train_batch_size": cfg.global_train_batch_size,
            "device_train_microbatch_size": cfg.device_train_microbatch_size,
            "device_eval_batch_size": cfg.device_eval_batch_size,
            "world_size": cfg.world_size,
            "connect_timeout_s": cfg.connect_timeout_s,
            "dist_timeout_s": cfg.dist_timeout_s,
        }
    )
    rules.above_0({"stall_timeout_s": cfg.stall_timeout_s}, "for none")
    price = cfg.price_per_gpu_hour
    rules.require(price is None or price >= 0, "price_per_gpu_hour", price, "it cannot be negative; null for none")
    rules.interval("max_duration", cfg.max_duration)
    rules.interval("eval_interval", cfg.eval_interval)
    _check_computation(rules, cfg)
    _check_optimizer(rules, cfg)
    _check_saving(rules, cfg)
    _check_callbacks(rules, cfg.callbacks)
    if cfg.loggers.wandb:
        rules.one_of("loggers.wandb.mode", cfg.loggers.wandb.mode, ("offline", "online"))


def _check_computation(rules: _Rules, cfg: RunConfig) -> None:
    rules.one_of("precision", cfg.precision, ("fp32", "amp_bf16"))
    rules.one_of("device", cfg.device, (None, "cpu", "gpu"))
    on_cpu = cfg.device == "cpu" and cfg.precision != "fp32"
    rules.require(not on_cpu, "precision", cfg.precision, "Composer trains a CPU in fp32")
    if cfg.fsdp:
        rules.one_of("fsdp.mixed_precision", cfg.fsdp.mixed_precision, ("DEFAULT", "PURE", "FULL"))
        rules.one_of("fsdp.version", cfg.fsdp.version, (1, 2))
        rules.above_0({"fsdp.data_parallel_replicate_degree": cfg.fsdp.data_parallel_replicate_degree})


def _check_optimizer(rules: _Rules, cfg: RunConfig) -> None:
    optimizer = cfg.optimizer
    betas, decay = optimizer.betas, optimizer.weight_decay
    rules.above_0({"optimizer.lr": optimizer.lr, "optimizer.eps": optimizer.eps})
    rules.above_0({"gradient_clipping_norm": cfg.gradient_clipping_norm}, "for none")
    good = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    rules.require(good, "optimizer.betas", betas, "it must be two numbers in [0, 1)")
    rules.require(decay >= 0, "optimizer.weight_decay", decay, "it cannot be negative")


def _check_saving(rules: _Rules, cfg: RunConfig) -> None:
    rules.one_of("on_save_error", cfg.on_save_error, ("stop", "continue"))
    rules.interval("save_interval", cfg.save_interval)
    keep, permanent, remote = cfg.save_num_checkpoints_to_keep, cfg.save_permanent_interval, cfg.save_remote
    rules.require(keep == -1 or keep > 0, "save_num_checkpoints_to_keep", keep, "it must be above 0, or -1 for all")
    if permanent is not None:
        rules.interval("save_permanent_interval", permanent)
        whole = batches_of(permanent) % batches_of(cfg.save_interval) == 0
        multiple = f"it must be a multiple of save_interval = {cfg.save_interval}"
        rules.require(whole, "save_permanent_interval", permanent, multiple)
    if remote is not None:
        good = bool(re.fullmatch(r"s3://[\w.-]{3,}(/[^\s/?#@]+)*/?", remote))
        rules.require(good, "save_remote", remote, "it must be of the form s3://bucket/prefix, or null for none")


def _check_callbacks(rules: _Rules, callbacks: CallbacksConfig) -> None:
    for key in ("console", "norm_monitor", "data_monitor"):
        if (values := getattr(callbacks, key)) is not None:
            rules.interval(f"callbacks.{key}.interval", values.interval)
    if (spike := callbacks.spike_guard) is not None:
        rules.above_0({f"callbacks.spike_guard.{key}": value for key, value in vars(spike).items()})
    if (samples := callbacks.generate_samples) is not None:
        key, prompts = "callbacks.generate_samples", samples.prompts
        texts = bool(prompts) and all(prompt.strip() for prompt in prompts)
        none = f"each is a text to continue; null in the place of {key} for none"
        rules.require(texts, f"{key}.prompts", prompts, none)
        rules.above_0({f"{key}.max_new_tokens": samples.max_new_tokens})


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

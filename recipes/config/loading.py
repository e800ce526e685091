"""The whole configuration of a run, as dataclasses, and how it is read.

`base:` + the YAML + `key=value` overrides are merged into the schema below; a misspelt key or a wrong type at any
depth is refused with the file and the key, before torch is imported. Names are GPT2Config's inside `model`, and
Composer's elsewhere.
"""

from __future__ import annotations

import argparse
import difflib
import netrc
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from data_prep.stage import BadInput

PRESETS = Path(__file__).parents[2] / "yamls/finetune/presets"


@dataclass(frozen=True)
class Duration:
    """A span of training: `value` tokens (`tok`), batches (`ba`) or epochs (`ep`)."""

    value: int
    unit: str

    @staticmethod
    def parse(text: str, where: str) -> Duration:
        """Read `300e9tok`.

        Args:
            text: a number, whole once it is written out, and its unit.
            where: what the text was given for, for the message.

        Raises:
            BadInput: it is not of that form.
        """
        match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\+?\d+)?)(tok|ba|ep)", text.strip())
        if not match or float(match[1]) != int(float(match[1])):
            raise BadInput(f"{where} = {text!r} is not a duration; write 300e9tok, 286102ba or 8ep")
        return Duration(int(float(match[1])), match[2])


def batches_of(interval: str) -> int:
    """The batches of an interval such as `100ba`, which `load_config` has checked to be one."""
    return Duration.parse(interval, "interval").value


@dataclass
class ModelConfig:
    """The architecture, under GPT2Config's names."""

    vocab_size: int = MISSING
    n_positions: int = MISSING
    n_embd: int = MISSING
    n_layer: int = MISSING
    n_head: int = MISSING
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    scale_attn_by_inverse_layer_idx: bool = True
    attn_implementation: str = "sdpa"  # sdpa | flash_attention_2


@dataclass
class DataConfig:
    """Where the token shards lie, what they must be, and how they are read."""

    shards: str = MISSING  # folder with train/, val/, manifest.json
    remote: str | None = None  # folder or s3://, gs://, … of the same shards: what `shards` lacks is fetched from there
    tokenizer: str = MISSING  # folder of the tokenizer that made the shards
    seq_len: int = MISSING  # tokens a sample; must be the shards' own
    eos_between_documents: bool = True  # must be the shards' own
    num_canonical_nodes: int = 1  # fixes the sample order for any number of nodes that divides it or that it divides
    num_workers: int = 2  # loader processes a rank
    prefetch_factor: int = 4  # batches each of them holds ready


@dataclass
class KernelsConfig:
    """How the model is computed: the same mathematics with other roundings; all off: transformers' own operations."""

    fused_gelu: bool = False  # gelu_new in one pass, which keeps its input only
    loss_chunk_tokens: int | None = None  # tokens whose logits are in fp32 at once; null: all of a microbatch
    vocab_multiple: int = 1  # the head's products are padded to a multiple of so many rows; only in chunks
    sdpa_backend: str | None = None  # flash | cudnn | efficient | math; null: torch picks
    compile: bool = False  # torch.compile of each block


@dataclass
class OptimizerConfig:
    """DecoupledAdamW. Decoupled: a step shrinks weights by (lr / initial lr) · weight_decay."""

    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = MISSING


@dataclass
class SchedulerConfig:
    """Cosine with linear warm-up from 0 to lr, ending at alpha_f · lr."""

    t_warmup: str = MISSING
    alpha_f: float = 0.1


@dataclass
class FSDPConfig:
    """Fully sharded data parallelism over all ranks."""

    version: int = 2  # FSDP2; 1: FSDP1, on GPUs only
    # Composer's: DEFAULT = parameters in `precision`, fp32 reduction; PURE = both low; FULL = both fp32.
    mixed_precision: str = "DEFAULT"
    reshard_after_forward: bool = True  # ZeRO-3; false keeps gathered parameters until backward (ZeRO-2)
    data_parallel_replicate_degree: int = 1  # copies of the model, each sharded over ranks / this (HSDP)


@dataclass
class SpeedMonitorConfig:
    """composer.callbacks.SpeedMonitor."""

    window_size: int = 10
    time_unit: str = "hours"
    gpu_flops_available: float | None = None


@dataclass
class LRMonitorConfig:
    """composer.callbacks.LRMonitor."""


@dataclass
class MemoryMonitorConfig:
    """composer.callbacks.MemoryMonitor."""

    dist_aggregate_batch_interval: int | None = None


@dataclass
class RuntimeEstimatorConfig:
    """composer.callbacks.RuntimeEstimator."""

    skip_batches: int = 1
    time_unit: str = "hours"


@dataclass
class NormMonitorConfig:
    """callbacks.NormMonitor: global norms of the gradient, before it is clipped, and of the weights."""

    interval: str = "10ba"


@dataclass
class DataMonitorConfig:
    """callbacks.DataMonitor: the share of time that waits for data, and passes over it."""

    interval: str = "10ba"


@dataclass
class TextsConfig:
    """callbacks.Texts: texts that the model writes from these prompts after each evaluation."""

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 48


@dataclass
class ConsoleConfig:
    """callbacks.Console: one readable line per interval."""

    interval: str = "10ba"


@dataclass
class NumberGuardConfig:
    """callbacks.NumberGuard: batches with NaN or Inf are skipped; so many in a row end the run."""

    max_in_a_row: int = 3


@dataclass
class SpikeGuardConfig:
    """callbacks.SpikeGuard: back to before a loss spike, and around its data."""

    window_batches: int = 100
    threshold: float = 8.0  # robust standard deviations above the median of the window
    min_rise: float = 0.2  # nats a token above it
    patience_batches: int = 3
    max_rewinds: int = 3


@dataclass
class CallbacksConfig:
    """Which callbacks run, and their arguments; null leaves one out."""

    speed_monitor: SpeedMonitorConfig | None = None
    lr_monitor: LRMonitorConfig | None = None
    memory_monitor: MemoryMonitorConfig | None = None
    runtime_estimator: RuntimeEstimatorConfig | None = None
    norm_monitor: NormMonitorConfig | None = None
    data_monitor: DataMonitorConfig | None = None
    texts: TextsConfig | None = None
    console: ConsoleConfig | None = None
    number_guard: NumberGuardConfig | None = None
    spike_guard: SpikeGuardConfig | None = None


@dataclass
class WandBConfig:
    """composer.loggers.WandBLogger. Nothing leaves the machine unless `mode` is `online`."""

    project: str = "biomedlm"
    mode: str = "offline"  # offline | online
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TensorboardConfig:
    """composer.loggers.TensorboardLogger, into the run folder: tensorboard --logdir runs."""

    flush_interval: int = 100  # batches


@dataclass
class LoggersConfig:
    """Which loggers run beside the run folder's metrics.jsonl; null leaves one out."""

    wandb: WandBConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass
class ResumeConfig:
    """What may differ from the run that the folder holds, by the names that the refusal prints."""

    allow: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """What every run has, whatever it trains."""

    run_name: str = MISSING
    run_dir: str = "runs/${run_name}"
    seed: int = 17

    max_duration: str = MISSING  # 300e9tok, 286102ba or 8ep
    global_train_batch_size: int = MISSING  # sequences
    device_train_microbatch_size: int = MISSING  # sequences a rank computes at once
    device_eval_batch_size: int = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_clipping_norm: float | None = 1.0

    device: str | None = None  # null: a GPU if there is one; cpu | gpu
    precision: str = MISSING  # fp32 | amp_bf16
    world_size: int = 1  # ranks that the plan is made for; the launcher decides how many there are
    fsdp: FSDPConfig | None = None  # used on 2 ranks and more
    activation_checkpointing: bool = False
    connect_timeout_s: float = 300.0  # longest that the ranks wait for each other at the start
    # Longest that a rank waits in a collective; above stall_timeout_s, which says where, as NCCL's end does not.
    dist_timeout_s: float = 1800.0

    eval_interval: str = MISSING
    eval_subset_num_batches: int = -1  # -1: all of val
    save_interval: str = MISSING
    save_num_checkpoints_to_keep: int = -1  # of the newest; -1: all
    save_permanent_interval: str | None = None  # these are kept for ever
    save_remote: str | None = None  # s3://bucket/prefix: the run folder is copied to prefix/run_name; null: nowhere
    on_save_error: str = "stop"  # stop | continue: what a full disk or a failed upload does to the run
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    stall_timeout_s: float | None = 900.0  # longest that a batch or a save may take; null: for ever
    price_per_gpu_hour: float | None = None  # in any currency: what the run has cost so far is logged
    progress_bar: bool = True  # on a terminal; never into a file or pipe
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)


@dataclass
class TrainConfig(RunConfig):
    """Everything that decides a pre-training run."""

    activation_checkpointing_blocks: int | None = None  # of the model's, the first; null: all
    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class LoraConfig:
    """peft.LoraConfig: low-rank changes of all linear maps of the blocks; the weights themselves stay as they are."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05


@dataclass
class GenerationConfig:
    """How targets are written: beam search, or sampling where `temperature` is above 0."""

    num_beams: int = 5
    no_repeat_ngram_size: int = 6
    length_penalty: float = -0.5
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 0.95


@dataclass
class FinetuneConfig(RunConfig):
    """Everything that decides a fine-tuning run."""

    preset: str = "one-gpu-80gb"  # a file of yamls/finetune/presets: what fits where
    task: str = MISSING  # a set that data_prep.tasks.load knows, or the folder of one
    model: str = MISSING  # exported folder, original-style BioMedLM folder, run folder or checkpoint
    data: str = "data/tasks"  # holds a folder a task
    seq_len: int = 512  # tokens an example is cut to
    warmup_share: float = 0.5  # of the run; linear from 0, then linear to 0
    lora: LoraConfig | None = None  # null: all weights are trained
    score_test: bool = True  # false: dev alone, to choose by; true on a run that is finished adds test
    gpu_memory_gb: float | None = None  # the plan must fit into it; null: not checked
    generation: GenerationConfig = field(default_factory=GenerationConfig)


Config = TypeVar("Config", bound=RunConfig)


def read_yaml(path: Path) -> DictConfig:
    """Read one file, without its base.

    Raises:
        BadInput: it is missing, not YAML, or no mapping.
    """
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; the ready-made configurations are yamls/*.yaml") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise BadInput(f"{path} must hold `key: value` pairs at its top level")
    return loaded


def _explain(error: OmegaConfBaseException) -> str:
    """One line for an OmegaConf error: the full key, what is wrong with it, and the nearest key that exists."""
    key = error.full_key or str(error.key)
    if isinstance(error, ConfigKeyError) and error.object_type is not None:
        known = list(getattr(error.object_type, "__dataclass_fields__", {}))
        near = difflib.get_close_matches(str(key).rsplit(".", 1)[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'nothing'}"
        return f"unknown key {key!r}; {hint}"
    return f"{key!r}: {(error.msg or str(error)).splitlines()[0]}"


def load_config(yaml: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read the configuration of a pre-training run: its base, itself, then `key.sub=value` overrides.

    Raises:
        BadInput: a file is missing or not YAML; a key is unknown, missing or of the wrong type; a value is impossible.
    """
    cfg = _merge(TrainConfig, _layers(Path(yaml), overrides), str(yaml))
    _check_values(cfg, str(yaml))
    _check_pretraining(cfg, str(yaml))
    return cfg


def load_finetune_config(yaml: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read the configuration of a fine-tuning run: its base, itself, its preset, then overrides.

    Raises:
        BadInput: as `load_config`; or an unknown preset.
    """
    layers = _layers(Path(yaml), overrides)
    preset = next((layer["preset"] for _, layer in reversed(layers) if "preset" in layer), FinetuneConfig.preset)
    path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise BadInput(f"preset = {preset!r} is not one of {known}")
    layers.insert(len(layers) - len(overrides), (str(path), read_yaml(path)))
    cfg = _merge(FinetuneConfig, layers, str(yaml))
    _check_values(cfg, str(yaml))
    _check_finetuning(cfg, str(yaml))
    return cfg


def parse_run(
    doc: str | None,
    yaml: str,
    override: str,
    argv: Sequence[str] | None,
    add: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> argparse.Namespace:
    """The command line of what runs a configuration: `yaml`, `overrides`, `dry_run`.

    Args:
        doc: of the module: its first line says what it does, what follows after an empty line are examples.
        yaml: a configuration to name in the help.
        override: a change to it to name there.
        argv: the arguments; None: the process' own.
        add: adds arguments to the parser.
    """
    what, _, examples = (doc or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("yaml", help=f"configuration, such as {yaml}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to it, such as {override}")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, and stop")
    add(parser)
    return parser.parse_intermixed_args(argv)


def _layers(path: Path, overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """What a configuration is merged of, each with its name: its base and the base's own, itself, the overrides.

    Raises:
        BadInput: a file is missing or not YAML, or an override has another form.
    """
    layers = [(str(path), read_yaml(path))]
    if "grid" in layers[0][1]:
        raise BadInput(f"{path} holds a grid of runs: python recipes/sweep.py {path} … runs them")
    read = [path.resolve()]
    while base := layers[0][1].pop("base", None):
        base_path = Path(layers[0][0]).parent / str(base)
        if base_path.resolve() in read:
            raise BadInput(f"{layers[0][0]}: base = {base} leads back to a file that builds on it")
        read.append(base_path.resolve())
        layers.insert(0, (str(base_path), read_yaml(base_path)))
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise BadInput(f"override {override!r} is not of the form key=value, such as optimizer.lr=2e-4")
        try:
            layers.append((f"override {override!r}", OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException) as error:
            raise BadInput(f"override {override!r}: {error}") from None
    return layers


def _merge(schema: type[Config], layers: Sequence[tuple[str, DictConfig]], name: str) -> Config:
    merged: Any = OmegaConf.structured(schema)
    for layer_name, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise BadInput(f"{layer_name}: {_explain(error)}") from None
    try:
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise BadInput(f"{name} leaves out: {', '.join(missing)}")
        return cast(Config, OmegaConf.to_object(merged))
    except (MissingMandatoryValue, OmegaConfBaseException) as error:
        raise BadInput(f"{name}: {_explain(error)}") from None


def _refuser(name: str) -> Callable[[bool, str, object, str], None]:
    """`require(good, key, value, rule)`, which refuses what is not good."""

    def require(good: bool, key: str, value: object, rule: str) -> None:
        if not good:
            raise BadInput(f"{name}: {key} = {value!r}, but {rule}")

    return require


def _check_pretraining(cfg: TrainConfig, name: str) -> None:
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
    require(kernels.vocab_multiple > 0, "kernels.vocab_multiple", kernels.vocab_multiple, "it must be above 0")
    require(
        kernels.vocab_multiple == 1 or chunk is not None, "kernels.vocab_multiple", kernels.vocab_multiple,
        "it is part of the loss in chunks: say kernels.loss_chunk_tokens, such as 2048",
    )  # fmt: skip
    blocks = cfg.activation_checkpointing_blocks
    require(
        blocks is None or blocks > 0, "activation_checkpointing_blocks", blocks, "it must be above 0, or null for all"
    )
    require(
        blocks is None or cfg.activation_checkpointing, "activation_checkpointing_blocks", blocks,
        "activation_checkpointing = false, so no block recomputes",
    )  # fmt: skip
    require(0 <= cfg.scheduler.alpha_f <= 1, "scheduler.alpha_f", cfg.scheduler.alpha_f, "it is a share of lr")
    _check_interval(require, name, "scheduler.t_warmup", cfg.scheduler.t_warmup, least=0)


def _check_finetuning(cfg: FinetuneConfig, name: str) -> None:
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
    for key in ("spike_guard", "data_monitor", "texts"):
        require(getattr(cfg.callbacks, key) is None, f"callbacks.{key}", "…", "it belongs to pre-training; say null")


def _check_interval(
    require: Callable[[bool, str, object, str], None], name: str, key: str, value: str, least: int
) -> None:
    duration = Duration.parse(value, f"{name}: {key}")
    require(duration.value >= least, key, value, f"it must be at least {least}")
    require(key == "max_duration" or duration.unit == "ba", key, value, "it must be in batches, such as 100ba")


def _check_values(cfg: RunConfig, name: str) -> None:
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
    price, texts = cfg.price_per_gpu_hour, cfg.callbacks.texts
    require(price is None or price >= 0, "price_per_gpu_hour", price, "it cannot be negative; null for none")
    if texts is not None:
        require(
            bool(texts.prompts) and all(prompt.strip() for prompt in texts.prompts),
            "callbacks.texts.prompts",
            texts.prompts,
            "each is a text to continue; null in the place of callbacks.texts for none",
        )
        require(texts.max_new_tokens > 0, "callbacks.texts.max_new_tokens", texts.max_new_tokens, "it must be above 0")
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


def to_yaml(cfg: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))

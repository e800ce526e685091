"""The whole configuration of a run, as dataclasses.

`loading` merges `base:`, the YAML and `key=value` overrides into them. Names are GPT2Config's inside `model`, and
Composer's elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from data_prep.common.errors import BadInput


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
    sdpa_backend: str | None = None  # flash | cudnn | efficient | math; null: torch picks
    compile: bool = False  # torch.compile of each block


@dataclass
class OptimizerConfig:
    """DecoupledAdamW. Decoupled: a step shrinks weights by (lr / initial lr) · weight_decay."""

    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = MISSING


# What `scheduler.name` may be -> what the plan says of it. recipes/training/schedules.py computes them.
SCHEDULES = {
    "cosine": "cosine to {end:g}",
    "linear": "linear to {end:g}",
    "constant": "constant",
    "warmup_stable_decay": "constant, in the last {share:.3g} of the run linear to {end:g}",
}


@dataclass
class SchedulerConfig:
    """Learning rate: linear warm-up from 0 to lr, then the shape that `name` gives, ending at alpha_f · lr."""

    name: str = "cosine"  # one of SCHEDULES
    t_warmup: str = MISSING
    alpha_f: float = 0.1
    decay_share: float | None = None  # of the run, for warmup_stable_decay: its last part, which falls


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
class GenerateSamplesConfig:
    """callbacks.GenerateSamples: texts that the model writes from these prompts after each evaluation."""

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 48


@dataclass
class ConsoleConfig:
    """callbacks.Console: one readable line per interval."""

    interval: str = "10ba"


@dataclass
class NanGuardConfig:
    """callbacks.NanGuard: batches with NaN or Inf are skipped; so many in a row end the run."""

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
    generate_samples: GenerateSamplesConfig | None = None
    console: ConsoleConfig | None = None
    nan_guard: NanGuardConfig | None = None
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
    task: str = MISSING  # a set that data_prep/tasks/registry.py knows, or the folder of one
    model: str = MISSING  # exported folder, original-style BioMedLM folder, run folder or checkpoint
    data: str = "data/tasks"  # holds a folder a task
    seq_len: int = 512  # tokens an example is cut to
    warmup_share: float = 0.5  # of the run; linear from 0, then linear to 0
    lora: LoraConfig | None = None  # null: all weights are trained
    score_test: bool = True  # false: dev alone, to choose by; true on a run that is finished adds test
    gpu_memory_gb: float | None = None  # the plan must fit into it; null: not checked
    generation: GenerationConfig = field(default_factory=GenerationConfig)

"""The whole configuration of a run, as dataclasses: each key with its type, and with what it may be.

`loading` merges `base:`, the YAML and `key=value` overrides into them. Names are GPT2Config's inside `model`, and
Composer's elsewhere. What hangs on several keys at once is in `checks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from data_prep.common.errors import BadInput
from data_prep.common.limits import (
    BUCKET,
    FILE_NAME,
    LINE,
    PATH,
    PROSE,
    SEQ_LEN,
    OneOf,
    Real,
    Rule,
    Text,
    Whole,
    read_number,
)


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
        text = text.strip()
        unit = next((unit for unit in LONGEST if text.endswith(unit)), "")
        try:
            number = read_number(text.removesuffix(unit))
            if unit and number.is_integer():
                return Duration(int(number), unit)
        except ValueError:
            pass
        raise BadInput(f"{where} = {text!r} is not a duration; write 300e9tok, 286102ba or 8ep")


# The longest duration in each unit. 300e9tok are the flagship's; a run beyond these is a slip of the keyboard.
LONGEST = {"tok": 10**15, "ba": 10**9, "ep": 10**6}


def batches_of(interval: str) -> int:
    """The batches of an interval such as `100ba`, which `load_config` has checked to be one."""
    return Duration.parse(interval, "interval").value


@dataclass(frozen=True)
class Span(Rule):
    """A duration in one of some units, of at least `least` of them."""

    units: tuple[str, ...] = ("ba",)
    least: int = 1

    def admits(self, value: Any) -> bool:
        """Whether it is a duration in one of the units, neither too short nor too long."""
        try:
            duration = Duration.parse(value, "")
        except BadInput:
            return False
        return duration.unit in self.units and self.least <= duration.value <= LONGEST[duration.unit]

    def __str__(self) -> str:
        spans = (f"from {self.least}{unit} to {LONGEST[unit]:.0e}{unit}" for unit in self.units)
        return f"a duration {' or '.join(spans).replace('e+0', 'e').replace('e+', 'e')}"


@dataclass(frozen=True)
class Items(Rule):
    """A list of `least` to `most` values; what each of them may be, the type of the list says."""

    least: int
    most: int

    def admits(self, value: Any) -> bool:
        """Whether it has so many values."""
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        return f"a list of {self.least if self.least == self.most else f'{self.least} to {self.most}'} values"


# What `scheduler.name` may be -> what the plan says of it. recipes/training/schedules.py computes them.
SCHEDULES = {
    "cosine": "cosine to {end:g}",
    "linear": "linear to {end:g}",
    "constant": "constant",
    "warmup_stable_decay": "constant, in the last {share:.3g} of the run linear to {end:g}",
}

# Upper ends are far beyond what anyone trains: they refuse a slip of the keyboard before it overflows or hangs.
Count = Annotated[int, Whole(1, 10**6)]
Sequences = Annotated[int, Whole(1, 2**20)]  # of a batch
Positions = Annotated[int, SEQ_LEN]
Share = Annotated[float, Real(0, 1, below=True)]
Above0 = Annotated[float, Real(0, 1, above=True)]
Epsilon = Annotated[float, Real(1e-20, 1)]  # less is 0 in fp32
Batches = Annotated[str, Span()]
Name = Annotated[str, FILE_NAME]
Line = Annotated[str, LINE]
Folder = Annotated[str, PATH]
Unit = Annotated[str, OneOf(("seconds", "minutes", "hours", "days"))]
# 30 days: locks, sockets and timedeltas take that long, and longer than a job no machine waits.
Seconds = Annotated[float, Real(1, 30 * 24 * 3600)]
WORLD_SIZE = Whole(1, 10**6)
NEW_TOKENS = Whole(1, 100_000)
TEMPERATURE = Real(0.01, 10, also=0)  # logits are divided by it; 0: the likeliest token
PRICE = Real(0, 10**6)
MFU = Real(1e-6, 1)
# Of a folder that is mixed in: a part of the names of metrics and of keys.
MIX_NAME = Text(
    lambda text: re.fullmatch(r"\w[\w-]{0,31}", text, re.ASCII), "a name of 1 to 32 letters, digits, - or _"
)
TAG = Text(lambda text: 0 < len(text.strip()) <= 64 and text.isprintable(), "a text of 1 to 64 characters")  # W&B's


@dataclass
class ModelConfig:
    """The architecture, under GPT2Config's names."""

    # Null in a YAML: that of `data.tokenizer`, and BioMedLM's until there is one.
    vocab_size: Annotated[int, Whole(2, 2**24)] = MISSING
    n_positions: Positions = MISSING
    n_embd: Annotated[int, Whole(1, 2**16)] = MISSING
    n_layer: Annotated[int, Whole(1, 1000)] = MISSING
    n_head: Annotated[int, Whole(1, 1024)] = MISSING
    activation_function: Annotated[str, OneOf(("gelu_new",))] = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    initializer_range: Above0 = 0.02
    attn_pdrop: Share = 0.1
    resid_pdrop: Share = 0.1
    embd_pdrop: Share = 0.1
    scale_attn_by_inverse_layer_idx: bool = True
    attn_implementation: Annotated[str, OneOf(("sdpa", "flash_attention_2"))] = "sdpa"


@dataclass
class MixConfig:
    """A further folder of token shards, of which each pass reads a share: old text that is not to be forgotten."""

    shards: Folder = MISSING
    remote: Folder | None = None  # as data.remote
    share: Annotated[float, Real(0, 1, above=True, below=True)] = MISSING  # of the samples of a pass


@dataclass
class DataConfig:
    """Where the token shards lie, what they must be, and how they are read."""

    shards: Folder = MISSING  # folder with train/, val/, manifest.json
    remote: Folder | None = (
        None  # folder or s3://, gs://, … of the same shards: what `shards` lacks is fetched from there
    )
    # Name -> a folder that is mixed in; its validation loss has that name. `shards` is read whole in each pass.
    mix: dict[str, MixConfig] | None = None
    tokenizer: Folder = MISSING  # folder of the tokenizer that made the shards
    seq_len: Positions = MISSING  # tokens a sample; must be the shards' own
    eos_between_documents: bool = True  # must be the shards' own
    # Fixes the sample order for any number of nodes that divides it or that it divides.
    num_canonical_nodes: Annotated[int, Whole(1, 1024)] = 1
    num_workers: Annotated[int, Whole(0, 256)] = 2  # loader processes a rank
    prefetch_factor: Annotated[int, Whole(1, 1024)] = 4  # batches each of them holds ready


@dataclass
class KernelsConfig:
    """How the model is computed: the same mathematics with other roundings; all off: transformers' own operations."""

    fused_gelu: bool = False  # gelu_new in one pass, which keeps its input only
    # Tokens whose logits are in fp32 at once; null: all of a microbatch.
    loss_chunk_tokens: Annotated[int, Whole(1, 2**24)] | None = None
    # Null: torch picks.
    sdpa_backend: Annotated[str, OneOf(("flash", "cudnn", "efficient", "math"))] | None = None
    compile: bool = False  # torch.compile of each block


@dataclass
class OptimizerConfig:
    """DecoupledAdamW. Decoupled: a step shrinks weights by (lr / initial lr) · weight_decay."""

    lr: Above0 = MISSING
    betas: Annotated[list[Share], Items(2, 2)] = field(default_factory=lambda: [0.9, 0.95])
    eps: Epsilon = 1e-8
    weight_decay: Annotated[float, Real(0, 1)] = MISSING


@dataclass
class SchedulerConfig:
    """Learning rate: linear warm-up from 0 to lr, then the shape that `name` gives, ending at alpha_f · lr."""

    name: Annotated[str, OneOf(tuple(SCHEDULES))] = "cosine"
    t_warmup: Annotated[str, Span(least=0)] = MISSING
    alpha_f: Annotated[float, Real(0, 1)] = 0.1  # share of lr
    # Of the run, for warmup_stable_decay: its last part, which falls.
    decay_share: Annotated[float, Real(0, 1, above=True, below=True)] | None = None


@dataclass
class FSDPConfig:
    """Fully sharded data parallelism over all ranks."""

    version: Annotated[int, Whole(1, 2)] = 2  # FSDP2; 1: FSDP1, on GPUs only
    # Composer's: DEFAULT = parameters in `precision`, fp32 reduction; PURE = both low; FULL = both fp32.
    mixed_precision: Annotated[str, OneOf(("DEFAULT", "PURE", "FULL"))] = "DEFAULT"
    reshard_after_forward: bool = True  # ZeRO-3; false keeps gathered parameters until backward (ZeRO-2)
    # Copies of the model, each sharded over ranks / this (HSDP).
    data_parallel_replicate_degree: Annotated[int, WORLD_SIZE] = 1


@dataclass
class SpeedMonitorConfig:
    """composer.callbacks.SpeedMonitor."""

    window_size: Count = 10
    time_unit: Unit = "hours"
    gpu_flops_available: Annotated[float, Real(0, 1e18, above=True)] | None = None


@dataclass
class LRMonitorConfig:
    """composer.callbacks.LRMonitor."""


@dataclass
class MemoryMonitorConfig:
    """composer.callbacks.MemoryMonitor."""

    dist_aggregate_batch_interval: Count | None = None


@dataclass
class RuntimeEstimatorConfig:
    """composer.callbacks.RuntimeEstimator."""

    skip_batches: Annotated[int, Whole(0, 10**6)] = 1
    time_unit: Unit = "hours"


@dataclass
class NormMonitorConfig:
    """callbacks.NormMonitor: global norms of the gradient, before it is clipped, and of the weights."""

    interval: Batches = "10ba"


@dataclass
class DataMonitorConfig:
    """callbacks.DataMonitor: the share of time that waits for data, and passes over it."""

    interval: Batches = "10ba"


@dataclass
class GenerateSamplesConfig:
    """callbacks.GenerateSamples: texts that the model writes from these prompts after each evaluation."""

    # Each is a text to continue; null: how samples of val begin. For no texts, null in the place of `generate_samples`.
    prompts: Annotated[list[Annotated[str, PROSE]], Items(1, 1000)] | None = None
    max_new_tokens: Annotated[int, NEW_TOKENS] = 48


@dataclass
class ConsoleConfig:
    """callbacks.Console: one readable line per interval."""

    interval: Batches = "10ba"


@dataclass
class NanGuardConfig:
    """callbacks.NanGuard: batches with NaN or Inf are skipped; so many in a row end the run."""

    max_in_a_row: Count = 3


@dataclass
class SpikeGuardConfig:
    """callbacks.SpikeGuard: back to before a loss spike, and around its data."""

    window_batches: Count = 100
    threshold: Annotated[float, Real(0, 10**6, above=True)] = (
        8.0  # robust standard deviations above the median of the window
    )
    min_rise: Annotated[float, Real(0, 100, above=True)] = 0.2  # nats a token above it
    patience_batches: Count = 3
    max_rewinds: Count = 3


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
    """recipes.training.wandb_run, Composer's WandBLogger. Nothing leaves the machine unless `mode` is `online`."""

    project: Name = "biomedlm"
    mode: Annotated[str, OneOf(("offline", "online"))] = "offline"
    entity: Name | None = None
    group: Line | None = None
    tags: Annotated[list[Annotated[str, TAG]], Items(0, 100)] = field(default_factory=list)


@dataclass
class TensorboardConfig:
    """recipes.training.tensorboard_files, into the run folder: tensorboard --logdir runs."""

    flush_interval: Count = 100  # batches


@dataclass
class LoggersConfig:
    """Which loggers run beside the run folder's metrics.jsonl; null leaves one out."""

    wandb: WandBConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass
class ResumeConfig:
    """How a run is resumed."""

    # What may differ from the run that the folder holds, by the names that the refusal prints.
    allow: Annotated[list[Line], Items(0, 1000)] = field(default_factory=list)
    replay: bool = True  # compute the first batch twice, and compare it with what was recorded of it


@dataclass
class RunConfig:
    """What every run has, whatever it trains."""

    run_name: Name = MISSING
    run_dir: Folder = "runs/${run_name}"  # any path
    seed: Annotated[int, Whole(0, 2**31 - 1)] = 17  # the ranks add their numbers, and libraries take 32 bits

    max_duration: Annotated[str, Span(("tok", "ba", "ep"))] = MISSING  # 300e9tok, 286102ba or 8ep
    global_train_batch_size: Sequences = MISSING
    device_train_microbatch_size: Sequences = MISSING  # that a rank computes at once
    device_eval_batch_size: Sequences = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_clipping_norm: Annotated[float, Real(0, 10**9, above=True)] | None = 1.0  # null: none

    device: Annotated[str, OneOf(("cpu", "gpu"))] | None = None  # null: a GPU if there is one
    precision: Annotated[str, OneOf(("fp32", "amp_bf16"))] = MISSING
    world_size: Annotated[int, WORLD_SIZE] = (
        1  # ranks that the plan is made for; the launcher decides how many there are
    )
    fsdp: FSDPConfig | None = None  # used on 2 ranks and more
    activation_checkpointing: bool = False
    connect_timeout_s: Seconds = 300.0  # longest that the ranks wait for each other at the start
    # Longest that a rank waits in a collective; above stall_timeout_s, which says where, as NCCL's end does not.
    dist_timeout_s: Seconds = 1800.0

    eval_interval: Batches = MISSING
    eval_subset_num_batches: Annotated[int, Whole(1, 10**9, also=-1)] = -1  # -1: all of val
    save_interval: Batches = MISSING
    save_num_checkpoints_to_keep: Annotated[int, Whole(1, 10**6, also=-1)] = -1  # of the newest; -1: all
    save_permanent_interval: Batches | None = None  # these are kept for ever
    save_remote: Annotated[str, BUCKET] | None = None  # the run folder is copied to prefix/run_name; null: nowhere
    # What a full disk or a failed upload does to the run.
    on_save_error: Annotated[str, OneOf(("stop", "continue"))] = "stop"
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    stall_timeout_s: Seconds | None = 900.0  # longest that a batch or a save may take; null: for ever
    # In any currency: what the run has cost so far is logged.
    price_per_gpu_hour: Annotated[float, PRICE] | None = None
    progress_bar: bool = True  # on a terminal; never into a file or pipe
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)


@dataclass
class TrainConfig(RunConfig):
    """Everything that decides a pre-training run."""

    # Model folder, run folder or checkpoint whose weights the run begins with; `model` is then what it is, and may be
    # left out. Null: weights are drawn.
    init_from: Folder | None = None
    # Of the model's, the first; null: all.
    activation_checkpointing_blocks: Annotated[int, Whole(1, 1000)] | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class LoraConfig:
    """peft.LoraConfig: low-rank changes of all linear maps of the blocks; the weights themselves stay as they are."""

    r: Annotated[int, Whole(1, 2**16)] = 16
    lora_alpha: Count = 32
    lora_dropout: Share = 0.05


@dataclass
class GenerationConfig:
    """How targets are written: beam search, or sampling where `temperature` is above 0."""

    num_beams: Annotated[int, Whole(1, 100)] = 5
    no_repeat_ngram_size: Annotated[int, Whole(0, 1000)] = 6  # 0: any may be repeated
    length_penalty: Annotated[float, Real(-100, 100)] = -0.5
    max_new_tokens: Annotated[int, NEW_TOKENS] = 128
    temperature: Annotated[float, TEMPERATURE] = 0.0
    top_p: Above0 = 0.95


@dataclass
class FinetuneConfig(RunConfig):
    """Everything that decides a fine-tuning run."""

    preset: Name = "one-gpu-80gb"  # a file of yamls/finetune/presets: what fits where
    task: Name = MISSING  # a folder in `data`; which files it holds: finetune.py --describe
    model: Folder = MISSING  # exported folder, original-style BioMedLM folder, run folder or checkpoint
    max_duration: Annotated[str, Span(("ba", "ep"))] = MISSING
    data: Folder = "data/tasks"  # holds a folder a task
    seq_len: Positions = 512  # tokens an example is cut to
    warmup_share: Share = 0.5  # of the run; linear from 0, then linear to 0
    lora: LoraConfig | None = None  # null: all weights are trained
    score_test: bool = True  # false: dev alone, to choose by; true on a run that is finished adds test
    gpu_memory_gb: Annotated[float, Real(0, 10_000, above=True)] | None = (
        None  # the plan must fit into it; null: not checked
    )
    generation: GenerationConfig = field(default_factory=GenerationConfig)

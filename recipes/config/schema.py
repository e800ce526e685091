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


# What `scheduler.name` may be -> what the plan says of it. With {end} it reads alpha_f, with {share} decay_share; a key
# that it does not read is refused. recipes/training/schedules.py computes them.
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
    """The architecture, under GPT2Config's names. With `init_from` it is read from there, and may be left out."""

    vocab_size: Annotated[int, Whole(2, 2**24)] = MISSING
    """Rows of the token embedding. Null in a YAML: the size of `data.tokenizer`, and 28,896 until that is trained."""
    n_positions: Positions = MISSING
    """Longest sequence in tokens; rows of the position embedding."""
    n_embd: Annotated[int, Whole(1, 2**16)] = MISSING
    """Width: features of a token between blocks. A multiple of `n_head`."""
    n_layer: Annotated[int, Whole(1, 1000)] = MISSING
    """Number of blocks."""
    n_head: Annotated[int, Whole(1, 1024)] = MISSING
    """Attention heads of a block."""
    activation_function: Annotated[str, OneOf(("gelu_new",))] = "gelu_new"
    """Activation of the MLP: the tanh form of GELU, as GPT-2 has it."""
    layer_norm_epsilon: Epsilon = 1e-5
    """Added to the variance in each LayerNorm."""
    initializer_range: Above0 = 0.02
    """Standard deviation of the weights at the start."""
    attn_pdrop: Share = 0.1
    """Dropout of attention weights."""
    resid_pdrop: Share = 0.1
    """Dropout of what attention and MLP add to the residual stream."""
    embd_pdrop: Share = 0.1
    """Dropout of the embeddings."""
    scale_attn_by_inverse_layer_idx: bool = True
    """Divide attention logits by the number of the layer, too, as BioMedLM does."""
    attn_implementation: Annotated[str, OneOf(("sdpa", "flash_attention_2"))] = "sdpa"
    """Attention of torch, or of the package flash-attn (GPUs only)."""


@dataclass
class MixConfig:
    """A further folder of token shards, of which each pass reads a share: old text that must not be forgotten."""

    shards: Folder = MISSING
    """Folder with train/, val/ and manifest.json."""
    remote: Folder | None = None
    """Where files that `shards` lacks are fetched from, as in `data.remote`."""
    share: Annotated[float, Real(0, 1, above=True, below=True)] = MISSING
    """Share of the samples of a pass. The shares of all folders leave the rest to `data.shards`."""


@dataclass
class DataConfig:
    """Where the token shards are, what they must be, and how they are read."""

    shards: Folder = MISSING
    """Folder with train/, val/ and manifest.json, made by data_prep/shards.py. Each pass reads all of it."""
    remote: Folder | None = None
    """Folder or object store (s3://, gs://, …) with the same shards: files that `shards` lacks are fetched from it."""
    mix: dict[str, MixConfig] | None = None
    """Name -> a folder that is mixed in. Its validation loss is logged under that name."""
    tokenizer: Folder = MISSING
    """Folder of the tokenizer that made the shards; another one is refused."""
    seq_len: Positions = MISSING
    """Tokens of a sample. Must be the shards' own."""
    eos_between_documents: bool = True
    """Whether an end-of-text token stands between documents. Must be the shards' own."""
    num_canonical_nodes: Annotated[int, Whole(1, 1024)] = 1
    """Fixes the order of samples for every number of nodes that divides it or that it divides."""
    num_workers: Annotated[int, Whole(0, 256)] = 2
    """Processes of a rank that load data; 0: the rank loads it itself."""
    prefetch_factor: Annotated[int, Whole(1, 1024)] = 4
    """Batches that each of these processes holds ready."""


@dataclass
class KernelsConfig:
    """How the model is computed: the same mathematics, rounded otherwise. All off: transformers' own operations."""

    fused_gelu: bool = False
    """Compute gelu_new in one pass that keeps only its input, for less memory."""
    loss_chunk_tokens: Annotated[int, Whole(1, 2**24)] | None = None
    """Tokens whose logits are in fp32 at a time, for less memory; null: all of a microbatch."""
    sdpa_backend: Annotated[str, OneOf(("flash", "cudnn", "efficient", "math"))] | None = None
    """Attention kernel of torch; null: torch chooses."""
    compile: bool = False
    """Compile each block with torch.compile."""


@dataclass
class OptimizerConfig:
    """DecoupledAdamW. Decoupled: a step shrinks weights by (lr / initial lr) · weight_decay."""

    lr: Above0 = MISSING
    """Learning rate after warm-up, the highest of the run."""
    betas: Annotated[list[Share], Items(2, 2)] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the running means of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the root of the running mean of squares."""
    weight_decay: Annotated[float, Real(0, 1)] = MISSING
    """Share by which a step at the highest learning rate shrinks the weights: lr times what torch's AdamW is given."""


@dataclass
class SchedulerConfig:
    """Learning rate: a linear warm-up from 0 to lr, then the shape that `name` gives, down to alpha_f · lr."""

    name: Annotated[str, OneOf(tuple(SCHEDULES))] = "cosine"
    """Shape after the warm-up."""
    t_warmup: Annotated[str, Span(least=0)] = MISSING
    """Length of the warm-up."""
    alpha_f: Annotated[float, Real(0, 1)] = 0.1
    """Learning rate at the end of the run, as a share of lr. 1 for a schedule that ends at its highest rate."""
    decay_share: Annotated[float, Real(0, 1, above=True, below=True)] | None = None
    """Last part of the run, in which a schedule that held its highest rate falls, as a share. Null for others."""


@dataclass
class FSDPConfig:
    """Fully sharded data parallelism over all ranks."""

    version: Annotated[int, Whole(1, 2)] = 2
    """FSDP2, or FSDP1 (GPUs only)."""
    mixed_precision: Annotated[str, OneOf(("DEFAULT", "PURE", "FULL"))] = "DEFAULT"
    """Composer's names. DEFAULT: parameters in `precision`, gradients reduced in fp32; PURE: both in `precision`; FULL:
    both in fp32."""
    reshard_after_forward: bool = True
    """Free gathered parameters after forward (ZeRO-3); false keeps them until backward (ZeRO-2)."""
    data_parallel_replicate_degree: Annotated[int, WORLD_SIZE] = 1
    """Copies of the model, each sharded over this part of the ranks (HSDP)."""


@dataclass
class SpeedMonitorConfig:
    """composer.callbacks.SpeedMonitor: throughput."""

    window_size: Count = 10
    """Batches that it averages over."""
    time_unit: Unit = "hours"
    """Unit of the times that it logs."""
    gpu_flops_available: Annotated[float, Real(0, 1e18, above=True)] | None = None
    """Peak FLOP/s of a GPU, for the MFU; null: Composer's number for the device."""


@dataclass
class LRMonitorConfig:
    """composer.callbacks.LRMonitor: the learning rate of each batch."""


@dataclass
class MemoryMonitorConfig:
    """composer.callbacks.MemoryMonitor: what torch's allocator holds on the GPU."""

    dist_aggregate_batch_interval: Count | None = None
    """Batches between two collections from all ranks; null: rank 0 alone."""


@dataclass
class RuntimeEstimatorConfig:
    """composer.callbacks.RuntimeEstimator: the time that is left."""

    skip_batches: Annotated[int, Whole(0, 10**6)] = 1
    """Batches at the start that it does not time."""
    time_unit: Unit = "hours"
    """Unit of the time that it logs."""


@dataclass
class NormMonitorConfig:
    """callbacks.NormMonitor: norms of the gradient, before it is clipped, and of the weights."""

    interval: Batches = "10ba"
    """How often they are computed."""


@dataclass
class DataMonitorConfig:
    """callbacks.DataMonitor: the share of time that waits for data, and the number of passes over them."""

    interval: Batches = "10ba"
    """How often they are logged."""


@dataclass
class GenerateSamplesConfig:
    """callbacks.GenerateSamples: texts that the model writes after each evaluation."""

    prompts: Annotated[list[Annotated[str, PROSE]], Items(1, 1000)] | None = None
    """Texts that it continues; null: beginnings of samples of val. For no texts, say generate_samples=null."""
    max_new_tokens: Annotated[int, NEW_TOKENS] = 48
    """Tokens that it writes at most."""


@dataclass
class ConsoleConfig:
    """callbacks.Console: a readable line an interval."""

    interval: Batches = "10ba"
    """How often a line is printed."""


@dataclass
class NanGuardConfig:
    """callbacks.NanGuard: skips batches whose loss or gradient is NaN or Inf."""

    max_in_a_row: Count = 3
    """So many of them in a row end the run with exit code 3."""


@dataclass
class SpikeGuardConfig:
    """callbacks.SpikeGuard: rewinds to a checkpoint from before a loss spike, and skips the data of the spike."""

    window_batches: Count = 100
    """A loss is compared with the median of so many batches before it."""
    threshold: Annotated[float, Real(0, 10**6, above=True)] = 8.0
    """A spike is at least so many robust standard deviations above that median."""
    min_rise: Annotated[float, Real(0, 100, above=True)] = 0.2
    """A spike is at least so many nats a token above it, too."""
    patience_batches: Count = 3
    """A spike lasts at least so many batches."""
    max_rewinds: Count = 3
    """A spike after so many rewinds ends the run with exit code 3."""


@dataclass
class CallbacksConfig:
    """Which callbacks run, and with what; null leaves one out."""

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
    """Weights & Biases, by Composer's WandBLogger. Nothing leaves the machine unless `mode` is `online`."""

    project: Name = "biomedlm"
    """Project that the run is shown under."""
    mode: Annotated[str, OneOf(("offline", "online"))] = "offline"
    """offline: written into the run folder, for `wandb sync`; online: sent to the server as well."""
    entity: Name | None = None
    """User or team; null: the account's own."""
    group: Line | None = None
    """Group that the run is shown in."""
    tags: Annotated[list[Annotated[str, TAG]], Items(0, 100)] = field(default_factory=list)
    """Tags of the run."""


@dataclass
class TensorboardConfig:
    """Event files in the run folder, for `tensorboard --logdir runs`."""

    flush_interval: Count = 100
    """Batches after which they are written to disk."""


@dataclass
class LoggersConfig:
    """Which loggers run beside the run folder's metrics.jsonl; null leaves one out."""

    wandb: WandBConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass
class ResumeConfig:
    """How a run is resumed."""

    allow: Annotated[list[Line], Items(0, 1000)] = field(default_factory=list)
    """Settings that may differ from those of the run in the folder, under the names that the refusal prints."""
    replay: bool = True
    """Compute the first batch twice, and compare it with what was recorded of it."""


@dataclass
class RunConfig:
    """What every run has, whatever it trains."""

    run_name: Name = MISSING
    """Name of the run, its folder, its copy in `save_remote` and in W&B."""
    run_dir: Folder = "runs/${run_name}"
    """Folder of the run: checkpoints, metrics, report. A run is resumed by starting it again with the same folder."""
    seed: Annotated[int, Whole(0, 2**31 - 1)] = 17  # the ranks add their numbers, and libraries take 32 bits
    """Seed of weights, dropout and the order of the data."""

    max_duration: Annotated[str, Span(("tok", "ba", "ep"))] = MISSING
    """Length of the run, such as 300e9tok, 286102ba or 8ep."""
    global_train_batch_size: Sequences = MISSING
    """Sequences of a batch, over all ranks."""
    device_train_microbatch_size: Sequences = MISSING
    """Sequences that a rank computes at a time; more of them take more memory."""
    device_eval_batch_size: Sequences = MISSING
    """Sequences that a rank evaluates at a time."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_clipping_norm: Annotated[float, Real(0, 10**9, above=True)] | None = 1.0
    """Norm that the gradient is clipped to; null: not clipped."""

    device: Annotated[str, OneOf(("cpu", "gpu"))] | None = None
    """Null: a GPU if there is one."""
    precision: Annotated[str, OneOf(("fp32", "amp_bf16"))] = MISSING
    """Precision of the matrix products; a CPU trains in fp32."""
    world_size: Annotated[int, WORLD_SIZE] = 1
    """Number of ranks (processes, one a GPU) that the plan is made for. The launcher decides how many there are."""
    fsdp: FSDPConfig | None = None
    """How two ranks and more share the model; null: each holds all of it (DDP)."""
    activation_checkpointing: bool = False
    """Keep only the inputs of blocks, and compute them again in backward: less memory, a third more work."""
    connect_timeout_s: Seconds = 300.0
    """Longest that the ranks wait for each other at the start."""
    dist_timeout_s: Seconds = 1800.0
    """Longest that a rank waits in a collective. Above `stall_timeout_s`, whose message says where a rank hangs."""

    eval_interval: Batches = MISSING
    """How often val is evaluated."""
    eval_subset_num_batches: Annotated[int, Whole(1, 10**9, also=-1)] = -1
    """Batches of val that are evaluated; -1: all."""
    save_interval: Batches = MISSING
    """How often a checkpoint is saved."""
    save_num_checkpoints_to_keep: Annotated[int, Whole(1, 10**6, also=-1)] = -1
    """Newest checkpoints that are kept; -1: all."""
    save_permanent_interval: Batches | None = None
    """How often a checkpoint is kept for ever. A multiple of `save_interval`."""
    save_remote: Annotated[str, BUCKET] | None = None
    """Object store (s3://, gs://, …) to which the run folder is copied, under run_name; null: none."""
    on_save_error: Annotated[str, OneOf(("stop", "continue"))] = "stop"
    """What a full disk or a failed upload does to the run."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    stall_timeout_s: Seconds | None = 900.0
    """Longest that a batch or a save may take before the run ends with the stacks of all threads; null: for ever."""
    price_per_gpu_hour: Annotated[float, PRICE] | None = None
    """In any currency; the cost of the run so far is logged."""
    progress_bar: bool = True
    """On a terminal; never in a file or pipe."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)


@dataclass
class TrainConfig(RunConfig):
    """Everything that decides a pre-training run."""

    init_from: Folder | None = None
    """Model folder, run folder or checkpoint whose weights the run starts from; null: random weights."""
    activation_checkpointing_blocks: Annotated[int, Whole(1, 1000)] | None = None
    """First blocks that `activation_checkpointing` is for; null: all."""
    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class LoraConfig:
    """peft.LoraConfig: low-rank changes of all linear maps of the blocks; the weights themselves stay as they are."""

    r: Annotated[int, Whole(1, 2**16)] = 16
    """Rank of the changes."""
    lora_alpha: Count = 32
    """The changes are multiplied by lora_alpha / r."""
    lora_dropout: Share = 0.05
    """Dropout of their input."""


@dataclass
class GenerationConfig:
    """How targets are written: beam search, or sampling where `temperature` is above 0."""

    num_beams: Annotated[int, Whole(1, 100)] = 5
    """Number of beams."""
    no_repeat_ngram_size: Annotated[int, Whole(0, 1000)] = 6
    """No sequence of so many tokens is written twice; 0: any may be."""
    length_penalty: Annotated[float, Real(-100, 100)] = -0.5
    """Exponent of the length by which a beam's score is divided; below 0, short targets are preferred."""
    max_new_tokens: Annotated[int, NEW_TOKENS] = 128
    """Longest target in tokens."""
    temperature: Annotated[float, TEMPERATURE] = 0.0
    """Logits are divided by it; 0: beam search."""
    top_p: Above0 = 0.95
    """Sampling chooses among the likeliest tokens that have this share of the probability together."""


@dataclass
class FinetuneConfig(RunConfig):
    """Everything that decides a fine-tuning run."""

    preset: Name = "one-gpu-80gb"
    """A file of yamls/finetune/presets: settings that fit a device."""
    task: Name = MISSING
    """Folder in `data` with the questions; `python recipes/finetune.py --describe` prints the formats."""
    model: Folder = MISSING
    """Exported folder, folder in BioMedLM's published form, run folder or checkpoint."""
    max_duration: Annotated[str, Span(("ba", "ep"))] = MISSING
    """Length of the run, such as 8ep."""
    data: Folder = "data/tasks"
    """Folder that holds a folder a task."""
    seq_len: Positions = 512
    """Tokens that an example is cut to."""
    warmup_share: Share = 0.5
    """Part of the run in which the learning rate rises linearly from 0; then it falls linearly to 0."""
    lora: LoraConfig | None = None
    """Null: all weights are trained."""
    score_test: bool = True
    """Score test as well as dev. False: dev alone, to choose settings by; starting the finished run again with true
    adds the score of test."""
    gpu_memory_gb: Annotated[float, Real(0, 10_000, above=True)] | None = None
    """Memory that the plan must fit into; null: not checked."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

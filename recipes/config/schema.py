"""The whole configuration of a run, as dataclasses: each key with its type and its allowed values.

`loading` merges `base:`, the YAML and `key=value` overrides into them. The names are GPT2Config's inside `model`, and
Composer's elsewhere. Rules that concern several keys at once are in `checks`.
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
            text: a number with its unit. The number must be whole once it is written out, such as 300e9.
            where: key of the duration, for the message.

        Raises:
            BadInput: the text does not have this form.
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


# The longest duration in each unit. The flagship takes 300e9tok; anything beyond these bounds is a typing error.
LONGEST = {"tok": 10**15, "ba": 10**9, "ep": 10**6}


def batches_of(interval: str) -> int:
    """Number of batches of an interval such as `100ba`. `load_config` has already checked its form."""
    return Duration.parse(interval, "interval").value


@dataclass(frozen=True)
class Span(Rule):
    """A duration in one of `units`, of at least `least` of that unit."""

    units: tuple[str, ...] = ("ba",)
    least: int = 1

    def admits(self, value: Any) -> bool:
        """Whether the value is a duration in one of the units, neither too short nor too long."""
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
    """A list of `least` to `most` values. The type of the list says which values are allowed in it."""

    least: int
    most: int

    def admits(self, value: Any) -> bool:
        """Whether the list has an allowed number of values."""
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        return f"a list of {self.least if self.least == self.most else f'{self.least} to {self.most}'} values"


# Allowed `scheduler.name` -> its description in the plan. A schedule reads alpha_f if its description has {end}, and
# decay_share if it has {share}; a key that a schedule does not read is refused. training/schedules.py computes them.
SCHEDULES = {
    "cosine": "cosine to {end:g}",
    "linear": "linear to {end:g}",
    "constant": "constant",
    "warmup_stable_decay": "constant, in the last {share:.3g} of the run linear to {end:g}",
}

# The upper bounds are far beyond any real run: they refuse a typing error before it overflows a number or hangs.
Count = Annotated[int, Whole(1, 10**6)]
Sequences = Annotated[int, Whole(1, 2**20)]  # number of sequences in a batch
Positions = Annotated[int, SEQ_LEN]
Share = Annotated[float, Real(0, 1, below=True)]
Above0 = Annotated[float, Real(0, 1, above=True)]
Epsilon = Annotated[float, Real(1e-20, 1)]  # less is 0 in fp32
Batches = Annotated[str, Span()]
Name = Annotated[str, FILE_NAME]
Line = Annotated[str, LINE]
Folder = Annotated[str, PATH]
Unit = Annotated[str, OneOf(("seconds", "minutes", "hours", "days"))]
# At most 30 days: locks, sockets and timedeltas accept that, and no job waits longer.
Seconds = Annotated[float, Real(1, 30 * 24 * 3600)]
WORLD_SIZE = Whole(1, 10**6)
NEW_TOKENS = Whole(1, 100_000)
TEMPERATURE = Real(0.01, 10, also=0)  # divides the logits; 0: always the likeliest token
PRICE = Real(0, 10**6)
MFU = Real(1e-6, 1)
# Name of a folder that is mixed in. It becomes a part of the names of metrics and keys.
MIX_NAME = Text(
    lambda text: re.fullmatch(r"\w[\w-]{0,31}", text, re.ASCII), "a name of 1 to 32 letters, digits, - or _"
)
TAG = Text(lambda text: 0 < len(text.strip()) <= 64 and text.isprintable(), "a text of 1 to 64 characters")  # W&B's


@dataclass
class ModelConfig:
    """The architecture, under GPT2Config's names. With `init_from` it is read from that model and may be left out."""

    vocab_size: Annotated[int, Whole(2, 2**24)] = MISSING
    """Rows of the token embedding. Null in a YAML: the size of `data.tokenizer`, or 28,896 before that is trained."""
    n_positions: Positions = MISSING
    """Longest sequence in tokens: the number of rows of the position embedding."""
    n_embd: Annotated[int, Whole(1, 2**16)] = MISSING
    """Width of the model: features of a token between blocks. Must be a multiple of `n_head`."""
    n_layer: Annotated[int, Whole(1, 1000)] = MISSING
    """Number of blocks."""
    n_head: Annotated[int, Whole(1, 1024)] = MISSING
    """Number of attention heads in a block."""
    activation_function: Annotated[str, OneOf(("gelu_new",))] = "gelu_new"
    """Activation function of the MLP: the tanh form of GELU, as in GPT-2."""
    layer_norm_epsilon: Epsilon = 1e-5
    """Number that each LayerNorm adds to the variance."""
    initializer_range: Above0 = 0.02
    """Standard deviation of the initial random weights."""
    attn_pdrop: Share = 0.1
    """Dropout probability of attention weights."""
    resid_pdrop: Share = 0.1
    """Dropout probability of the outputs of attention and MLP, before they are added to the residual stream."""
    embd_pdrop: Share = 0.1
    """Dropout probability of the embeddings."""
    scale_attn_by_inverse_layer_idx: bool = True
    """Also divide the attention logits of layer i by i + 1, as BioMedLM does."""
    attn_implementation: Annotated[str, OneOf(("sdpa", "flash_attention_2"))] = "sdpa"
    """sdpa: attention of torch; flash_attention_2: attention of the package flash-attn (GPUs only)."""


@dataclass
class MixConfig:
    """A further folder of token shards that is mixed in, for example old text that the model must not forget."""

    shards: Folder = MISSING
    """Folder with train/, val/ and manifest.json."""
    remote: Folder | None = None
    """Folder or object store to fetch missing files of `shards` from, as in `data.remote`."""
    share: Annotated[float, Real(0, 1, above=True, below=True)] = MISSING
    """Share of the samples of each pass that are read from this folder. `data.shards` gives the rest."""


@dataclass
class DataConfig:
    """Where the token shards are, what form they must have, and how they are read."""

    shards: Folder = MISSING
    """Folder with train/, val/ and manifest.json, made by data_prep/shards.py. Each pass reads all of its samples."""
    remote: Folder | None = None
    """Folder or object store (s3://, gs://, …) with the same shards, to fetch missing files of `shards` from."""
    mix: dict[str, MixConfig] | None = None
    """Further folders of shards by name. The validation loss of each is logged under its name."""
    tokenizer: Folder = MISSING
    """Folder of the tokenizer that made the shards. A different tokenizer is refused."""
    seq_len: Positions = MISSING
    """Tokens of a sample. Must be equal to that of the shards."""
    eos_between_documents: bool = True
    """Whether an end-of-text token stands between documents. Must be equal to that of the shards."""
    num_canonical_nodes: Annotated[int, Whole(1, 1024)] = 1
    """The order of samples is the same for every number of nodes that divides this number or is a multiple of it."""
    num_workers: Annotated[int, Whole(0, 256)] = 2
    """Processes that load data for one rank; 0: the rank itself loads the data."""
    prefetch_factor: Annotated[int, Whole(1, 1024)] = 4
    """Number of batches that each of these processes prepares in advance."""


@dataclass
class KernelsConfig:
    """Faster operations: the same mathematics with other rounding. All off: transformers' own operations."""

    fused_gelu: bool = False
    """Compute gelu_new in one pass that keeps only its input, which saves memory."""
    loss_chunk_tokens: Annotated[int, Whole(1, 2**24)] | None = None
    """Number of tokens whose logits are held in fp32 at the same time, to save memory; null: a whole microbatch."""
    sdpa_backend: Annotated[str, OneOf(("flash", "cudnn", "efficient", "math"))] | None = None
    """Attention kernel of torch; null: torch chooses."""
    compile: bool = False
    """Compile each block with torch.compile."""


@dataclass
class OptimizerConfig:
    """DecoupledAdamW. Decoupled means that a step shrinks weights by the share (lr / initial lr) · weight_decay."""

    lr: Above0 = MISSING
    """Learning rate at the end of the warm-up, which is the highest of the run."""
    betas: Annotated[list[Share], Items(2, 2)] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the running mean of the gradient and of the running mean of its square."""
    eps: Epsilon = 1e-8
    """Number that is added to the root of the running mean of squares."""
    weight_decay: Annotated[float, Real(0, 1)] = MISSING
    """Share by which a step at the highest learning rate shrinks the weights: lr times torch AdamW's weight decay."""


@dataclass
class SchedulerConfig:
    """Learning rate: a linear warm-up from 0 to lr, then the shape that `name` gives, down to alpha_f · lr."""

    name: Annotated[str, OneOf(tuple(SCHEDULES))] = "cosine"
    """Shape after the warm-up."""
    t_warmup: Annotated[str, Span(least=0)] = MISSING
    """Length of the warm-up."""
    alpha_f: Annotated[float, Real(0, 1)] = 0.1
    """Learning rate at the end of the run, as a share of lr. Must be 1 for a constant schedule."""
    decay_share: Annotated[float, Real(0, 1, above=True, below=True)] | None = None
    """For warmup_stable_decay: share of the run, at its end, in which the learning rate falls. Null for the others."""


@dataclass
class FSDPConfig:
    """Fully sharded data parallelism over all ranks."""

    version: Annotated[int, Whole(1, 2)] = 2
    """2: FSDP2; 1: FSDP1 (GPUs only)."""
    mixed_precision: Annotated[str, OneOf(("DEFAULT", "PURE", "FULL"))] = "DEFAULT"
    """Composer's names. DEFAULT: parameters in `precision`, gradients reduced in fp32; PURE: both in `precision`; FULL:
    both in fp32."""
    reshard_after_forward: bool = True
    """Free the gathered parameters after forward (ZeRO-3). False keeps them until backward (ZeRO-2)."""
    data_parallel_replicate_degree: Annotated[int, WORLD_SIZE] = 1
    """Number of copies of the model. Each copy is sharded over an equal part of the ranks (HSDP)."""


@dataclass
class SpeedMonitorConfig:
    """composer.callbacks.SpeedMonitor: throughput."""

    window_size: Count = 10
    """Number of batches to average over."""
    time_unit: Unit = "hours"
    """Unit of the logged times."""
    gpu_flops_available: Annotated[float, Real(0, 1e18, above=True)] | None = None
    """Peak FLOP/s of a GPU, to compute the MFU from; null: Composer's number for the device."""


@dataclass
class LRMonitorConfig:
    """composer.callbacks.LRMonitor: the learning rate of each batch."""


@dataclass
class MemoryMonitorConfig:
    """composer.callbacks.MemoryMonitor: memory of torch's allocator on the GPU."""

    dist_aggregate_batch_interval: Count | None = None
    """Number of batches after which the numbers of all ranks are collected; null: only rank 0 is measured."""


@dataclass
class RuntimeEstimatorConfig:
    """composer.callbacks.RuntimeEstimator: the remaining time."""

    skip_batches: Annotated[int, Whole(0, 10**6)] = 1
    """Number of batches at the start that are not timed."""
    time_unit: Unit = "hours"
    """Unit of the logged time."""


@dataclass
class NormMonitorConfig:
    """callbacks.NormMonitor: norm of the gradient, before it is clipped, and norm of the weights."""

    interval: Batches = "10ba"
    """How often the norms are computed."""


@dataclass
class DataMonitorConfig:
    """callbacks.DataMonitor: share of the time in which the run waits for data, and number of passes over the data."""

    interval: Batches = "10ba"
    """How often both are logged."""


@dataclass
class GenerateSamplesConfig:
    """callbacks.GenerateSamples: texts that the model writes after each evaluation."""

    prompts: Annotated[list[Annotated[str, PROSE]], Items(1, 1000)] | None = None
    """Texts to continue; null: beginnings of samples of val. To get no texts, set generate_samples=null."""
    max_new_tokens: Annotated[int, NEW_TOKENS] = 48
    """Largest number of tokens to write after a prompt."""


@dataclass
class ConsoleConfig:
    """callbacks.Console: a readable line of the most important metrics."""

    interval: Batches = "10ba"
    """How often a line is printed."""


@dataclass
class NanGuardConfig:
    """callbacks.NanGuard: skips batches whose loss or gradient is NaN or Inf."""

    max_in_a_row: Count = 3
    """Number of skipped batches in a row that ends the run with exit code 3."""


@dataclass
class SpikeGuardConfig:
    """callbacks.SpikeGuard: rewinds to a checkpoint from before a loss spike, and skips the data of the spike."""

    window_batches: Count = 100
    """Number of earlier batches whose median loss a loss is compared with."""
    threshold: Annotated[float, Real(0, 10**6, above=True)] = 8.0
    """Smallest rise above that median, in robust standard deviations, that is a spike."""
    min_rise: Annotated[float, Real(0, 100, above=True)] = 0.2
    """Smallest rise above that median, in nats a token, that is a spike. Both conditions must hold."""
    patience_batches: Count = 3
    """Number of batches in a row that must be that high before the run rewinds."""
    max_rewinds: Count = 3
    """Number of rewinds after which a further spike ends the run with exit code 3."""


@dataclass
class CallbacksConfig:
    """Which callbacks run, and their settings; null leaves a callback out."""

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
    """W&B project of the run."""
    mode: Annotated[str, OneOf(("offline", "online"))] = "offline"
    """offline: metrics are written into the run folder, for `wandb sync`; online: they are also sent to the server."""
    entity: Name | None = None
    """User or team; null: the default of your account."""
    group: Line | None = None
    """Group that the run is shown in."""
    tags: Annotated[list[Annotated[str, TAG]], Items(0, 100)] = field(default_factory=list)
    """Tags of the run."""


@dataclass
class TensorboardConfig:
    """Event files in the run folder, for `tensorboard --logdir runs`."""

    flush_interval: Count = 100
    """Number of batches after which the event files are written to disk."""


@dataclass
class LoggersConfig:
    """Which loggers run in addition to metrics.jsonl in the run folder; null leaves a logger out."""

    wandb: WandBConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass
class ResumeConfig:
    """How a run is resumed."""

    allow: Annotated[list[Line], Items(0, 1000)] = field(default_factory=list)
    """Settings that may differ from those of the run in the folder. The error message prints their names."""
    replay: bool = True
    """Compute the first batch twice, and compare the loss with the recorded loss."""


@dataclass
class RunConfig:
    """Settings of every run, of pre-training and fine-tuning."""

    run_name: Name = MISSING
    """Name of the run, of its folder, of its copy in `save_remote`, and in W&B."""
    run_dir: Folder = "runs/${run_name}"
    """Folder of the run: checkpoints, metrics, report. A run is resumed by starting it again with the same folder."""
    seed: Annotated[int, Whole(0, 2**31 - 1)] = 17  # each rank adds its number, and libraries accept only 32 bits
    """Seed of the initial weights, dropout and the order of the data."""

    max_duration: Annotated[str, Span(("tok", "ba", "ep"))] = MISSING
    """Length of the run, such as 300e9tok, 286102ba or 8ep."""
    global_train_batch_size: Sequences = MISSING
    """Number of sequences in a batch, over all ranks."""
    device_train_microbatch_size: Sequences = MISSING
    """Number of sequences that a rank computes at a time. More sequences need more memory."""
    device_eval_batch_size: Sequences = MISSING
    """Number of sequences that a rank evaluates at a time."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_clipping_norm: Annotated[float, Real(0, 10**9, above=True)] | None = 1.0
    """Largest norm of the gradient, to which a larger gradient is scaled down; null: no clipping."""

    device: Annotated[str, OneOf(("cpu", "gpu"))] | None = None
    """Device to train on; null: a GPU if there is one, otherwise the CPU."""
    precision: Annotated[str, OneOf(("fp32", "amp_bf16"))] = MISSING
    """Precision of matrix products. A CPU trains in fp32 only."""
    world_size: Annotated[int, WORLD_SIZE] = 1
    """Number of ranks in the plan (one process for each GPU). The launcher decides how many ranks really run."""
    fsdp: FSDPConfig | None = None
    """How the model is sharded over the ranks; null: each rank holds the whole model (DDP)."""
    activation_checkpointing: bool = False
    """Keep only the input of each block, and compute the block again in backward: less memory, a third more work."""
    connect_timeout_s: Seconds = 300.0
    """Longest time, in seconds, that the ranks wait for each other at the start."""
    dist_timeout_s: Seconds = 1800.0
    """Longest time, in seconds, that a rank waits in a collective. Should be above `stall_timeout_s`, so that the hang
    detector reports first where a rank hangs."""

    eval_interval: Batches = MISSING
    """How often the model is evaluated on val."""
    eval_subset_num_batches: Annotated[int, Whole(1, 10**9, also=-1)] = -1
    """Number of batches of val to evaluate; -1: all."""
    save_interval: Batches = MISSING
    """How often a checkpoint is saved."""
    save_num_checkpoints_to_keep: Annotated[int, Whole(1, 10**6, also=-1)] = -1
    """Number of newest checkpoints to keep; -1: all."""
    save_permanent_interval: Batches | None = None
    """How often a checkpoint is kept permanently. Must be a multiple of `save_interval`."""
    save_remote: Annotated[str, BUCKET] | None = None
    """Object store (s3://, gs://, …) to which the run folder is copied, under run_name; null: none."""
    on_save_error: Annotated[str, OneOf(("stop", "continue"))] = "stop"
    """Whether the run stops or continues after a full disk or a failed upload."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    stall_timeout_s: Seconds | None = 900.0
    """Longest time, in seconds, that a batch or a save may take. A longer one ends the run and prints the stacks of all
    threads; null: no limit."""
    price_per_gpu_hour: Annotated[float, PRICE] | None = None
    """Price in any currency, to log the cost of the run so far."""
    progress_bar: bool = True
    """Show a progress bar on a terminal. A file or a pipe never gets one."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)


@dataclass
class TrainConfig(RunConfig):
    """All settings of a pre-training run."""

    init_from: Folder | None = None
    """Model folder, run folder or checkpoint whose weights the run starts from; null: random weights."""
    activation_checkpointing_blocks: Annotated[int, Whole(1, 1000)] | None = None
    """Apply `activation_checkpointing` only to this number of first blocks; null: to all."""
    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class LoraConfig:
    """peft.LoraConfig: low-rank changes of all linear layers of the blocks; the weights themselves are not trained."""

    r: Annotated[int, Whole(1, 2**16)] = 16
    """Rank of the changes."""
    lora_alpha: Count = 32
    """Scale of the changes: they are multiplied by lora_alpha / r."""
    lora_dropout: Share = 0.05
    """Dropout probability of the input of the changes."""


@dataclass
class GenerationConfig:
    """How targets are written: by beam search, or by sampling if `temperature` is above 0."""

    num_beams: Annotated[int, Whole(1, 100)] = 5
    """Number of beams."""
    no_repeat_ngram_size: Annotated[int, Whole(0, 1000)] = 6
    """Length of token sequences that may not be repeated; 0: no such rule."""
    length_penalty: Annotated[float, Real(-100, 100)] = -0.5
    """A beam's score is divided by its length to the power of this number. Below 0, short targets are preferred."""
    max_new_tokens: Annotated[int, NEW_TOKENS] = 128
    """Longest target in tokens."""
    temperature: Annotated[float, TEMPERATURE] = 0.0
    """Temperature of sampling, which divides the logits; 0: beam search."""
    top_p: Above0 = 0.95
    """Sampling chooses among the likeliest tokens whose probabilities add up to this share."""


@dataclass
class FinetuneConfig(RunConfig):
    """All settings of a fine-tuning run."""

    preset: Name = "one-gpu-80gb"
    """Name of a file in yamls/finetune/presets with settings that fit a device."""
    task: Name = MISSING
    """Folder in `data` with the questions; `python recipes/finetune.py --describe` prints the formats."""
    model: Folder = MISSING
    """Exported folder, folder in BioMedLM's published form, run folder or checkpoint."""
    max_duration: Annotated[str, Span(("ba", "ep"))] = MISSING
    """Length of the run, such as 8ep."""
    data: Folder = "data/tasks"
    """Folder that holds one folder for each task."""
    seq_len: Positions = 512
    """Largest number of tokens of an example. A longer example is cut."""
    warmup_share: Share = 0.5
    """Share of the run in which the learning rate rises linearly from 0. Afterwards it falls linearly to 0."""
    lora: LoraConfig | None = None
    """Low-rank fine-tuning; null: all weights are trained."""
    score_test: bool = True
    """Score test as well as dev. False: score only dev, to choose settings by. To add the score of test afterwards,
    start the finished run again with true."""
    gpu_memory_gb: Annotated[float, Real(0, 10_000, above=True)] | None = None
    """GPU memory, in GB, that the plan must fit into; null: not checked."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

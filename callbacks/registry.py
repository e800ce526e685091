"""The table of all callbacks: the YAML key of each, when it acts, which metrics it logs and how it is built.

To add a callback, add a file in this folder, a line here, a section in recipes/config/schema.py, and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer import Callback
from composer.callbacks import LRMonitor, MemoryMonitor, RuntimeEstimator, SpeedMonitor

from callbacks.attention_parity import AttentionParity
from callbacks.checkpoint_writer import CheckpointWriter
from callbacks.cost_monitor import CostMonitor
from callbacks.data_monitor import DataMonitor
from callbacks.first_batch import FirstBatch
from callbacks.generate_samples import GenerateSamples
from callbacks.hang_detector import HangDetector
from callbacks.language_metrics import BytesPerToken, LanguageMetrics
from callbacks.missed_evaluation import MissedEvaluation
from callbacks.nan_guard import NanGuard
from callbacks.norm_monitor import NormMonitor
from callbacks.preemption import Preemption
from callbacks.rank_sums import RankSums
from callbacks.restore_rng import RestoreRNG
from callbacks.sample_fingerprint import SampleFingerprint
from callbacks.spike_guard import SpikeGuard
from recipes.config.schema import RunConfig, batches_of
from recipes.dataloading.beginnings import beginnings
from recipes.dataloading.token_dataset import TokenShards
from recipes.modeling.token_loss import TokenSources
from recipes.planning.gpus import CUDA_NAMES, GPUS
from recipes.planning.mixing import ShardFolder
from recipes.runs.names import METRICS, TEXTS


@dataclass(frozen=True)
class RunContext:
    """Objects of a run that callbacks are built from, in addition to the configuration.

    Attributes:
        writer: saves the checkpoints.
        replicas: number of copies of a sharded model; None: the model is not sharded.
        folders: folders of token shards to train on; empty in fine-tuning.
        sources: source of each token of the validation split, if there are several sources.
        val: samples of the validation split; None in fine-tuning.
        rng: restores the random state of a checkpoint.
        first_batch: checks the first batch after a checkpoint was loaded.
        sums: sums numbers of callbacks over all ranks.
        evaluation: repeats an evaluation that was cut short.
    """

    writer: CheckpointWriter
    replicas: int | None = None
    folders: Sequence[ShardFolder] = ()
    sources: TokenSources | None = None
    val: TokenShards | None = None
    rng: RestoreRNG = field(default_factory=RestoreRNG)
    first_batch: FirstBatch = field(default_factory=FirstBatch)
    sums: RankSums = field(default_factory=RankSums)
    evaluation: MissedEvaluation = field(default_factory=MissedEvaluation)


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        cls: class of the callback.
        key: key under `callbacks:` in a YAML, where null leaves the callback out. None: every run has the callback, or
            other keys decide.
        acts: when the callback acts.
        logs: names of the metrics that it logs.
        build: function that builds the callback from the values under `key`, the configuration and the run. It returns
            None if this run does not need the callback.
    """

    cls: type[Callback]
    key: str | None
    acts: str
    logs: tuple[str, ...]
    build: Callable[[Any, Any, RunContext], Callback | None]


def _language_metrics(_: Any, cfg: Any, run: RunContext) -> Callback | None:
    if not run.folders:
        return None
    samples = sum(folder.samples_a_pass for folder in run.folders)
    train = sum(of.samples_a_pass * of.info.counts["train"].bytes_per_token for of in run.folders) / samples
    val: dict[str, BytesPerToken] = {of.eval_label: {None: of.info.counts["val"].bytes_per_token} for of in run.folders}
    main, sources = run.folders[0].eval_label, run.sources
    by_source = dict(zip(sources.names, sources.bytes_per_token, strict=True)) if sources else {}
    return LanguageMetrics(train, {**val, main: {**val[main], **by_source}})


def _data_monitor(values: Any, cfg: Any, run: RunContext) -> Callback | None:
    return DataMonitor(batches_of(values.interval), run.folders) if run.folders else None


def _generate_samples(values: Any, cfg: Any, run: RunContext) -> Callback:
    written, tokenizer = Path(cfg.run_dir) / TEXTS, Path(cfg.data.tokenizer)
    prompts = values.prompts
    if prompts is None:
        assert run.val is not None, "check_finetuning refuses it where there are no shards"
        prompts = beginnings(run.val, tokenizer)
    return GenerateSamples(written, tokenizer, prompts, values.max_new_tokens, cfg.model.n_positions, cfg.seed)


def _speed_monitor(values: Any, cfg: Any, run: RunContext) -> Callback:
    arguments = asdict(values)
    if arguments["gpu_flops_available"] is None:
        arguments["gpu_flops_available"] = peak_flops(cfg.precision, cfg.device)
    return SpeedMonitor(**arguments)


def _spike_guard(values: Any, cfg: Any, run: RunContext) -> Callback:
    return SpikeGuard(**asdict(values), folder=Path(cfg.run_dir), writer=run.writer)


def _hang_detector(_: Any, cfg: Any, run: RunContext) -> Callback | None:
    return HangDetector(Path(cfg.run_dir), cfg.stall_timeout_s) if cfg.stall_timeout_s else None


# Composer calls the callbacks in this order. RankSums comes before the callbacks that read its sums, SpikeGuard before
# a spike could be saved, CheckpointWriter before Preemption ends the run, and MissedEvaluation after all callbacks that
# must be ready for an evaluation.
CALLBACKS = (
    Entry(AttentionParity, None, "before the first batch", (), lambda _, cfg, run: AttentionParity()),
    Entry(RestoreRNG, None, "before the first batch", (), lambda _, cfg, run: run.rng),
    Entry(FirstBatch, None, "the first two batches after a load", (), lambda _, cfg, run: run.first_batch),
    Entry(RankSums, None, "each batch", (), lambda _, cfg, run: run.sums),
    Entry(
        LanguageMetrics, None, "each batch, each evaluation",
        ("loss/train/perplexity", "loss/train/bits_per_byte", "metrics/eval*/Perplexity", "metrics/eval*/BitsPerByte*"),
        _language_metrics,
    ),
    Entry(
        DataMonitor, "data_monitor", "each interval",
        ("throughput/data_wait_share", "time/passes", "data/share/*"), _data_monitor,
    ),
    Entry(GenerateSamples, "generate_samples", "each evaluation", (), _generate_samples),
    Entry(
        SampleFingerprint, None, "each batch", ("data/batch_fingerprint",),
        lambda _, cfg, run: SampleFingerprint(run.sums),
    ),
    Entry(SpeedMonitor, "speed_monitor", "each batch", ("throughput/*", "time/*"), _speed_monitor),
    Entry(LRMonitor, "lr_monitor", "each batch", ("lr-*",), lambda values, cfg, run: LRMonitor(**asdict(values))),
    Entry(
        MemoryMonitor, "memory_monitor", "each batch", ("memory/*",),
        lambda values, cfg, run: MemoryMonitor(**asdict(values)),
    ),
    Entry(
        RuntimeEstimator, "runtime_estimator", "each batch", ("time/remaining_estimate*",),
        lambda values, cfg, run: RuntimeEstimator(**asdict(values)),
    ),
    Entry(
        NormMonitor, "norm_monitor", "each interval", ("l2_norm/grad/global", "l2_norm/param/global"),
        lambda values, cfg, run: NormMonitor(batches_of(values.interval), run.replicas),
    ),
    Entry(
        CostMonitor, None, "each batch", ("cost/gpu_hours", "cost/total"),
        lambda _, cfg, run: CostMonitor(Path(cfg.run_dir) / METRICS, cfg.price_per_gpu_hour),
    ),
    Entry(
        NanGuard, "nan_guard", "each batch", ("guard/skipped_batches",),
        lambda values, cfg, run: NanGuard(**asdict(values), sums=run.sums),
    ),
    Entry(SpikeGuard, "spike_guard", "each batch", ("guard/loss_limit",), _spike_guard),
    Entry(CheckpointWriter, None, "each save_interval", (), lambda _, cfg, run: run.writer),
    Entry(Preemption, None, "each batch", (), lambda _, cfg, run: Preemption(run.writer)),
    Entry(HangDetector, None, "all the time", (), _hang_detector),
    Entry(MissedEvaluation, None, "before the first batch", (), lambda _, cfg, run: run.evaluation),
)  # fmt: skip


def build_callbacks(cfg: RunConfig, run: RunContext) -> list[Callback]:
    """Build the callbacks of a run, in the order of the table."""
    callbacks = []
    for entry in CALLBACKS:
        values = getattr(cfg.callbacks, entry.key) if entry.key else None
        if entry.key and values is None:
            continue
        if (callback := entry.build(values, cfg, run)) is not None:
            callbacks.append(callback)
    return callbacks


def peak_flops(precision: str, device: str | None) -> float:
    """Dense bf16 peak of this GPU in FLOP/s, or 0 if MFU has no meaning: on an unknown GPU, in fp32 or on a CPU.

    Composer itself compares only parts of the name, and takes an A10G for an A10, whose peak is 1.8 times as high.
    """
    if device == "cpu" or precision != "amp_bf16" or not torch.cuda.is_available():
        return 0.0
    known = CUDA_NAMES.get(torch.cuda.get_device_name())
    return GPUS[known].bf16_flops if known else 0.0

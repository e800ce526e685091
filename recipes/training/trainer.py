"""The Trainer of pre-training and fine-tuning: connect the ranks; build optimizer, callbacks, loggers, checkpoints."""

from __future__ import annotations

import atexit
import gc
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Trainer
from composer.algorithms import GradientClipping
from composer.core import DataSpec, Evaluator, Event
from composer.models import ComposerModel
from composer.optim import ComposerScheduler
from composer.utils import dist, get_device
from torch.distributed.checkpoint import state_dict
from torch.optim.lr_scheduler import LambdaLR

from callbacks.checkpoint_writer import CheckpointWriter
from callbacks.registry import RunContext, build_callbacks
from callbacks.spike_guard import Rewind
from data_prep.common.files import JsonDict
from recipes.checkpointing.bit_sums import check_loaded
from recipes.checkpointing.computed_with import NOT_THE_SAME_BITS, computed_with, what_changed
from recipes.checkpointing.probe import Probe
from recipes.checkpointing.safe_loading import guard_composer_loading
from recipes.config.schema import FinetuneConfig, RunConfig, batches_of
from recipes.dataloading.loader import stop_workers
from recipes.distributed.cpu_patches import keep_freed_memory, repair_gloo_gradient_average, repair_hybrid_sharding
from recipes.distributed.rendezvous import data_must_pass, meet, peers_may_be_lost
from recipes.modeling.decoupled_adamw import DecoupledAdamW
from recipes.modeling.token_loss import LOSS, TokenSources
from recipes.planning.mixing import ShardFolder
from recipes.runs.environment import software
from recipes.runs.names import CHECKPOINTS, METRICS
from recipes.runs.signals import leave_at_once_when_told
from recipes.training.device_check import check_device
from recipes.training.loggers import build_loggers
from recipes.training.prepared_run import PreparedRun


def connect(cfg: RunConfig) -> None:
    """Connect to the other ranks.

    Raises:
        BadInput: there is no GPU although the configuration asks for one, or torch cannot use it; or a rank is missing,
            cannot be reached, or differs in code, libraries or configuration.
    """
    leave_at_once_when_told()  # again, because `import composer` has installed a handler of its own
    on_cpu = "preset=cpu" if isinstance(cfg, FinetuneConfig) else "device=cpu precision=fp32"
    gpu = check_device(cfg.device, cfg.precision, on_cpu)
    device = get_device(cfg.device)
    if device.name == "cpu" and cfg.device is None and dist.get_global_rank() == 0:
        print(gpu, flush=True)
    # run_dir is left out here: after rank 0 has made it, `check_seen_by_all` compares it on all ranks.
    facts = {**software(), "configuration": {**asdict(cfg), "run_dir": None}}
    store = meet(facts, cfg.connect_timeout_s)
    with data_must_pass(cfg.connect_timeout_s):
        dist.initialize_dist(device, cfg.dist_timeout_s)
        if store:
            passed = device.tensor_to_device(torch.ones(1))
            dist.all_reduce(passed)  # NCCL connects in the first collective, which returns before data was sent;
            passed.item()  # this waits for the data
    if device.name == "cpu":
        keep_freed_memory()
        repair_gloo_gradient_average()
        if cfg.fsdp and cfg.fsdp.data_parallel_replicate_degree > 1:
            repair_hybrid_sharding()


@dataclass(frozen=True)
class TrainingParts:
    """The parts of a Trainer that differ between pre-training and fine-tuning.

    Attributes:
        model: model to train; parameters with `requires_grad` are trained.
        scheduler: learning-rate scheduler.
        train_dataloader: training batches of this rank.
        eval_dataloader: batches to evaluate at `cfg.eval_interval`.
        batches: length of the run.
        device_train_microbatch_size: number of sequences that a rank computes at a time.
        folders: folders of token shards to train on; empty in fine-tuning.
        sources: source of each token of the validation split, if there are several sources.
        mixed_eval_dataloaders: Composer's label -> validation split of a folder that is mixed in.
        watching: further callbacks, in addition to those of the configuration.
    """

    model: ComposerModel
    scheduler: ComposerScheduler
    train_dataloader: DataSpec
    eval_dataloader: DataSpec
    batches: int
    device_train_microbatch_size: int
    folders: Sequence[ShardFolder] = ()
    sources: TokenSources | None = None
    mixed_eval_dataloaders: Mapping[str, DataSpec] = field(default_factory=dict)
    watching: Sequence[Callback] = ()


def run_trainer(cfg: RunConfig, prepared: PreparedRun, parts: TrainingParts) -> Trainer | None:
    """Assemble the Trainer and run it to its end.

    Returns:
        The Trainer; None if the loss spiked and the run must be restarted. Then skipped.jsonl lists the data to skip.
    """
    guard_composer_loading()
    if get_device(cfg.device).name == "gpu":
        # FSDP builds the model on the CPU or the meta device, and moves it after Composer has checked its device.
        warnings.filterwarnings("ignore", "The memory monitor only works on CUDA devices")
    replicas = cfg.fsdp.data_parallel_replicate_degree if cfg.fsdp and prepared.fsdp else None
    writer = build_writer(cfg, prepared, parts.batches, replicas)
    loader: Any = parts.eval_dataloader.dataloader
    val = loader.dataset if parts.folders else None
    run = RunContext(writer, replicas, parts.folders, parts.sources, val)
    computed = computed_with(cfg, prepared.fingerprint, prepared.fsdp is not None, parts.device_train_microbatch_size)
    if prepared.start.probe and dist.get_global_rank() == 0:
        changed = what_changed(computed, prepared.start.probe["computed_with"])
        if changed:
            print(f"changed since the checkpoint: {'; '.join(changed)}; {NOT_THE_SAME_BITS}", flush=True)
    trainer = build_trainer(cfg, prepared, parts, [*parts.watching, *build_callbacks(cfg, run)], computed)
    run.evaluation.metrics, run.evaluation.batches = Path(cfg.run_dir) / METRICS, parts.batches
    run.evaluation.interval_batches = batches_of(cfg.eval_interval)
    run.evaluation.evaluate = partial(evaluate, trainer)
    run.rng.rng = trainer._rng_state
    trainer._rng_state = None
    apply_configuration(trainer, cfg)
    prepared.start.close()
    if prepared.start.load_path:
        check_loaded(trainer.state, replicas, prepared.start.sums, prepared.start.checkpoint)
    if cfg.resume.replay:
        run.writer.probe = Probe(parts.train_dataloader.dataloader, parts.device_train_microbatch_size, computed)
        if prepared.start.load_path:
            first = run.first_batch
            first.start, first.probe, first.sums = prepared.start, run.writer.probe, run.sums
            first.compute = partial(compute_unseen, trainer)
    try:
        with peers_may_be_lost():
            if trainer.state.timestamp.batch < parts.batches:
                trainer.fit()
            else:  # the run was stopped between its last save and its end
                run.evaluation.make_up(trainer.state)
    except Rewind:
        close(trainer)
        return None
    finally:
        for loader in (parts.train_dataloader, parts.eval_dataloader, *parts.mixed_eval_dataloaders.values()):
            stop_workers(loader.dataloader)
    close(trainer)
    run.writer.finish()
    return trainer


def build_optimizer(cfg: RunConfig, model: ComposerModel) -> DecoupledAdamW:
    """Build the optimizer of all parameters with `requires_grad`."""
    return DecoupledAdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=cfg.optimizer.lr,
        betas=(cfg.optimizer.betas[0], cfg.optimizer.betas[1]),
        eps=cfg.optimizer.eps,
        weight_decay=cfg.optimizer.weight_decay,
    )


def build_writer(cfg: RunConfig, prepared: PreparedRun, batches: int, replicas: int | None) -> CheckpointWriter:
    """Build the checkpoint writer of a run with `batches` batches; `replicas` is None if the model is not sharded."""
    permanent = cfg.save_permanent_interval
    return CheckpointWriter(
        folder=Path(cfg.run_dir) / CHECKPOINTS,
        interval_batches=batches_of(cfg.save_interval),
        keep=cfg.save_num_checkpoints_to_keep,
        permanent_interval_batches=batches_of(permanent) if permanent else None,
        batches=batches,
        identity=prepared.fingerprint,
        stop_on_error=cfg.on_save_error == "stop",
        remote=prepared.remote,
        replicas=replicas,
    )


def build_trainer(
    cfg: RunConfig, prepared: PreparedRun, parts: TrainingParts, callbacks: list[Callback], computed: JsonDict
) -> Trainer:
    """Build Composer's Trainer, which loads the checkpoint that the run starts from.

    Args:
        cfg: configuration of the run.
        prepared: the prepared run.
        parts: parts of the Trainer.
        callbacks: all callbacks.
        computed: result of `computed_with`.
    """
    clip = cfg.gradient_clipping_norm
    return Trainer(
        model=parts.model,
        optimizers=build_optimizer(cfg, parts.model),
        schedulers=parts.scheduler,
        step_schedulers_every_batch=True,
        algorithms=[GradientClipping("norm", clip)] if clip else None,
        train_dataloader=parts.train_dataloader,
        eval_dataloader=build_evaluators(parts),
        eval_interval=cfg.eval_interval,
        eval_subset_num_batches=cfg.eval_subset_num_batches,
        max_duration=f"{parts.batches}ba",
        device_train_microbatch_size=parts.device_train_microbatch_size,
        precision=cfg.precision,
        device=cfg.device,
        parallelism_config=prepared.fsdp,
        seed=cfg.seed,
        dist_timeout=cfg.dist_timeout_s,
        callbacks=callbacks,
        loggers=build_loggers(
            cfg,
            parts.batches,
            prepared.start.load_path is not None or prepared.start.rewinds > 0,
            {"rewinds": prepared.start.rewinds, "computed_with": computed},
        ),
        progress_bar=cfg.progress_bar and sys.stderr.isatty(),
        run_name=cfg.run_name,
        load_path=prepared.start.load_path,
        load_ignore_keys=prepared.start.ignore_absent_callbacks,
    )


def build_evaluators(parts: TrainingParts) -> DataSpec | list[Evaluator]:
    """Build the evaluators: the validation split with all metrics, and that of each mixed-in folder with its loss only.

    `metric_names` are patterns, which Composer searches for in the names of metrics.
    """
    if not parts.mixed_eval_dataloaders:
        return parts.eval_dataloader
    mixed = parts.mixed_eval_dataloaders.items()
    return [
        Evaluator(label="eval", dataloader=parts.eval_dataloader),
        *(Evaluator(label=label, dataloader=loader, metric_names=[f"{LOSS}$"]) for label, loader in mixed),
    ]


def apply_configuration(trainer: Trainer, cfg: RunConfig) -> None:
    """Apply the optimizer and schedule settings of the configuration to a resumed run, in place of the checkpoint's.

    When a checkpoint is loaded, its settings overwrite those of the optimizer's groups and of the scheduler. They only
    differ from the configuration if `resume.allow` allows a change. The moments are kept. `initial_lr`, by which
    DecoupledAdamW scales its weight decay, becomes the new learning rate.
    """
    state, values = trainer.state, cfg.optimizer
    now = state.timestamp
    # Composer (0.32.1) steps the scheduler before it counts the batch, so a batch has the rate of the one before it.
    state.timestamp = now.copy(batch=max(0, now.batch.value - 1))
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        assert isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [values.lr for _ in optimizer.param_groups]
        scheduler._last_lr = [values.lr * share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
        for group, lr in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            betas = (values.betas[0], values.betas[1])
            group.update(lr=lr, initial_lr=values.lr, betas=betas, eps=values.eps, weight_decay=values.weight_decay)
    state.timestamp = now


def evaluate(trainer: Trainer) -> None:
    """Run the evaluation after the current batch. After a checkpoint was loaded, the Trainer itself would not run it.

    Composer (0.32.1) decides by the batch before whether an evaluation is due, and evaluates the last batch at the end
    of `fit`.
    """
    state = trainer.state
    state.previous_timestamp = state.timestamp.copy(batch=state.timestamp.batch.value - 1)
    assert state.max_duration is not None
    trainer._run_evaluators(Event.FIT_END if state.timestamp.batch >= state.max_duration else Event.BATCH_END)


def compute_unseen(trainer: Trainer, after_backward: Callable[[], None]) -> None:
    """Compute the forward and backward passes of the current batch, exactly as the Trainer will compute them next.

    Callbacks and algorithms get no events meanwhile. The gradients remain until the Trainer sets them to zero.

    Args:
        trainer: the Trainer, within a batch and before its first microbatch.
        after_backward: function that is called after each microbatch.
    """
    state, spec, device = trainer.state, trainer._train_data_spec, trainer.state.device
    assert spec is not None and state.device_train_microbatch_size is not None
    microbatches = spec.split_batch(state.batch, state.device_train_microbatch_size)

    def run_event(event: Event) -> None:
        if event == Event.AFTER_BACKWARD:
            after_backward()

    vars(trainer.engine)["run_event"] = run_event
    try:
        trainer._train_microbatches(microbatches, {"loss/train/total": device.tensor_to_device(torch.zeros(1))})
    finally:
        del vars(trainer.engine)["run_event"]


def close(trainer: Trainer) -> None:
    """Close a Trainer: flush its loggers, and remove the references that the interpreter keeps to it."""
    trainer.close()
    # Composer (0.32.1) registers this function at exit with the run's state, which holds model and moments, and does
    # not unregister it on close. It is a static method, so this unregisters it for all engines: close them all.
    atexit.unregister(trainer.engine._close)


def give_memory_back() -> None:
    """Free the Trainer, model and moments of a run that has ended, before another model is built."""
    # This cache of torch 2.7 has in its keys every model whose state dict was taken.
    if forget := getattr(state_dict._get_fqns, "cache_clear", None):
        forget()
    gc.collect()  # these objects have circular references
    torch.cuda.empty_cache()  # the next model needs blocks of other sizes than the freed ones

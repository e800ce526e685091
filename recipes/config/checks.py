"""Refuse combinations of values that the schema allows one by one; the message names the key and the reason."""

from __future__ import annotations

from data_prep.common.errors import BadInput
from recipes.config.schema import SCHEDULES, FinetuneConfig, RunConfig, SchedulerConfig, TrainConfig, batches_of


class _Relations:
    """Refuses the first value that contradicts another; the message names the file, the key and the reason.

    Args:
        name: name of the configuration, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self, good: bool, key: str, value: object, reason: str) -> None:
        """Refuse the value of a key unless `good`."""
        if not good:
            raise BadInput(f"{self.name}: {key} = {'null' if value is None else repr(value)}, but {reason}")


def check_pretraining(cfg: TrainConfig, name: str) -> None:
    """Refuse combinations of settings that only pre-training has."""
    relations, model, seq_len = _Relations(name), cfg.model, cfg.data.seq_len
    whole = model.n_embd % model.n_head == 0
    relations.require(whole, "model.n_embd", model.n_embd, f"it must be a multiple of n_head = {model.n_head}")
    positions = f"the model has n_positions = {model.n_positions}: set data.seq_len={model.n_positions} or less"
    relations.require(seq_len <= model.n_positions, "data.seq_len", seq_len, positions)
    shares = {name: of.share for name, of in (cfg.data.mix or {}).items()}
    leaves = "the shares leave nothing of a pass to data.shards; their sum must be below 1"
    relations.require(sum(shares.values()) < 1, "data.mix", shares, leaves)
    _check_kernels(relations, cfg)
    _check_schedule(relations, cfg.scheduler)


def _check_kernels(relations: _Relations, cfg: TrainConfig) -> None:
    backend, attention = cfg.kernels.sdpa_backend, cfg.model.attn_implementation
    no_choice = f"model.attn_implementation = {attention} has no such choice; set null"
    relations.require(backend is None or attention == "sdpa", "kernels.sdpa_backend", backend, no_choice)
    blocks, key, n_layer = cfg.activation_checkpointing_blocks, "activation_checkpointing_blocks", cfg.model.n_layer
    nothing = "activation_checkpointing = false, so no block recomputes"
    relations.require(blocks is None or cfg.activation_checkpointing, key, blocks, nothing)
    fewer = f"the model has n_layer = {n_layer} blocks; set null for all"
    relations.require(blocks is None or blocks <= n_layer, key, blocks, fewer)


def _check_schedule(relations: _Relations, schedule: SchedulerConfig) -> None:
    name, end, share = schedule.name, schedule.alpha_f, schedule.decay_share
    description = SCHEDULES[name]  # names the keys that the schedule reads
    flat = f"scheduler.name = {name} ends at its highest rate: set scheduler.alpha_f=1"
    relations.require("{end" in description or end == 1, "scheduler.alpha_f", end, flat)
    falls = "{share" in description
    none, some = (
        f"scheduler.name = {name} has no such part; set null",
        "the schedule needs the share of the run in which the learning rate falls, such as 0.1",
    )
    relations.require((share is not None) == falls, "scheduler.decay_share", share, some if falls else none)


def check_finetuning(cfg: FinetuneConfig, name: str) -> None:
    """Refuse combinations of settings that only fine-tuning has."""
    relations = _Relations(name)
    for key in ("spike_guard", "data_monitor", "generate_samples"):
        absent = getattr(cfg.callbacks, key) is None
        relations.require(absent, f"callbacks.{key}", "…", "it belongs to pre-training; set null")


def check_every_run(cfg: RunConfig, name: str) -> None:
    """Refuse combinations of settings that every run has."""
    relations, permanent = _Relations(name), cfg.save_permanent_interval
    on_cpu = cfg.device == "cpu" and cfg.precision != "fp32"
    relations.require(not on_cpu, "precision", cfg.precision, "Composer trains a CPU in fp32")
    if permanent is not None:
        whole = batches_of(permanent) % batches_of(cfg.save_interval) == 0
        multiple = f"it must be a multiple of save_interval = {cfg.save_interval}"
        relations.require(whole, "save_permanent_interval", permanent, multiple)

"""A run prepared: its folder written for all ranks to see, and how its model is sharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from composer.utils import ParallelismConfig, get_device

from data_prep.common.files import JsonDict
from recipes.checkpointing.remote import RemoteRun
from recipes.checkpointing.resume import Start
from recipes.config.schema import RunConfig
from recipes.distributed.fsdp import parallelism_config
from recipes.distributed.rank_zero import on_rank_zero
from recipes.runs.folder import check_seen_by_all, open_run


@dataclass(frozen=True)
class PreparedRun:
    """A run that is about to train.

    Attributes:
        fingerprint: what the run is made of; written into each checkpoint.
        remote: where the run folder is copied to.
        start: where it starts; the Trainer's runner closes it.
        fsdp: how the model is sharded; None: not at all.
    """

    fingerprint: JsonDict
    remote: RemoteRun | None
    start: Start
    fsdp: ParallelismConfig | None


def prepare_run(
    cfg: RunConfig,
    start: Start,
    fingerprint: JsonDict,
    facts: JsonDict,
    write_tokenizer: Callable[[Path], object],
    world_size: int,
    remote: RemoteRun | None,
) -> PreparedRun:
    """Write the folder of a run. All ranks must call it.

    Args:
        cfg: the configuration.
        start: where the run starts.
        fingerprint: what the run is made of.
        facts: what its record says beside that.
        write_tokenizer: makes the tokenizer's folder, which does not exist yet.
        world_size: ranks.
        remote: where the run folder is copied to.

    Raises:
        BadInput: some rank does not see the folder.
    """
    folder = Path(cfg.run_dir)
    record = {"world_size": world_size, "batch": start.batch, "allowed_differences": start.changed}
    on_rank_zero(lambda: open_run(folder, cfg, fingerprint, facts, write_tokenizer, record))
    check_seen_by_all(folder)
    fsdp = None
    if cfg.fsdp and start.sharded:
        fsdp = parallelism_config(cfg.fsdp, cfg.activation_checkpointing, get_device(cfg.device).name)
    return PreparedRun(fingerprint, remote, start, fsdp)

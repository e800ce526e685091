"""Prepare a run: write its folder, check that all ranks see it, and decide how its model is sharded."""

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
        fingerprint: fingerprint of the run, which is written into each checkpoint.
        remote: copy of the run folder on an object store; None: there is none.
        start: where the run starts; `run_trainer` closes it.
        fsdp: how the model is sharded; None: it is not sharded.
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
        cfg: configuration of the run.
        start: where the run starts.
        fingerprint: fingerprint of the run.
        facts: further entries of the record.
        write_tokenizer: function that writes the tokenizer to a folder that does not exist yet.
        world_size: number of ranks.
        remote: copy of the run folder on an object store; None: there is none.

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

"""Where a run starts: anew, or from a checkpoint that any number of ranks may have written, here or on a remote."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from composer.utils import dist

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import JsonDict
from recipes.checkpointing.checkpoint import (
    MONOLITH,
    bit_sums,
    checkpoint_batch,
    is_sharded,
    kept_probe,
    manifest_of,
    newest_intact,
)
from recipes.checkpointing.recorded_losses import RecordedLoss, recorded_after
from recipes.checkpointing.remote import RemoteRun, checkpoints_in
from recipes.checkpointing.safe_loading import entries, write_sharded
from recipes.config.schema import RunConfig, batches_of
from recipes.dataloading import skipped_data
from recipes.distributed.rank_zero import on_rank_zero
from recipes.runs.fingerprint import changes, complete, refuse_difference
from recipes.runs.folder import reached_batch, refuse_without_effect
from recipes.runs.names import CHECKPOINTS, CONFIG, METRICS, RECORD
from recipes.runs.record import read_record


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        load_path: what Trainer loads; None for a run that begins.
        sharded: whether the run is to be sharded by FSDP, and its checkpoints with it.
        skipped: positions of the training data that the run leaves out, as `skipped_data.merge` returns them.
        copy: a sharded copy of an unsharded checkpoint, to be removed once it is loaded.
        batch: batch that its checkpoint was saved after.
        changed: lines `key: old -> new` of the fingerprint since that checkpoint.
        checkpoint: its folder.
        sums: over the bits of what it holds; None: there are none.
        probe: the loss of a fixed batch, as `Probe.record` returns it; None: it keeps none.
        recorded: batch -> what metrics.jsonl has of the batches after it.
        rewinds: number of rewinds of the run so far, after loss spikes.
    """

    load_path: str | None
    sharded: bool
    skipped: list[skipped_data.Window] = field(default_factory=list)
    copy: Path | None = None
    batch: int = 0
    changed: list[str] = field(default_factory=list)
    checkpoint: str = ""
    sums: dict[str, int] | None = None
    probe: JsonDict | None = None
    recorded: dict[int, RecordedLoss] = field(default_factory=dict)
    rewinds: int = 0

    def ignore_absent_callbacks(self, template: dict[str, Any]) -> None:
        """Leave out of what is to be loaded the callbacks that a sharded checkpoint knows nothing of.

        torch refuses to load what a checkpoint does not hold, so a callback could not be added to a run.

        Args:
            template: what Composer is about to fill from the checkpoint; changed in place.
        """
        if not self.sharded or self.load_path is None:
            return
        held = entries(Path(self.load_path))
        callbacks = template["state"]["callbacks"]
        for name, values in list(callbacks.items()):
            if any(f"state.callbacks.{name}.{key}" not in held for key in values):
                del callbacks[name]

    def close(self) -> None:
        """Remove the copy. All ranks must call it, after they have loaded."""
        dist.barrier()
        if self.copy and dist.get_global_rank() == 0:
            shutil.rmtree(self.copy)


def find_start(folder: Path, cfg: RunConfig, wanted: JsonDict, remote: RemoteRun | None = None) -> Start:
    """Find the newest intact checkpoint, on rank 0, and tell all ranks.

    A run on several ranks with FSDP is sharded; so is one that is resumed from a sharded checkpoint, even on one rank.
    One that began unsharded on one rank and is resumed with FSDP on several has its checkpoint copied into that layout.

    Where the remote holds a newer checkpoint, or an intact one of the same batch, it is fetched into the folder; if the
    run has gone on elsewhere, its record and metrics are too.

    Args:
        folder: the run folder.
        cfg: the configuration.
        wanted: the fingerprint that a checkpoint must have, but for `cfg.resume.allow`.
        remote: the copy of the run folder on an object store.

    Raises:
        BadInput: no checkpoint is intact, or there is none of a run that must have had one; the newest is of another
            run, or sharded and the configuration has no FSDP; the ledger is damaged; the remote refuses.
        Unavailable: the remote does not answer, so it is not known whether there is a checkpoint.
    """

    def find() -> Start:
        start = _find(folder, cfg, wanted, remote)
        entries = skipped_data.read(folder)  # restored by now
        windows = [window for entry in entries for window in entry["windows"]]
        recorded = recorded_after(folder / METRICS, start.batch, len(entries)) if start.load_path else {}
        return replace(start, skipped=skipped_data.merge(windows), recorded=recorded, rewinds=len(entries))

    return on_rank_zero(find)


def _find(folder: Path, cfg: RunConfig, wanted: JsonDict, remote: RemoteRun | None) -> Start:
    checkpoints = folder / CHECKPOINTS
    try:
        checkpoint, faults = _newest_with_remote(folder, cfg, wanted, remote) if remote else newest_intact(checkpoints)
    except Unavailable as error:
        raise Unavailable(
            f"{error}\nSo whether there are checkpoints at {remote and remote.url} is not known, and nothing was "
            "started; type the same command later to resume"
        ) from None
    for fault in faults:
        print(f"warning: passed over a checkpoint: {fault}", flush=True)
    sharded = cfg.fsdp is not None and dist.get_world_size() > 1
    if checkpoint is None:
        _refuse_lost_checkpoints(folder, batches_of(cfg.save_interval))
        if remote:
            print(f"no checkpoint at {remote.url}: starting anew", flush=True)
        return Start(None, sharded)
    identity = manifest_of(checkpoint)["identity"]
    identity = complete(identity, wanted, folder / CONFIG)
    refuse_difference(str(checkpoint), identity, wanted, cfg.resume.allow)
    batch, reached, changed = checkpoint_batch(checkpoint), reached_batch(folder), changes(identity, wanted)
    acting = changes(identity, wanted, of_training=True)
    if acting and batch >= wanted["schedule"]["batches"]:
        refuse_without_effect(f"{checkpoint} is of batch {batch}", batch, acting)
    again = f" after the run had got to batch {reached}: {reached - batch} batches are computed again"
    print(f"resuming from {checkpoint}{again if reached > batch else ''}", flush=True)
    facts: dict[str, Any] = {
        "batch": batch, "changed": changed, "checkpoint": str(checkpoint), "sums": bit_sums(checkpoint),
        "probe": kept_probe(checkpoint),
    }  # fmt: skip
    if is_sharded(checkpoint):
        if not cfg.fsdp:
            raise BadInput(f"{checkpoint} is sharded; it needs the fsdp: section that it was saved with")
        return Start(str(checkpoint), True, **facts)
    if not sharded:
        return Start(str(checkpoint / MONOLITH), False, **facts)
    copy = checkpoint.with_name(f"{checkpoint.name}.sharded")
    shutil.rmtree(copy, ignore_errors=True)
    write_sharded(checkpoint, copy)
    return Start(str(copy), True, copy=copy, **facts)


def _newest_with_remote(
    folder: Path, cfg: RunConfig, wanted: JsonDict, remote: RemoteRun
) -> tuple[Path | None, list[str]]:
    """`newest_intact` of the folder and the remote together; what is chosen lies in the folder then."""

    def accept(where: str, identity: JsonDict) -> None:
        refuse_difference(where, complete(identity, wanted, folder / CONFIG), wanted, cfg.resume.allow)

    contents = remote.contents()
    if RECORD in contents:  # before anything is written there or here: the prefix may be another run's
        accept(remote.url, remote.record()["identity"])
    remote.check_writable()
    there = checkpoints_in(contents)
    if max((checkpoint_batch(name) for name, complete in there.items() if complete), default=-1) > reached_batch(
        folder
    ):
        remote.restore_run_files(folder, contents)  # the folder is new, or the run has gone on elsewhere meanwhile
    checkpoints = folder / CHECKPOINTS
    fetch = {name: partial(remote.download, checkpoints / name, contents, accept) for name in there}
    return newest_intact(checkpoints, fetch)


def _refuse_lost_checkpoints(folder: Path, interval_batches: int) -> None:
    """A batch later than the first that is saved shows that there was a checkpoint, or that it could not be written.

    Unless a loss spike sent the run back to its beginning. A finished run has saved its last batch.
    """
    rewound = any(entry["to_batch"] == 0 for entry in skipped_data.read(folder))
    finished = (folder / RECORD).is_file() and read_record(folder / RECORD)["finished"]
    reached = reached_batch(folder)
    if finished or (reached > interval_batches and not rewound):
        raise BadInput(
            f"{folder / METRICS} says that the run got to batch {reached}, and of its checkpoints none is left. "
            f"Bring one back, or start anew: give another run_name=…, or remove the folder (rm -r {folder})"
        )

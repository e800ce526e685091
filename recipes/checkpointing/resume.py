"""Find where a run starts: at its beginning, or at a checkpoint in its folder or on its remote."""

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
        load_path: path that the Trainer loads; None for a run that begins.
        sharded: whether FSDP shards the model and its checkpoints.
        skipped: positions of the training data that the run skips, as `skipped_data.merge` returns them.
        copy: sharded copy of an unsharded checkpoint, which is removed after it was loaded; None: there is none.
        batch: batch after which the checkpoint was saved.
        changed: changes of the fingerprint since that checkpoint, as lines `key: old -> new`.
        checkpoint: folder of the checkpoint.
        sums: sums over the bits of each saved tensor; None: the checkpoint has none.
        probe: loss of a fixed batch, as `Probe.record` returns it; None: the checkpoint has none.
        recorded: batch -> recorded loss, for the batches after the checkpoint.
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
        """Do not load the state of callbacks that a sharded checkpoint does not contain.

        Otherwise torch would refuse to load, and a callback could not be added to a run.

        Args:
            template: state that Composer is about to fill from the checkpoint; it is changed in place.
        """
        if not self.sharded or self.load_path is None:
            return
        held = entries(Path(self.load_path))
        callbacks = template["state"]["callbacks"]
        for name, values in list(callbacks.items()):
            if any(f"state.callbacks.{name}.{key}" not in held for key in values):
                del callbacks[name]

    def close(self) -> None:
        """Remove the copy. All ranks must call it after loading."""
        dist.barrier()
        if self.copy and dist.get_global_rank() == 0:
            shutil.rmtree(self.copy)


def find_start(folder: Path, cfg: RunConfig, wanted: JsonDict, remote: RemoteRun | None = None) -> Start:
    """Find the newest intact checkpoint on rank 0, and send the result to all ranks.

    A run on several ranks with FSDP is sharded, and so is a run that resumes from a sharded checkpoint, even on one
    rank. If a run began unsharded on one rank and resumes with FSDP on several ranks, its checkpoint is copied into the
    sharded layout.

    If the remote has a newer checkpoint, or an intact one of the same batch, it is fetched into the folder. If the run
    was continued on another machine, its record and metrics are fetched, too.

    Args:
        folder: the run folder.
        cfg: configuration of the run.
        wanted: fingerprint that the checkpoint must have, except for the keys in `cfg.resume.allow`.
        remote: copy of the run folder on an object store.

    Raises:
        BadInput: no checkpoint is intact; a run that has saved checkpoints has lost all of them; the newest checkpoint
            belongs to another run, or is sharded although the configuration has no FSDP; skipped.jsonl is damaged; or
            the remote refuses access.
        Unavailable: the remote does not answer, so it is not known whether there is a checkpoint.
    """

    def find() -> Start:
        start = _find(folder, cfg, wanted, remote)
        entries = skipped_data.read(folder)  # after `_find`, which may have restored the file
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
            f"{error}\nSo it is not known whether there are checkpoints at {remote and remote.url}, and nothing was "
            "started; type the same command later to resume"
        ) from None
    for fault in faults:
        print(f"warning: ignored a checkpoint: {fault}", flush=True)
    sharded = cfg.fsdp is not None and dist.get_world_size() > 1
    if checkpoint is None:
        _refuse_lost_checkpoints(folder, batches_of(cfg.save_interval))
        if remote:
            print(f"no checkpoint at {remote.url}: starting from the beginning", flush=True)
        return Start(None, sharded)
    identity = manifest_of(checkpoint)["identity"]
    identity = complete(identity, wanted, folder / CONFIG)
    refuse_difference(str(checkpoint), identity, wanted, cfg.resume.allow)
    batch, reached, changed = checkpoint_batch(checkpoint), reached_batch(folder), changes(identity, wanted)
    acting = changes(identity, wanted, of_training=True)
    if acting and batch >= wanted["schedule"]["batches"]:
        refuse_without_effect(f"{checkpoint} is of batch {batch}", batch, acting)
    again = f"; the run had reached batch {reached}, so {reached - batch} batches are computed again"
    print(f"resuming from {checkpoint}{again if reached > batch else ''}", flush=True)
    facts: dict[str, Any] = {
        "batch": batch, "changed": changed, "checkpoint": str(checkpoint), "sums": bit_sums(checkpoint),
        "probe": kept_probe(checkpoint),
    }  # fmt: skip
    if is_sharded(checkpoint):
        if not cfg.fsdp:
            raise BadInput(f"{checkpoint} is sharded; the configuration needs an fsdp: section to load it")
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
    """Find the newest intact checkpoint in the folder and on the remote, and fetch it if it is on the remote."""

    def accept(where: str, identity: JsonDict) -> None:
        refuse_difference(where, complete(identity, wanted, folder / CONFIG), wanted, cfg.resume.allow)

    contents = remote.contents()
    if RECORD in contents:  # checked before anything is written: the address may belong to another run
        accept(remote.url, remote.record()["identity"])
    remote.check_writable()
    there = checkpoints_in(contents)
    if max((checkpoint_batch(name) for name, complete in there.items() if complete), default=-1) > reached_batch(
        folder
    ):
        remote.restore_run_files(folder, contents)  # the folder is new, or another machine has continued the run
    checkpoints = folder / CHECKPOINTS
    fetch = {name: partial(remote.download, checkpoints / name, contents, accept) for name in there}
    return newest_intact(checkpoints, fetch)


def _refuse_lost_checkpoints(folder: Path, interval_batches: int) -> None:
    """Refuse to start from the beginning if the run must have had a checkpoint.

    That is so if the run has passed its first save, unless a loss spike rewound it to its beginning; and if the run is
    finished, since it has saved its last batch.
    """
    rewound = any(entry["to_batch"] == 0 for entry in skipped_data.read(folder))
    finished = (folder / RECORD).is_file() and read_record(folder / RECORD)["finished"]
    reached = reached_batch(folder)
    if finished or (reached > interval_batches and not rewound):
        raise BadInput(
            f"{folder / METRICS} says that the run reached batch {reached}, but there is no checkpoint. Restore one, "
            f"or start from the beginning: give another run_name=…, or remove the folder (rm -r {folder})"
        )

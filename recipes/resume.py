"""Where a run starts: anew, or from a checkpoint that any number of ranks may have written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer.utils import dist

from data_prep.stage import BadInput
from recipes import ledger
from recipes.checkpoints import MONOLITH, is_sharded, newest_intact
from recipes.run_folder import CHECKPOINTS
from recipes.safe_loading import entries, write_sharded


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        load_path: what Trainer loads; None for a run that begins.
        sharded: whether the run is to be sharded by FSDP, and its checkpoints with it.
        skipped: positions of the training data that the run leaves out, as `ledger.merge` returns them.
        copy: a sharded copy of an unsharded checkpoint, to be removed once it is loaded.
    """

    load_path: str | None
    sharded: bool
    skipped: list[ledger.Window] = field(default_factory=list)
    copy: Path | None = None

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


def find_start(folder: Path, fsdp: bool) -> Start:
    """Find the newest intact checkpoint, on rank 0, and tell all ranks.

    A run on several ranks with FSDP is sharded, and so is one that goes on from a sharded checkpoint, on one rank too.
    One that began unsharded on one rank and goes on with FSDP on several has its checkpoint copied into that layout.

    Args:
        folder: the run folder.
        fsdp: whether the configuration has FSDP.

    Raises:
        BadInput: no checkpoint is intact, or the newest is sharded and the configuration has no FSDP, or the ledger is
            damaged.
    """
    start: Start | BadInput = Start(None, False)
    if dist.get_global_rank() == 0:
        try:
            start = _find(folder / CHECKPOINTS, fsdp, fsdp and dist.get_world_size() > 1)
            windows = [window for entry in ledger.read(folder) for window in entry["windows"]]
            start = replace(start, skipped=ledger.merge(windows))
        except BadInput as error:
            start = error
    shared = [start]
    dist.broadcast_object_list(shared)
    if isinstance(shared[0], BadInput):
        raise shared[0]
    return shared[0]


def _find(folder: Path, fsdp: bool, sharded: bool) -> Start:
    checkpoint, faults = newest_intact(folder)
    for fault in faults:
        print(f"warning: passed over a checkpoint: {fault}", flush=True)
    if checkpoint is None:
        return Start(None, sharded)
    print(f"resuming from {checkpoint}", flush=True)
    if is_sharded(checkpoint):
        if not fsdp:
            raise BadInput(f"{checkpoint} is sharded; it needs the fsdp: section that it was saved with")
        return Start(str(checkpoint), True)
    if not sharded:
        return Start(str(checkpoint / MONOLITH), False)
    copy = checkpoint.with_name(f"{checkpoint.name}.sharded")
    shutil.rmtree(copy, ignore_errors=True)
    write_sharded(checkpoint, copy)
    return Start(str(copy), True, copy=copy)

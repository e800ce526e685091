"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint import save as save_sharded

from recipes import checkpoints
from recipes.safe_loading import check_parts


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the earlier ones are intact."""


class CheckpointWriter(Callback):
    """Saves `ep0-ba100` folders: written aside, hashed, flushed, renamed; then removes what need not be kept.

    In place of Composer's CheckpointSaver, which writes under the final name. A sharded run writes one file a rank, any
    other one file in all.

    Args:
        folder: where the checkpoints lie; all ranks see it.
        interval_batches: save after every so many batches, and after the last.
        keep: how many of the newest to keep; -1 keeps all.
        permanent_interval_batches: keep those of every so many batches for ever; None keeps none beyond `keep`.
        batches: length of the run.
        identity: what the run is made of; written into each manifest.
        stop_on_error: whether a failed save (a full disk) ends the run, or is reported and tried at the next interval.
    """

    def __init__(
        self,
        folder: Path,
        interval_batches: int,
        keep: int,
        permanent_interval_batches: int | None,
        batches: int,
        identity: dict[str, Any],
        stop_on_error: bool,
    ) -> None:
        self.folder = folder
        self.interval_batches = interval_batches
        self.keep = keep
        self.permanent_interval_batches = permanent_interval_batches
        self.batches = batches
        self.identity = identity
        self.stop_on_error = stop_on_error
        self.saved_batch = -1

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save when it is due."""
        batch = int(state.timestamp.batch)
        if batch % self.interval_batches == 0 or batch == self.batches:
            self.save(state)

    def save(self, state: State) -> None:
        """Save now, unless this batch is saved. All ranks must call it.

        Raises:
            CheckpointError: it failed on some rank, and `stop_on_error` is set or this is the run's last.
        """
        batch = int(state.timestamp.batch)
        if batch == self.saved_batch:
            return
        name = checkpoints.checkpoint_name(int(state.timestamp.epoch), batch)
        partial = self.folder / f"{name}.partial"
        saved_at = {
            "batch": batch,
            "epoch": int(state.timestamp.epoch),
            "sample_in_epoch": int(state.timestamp.sample_in_epoch),
        }
        failure = (
            _attempt(lambda: _prepare(partial))
            or _attempt(lambda: _write(state, partial))
            or _attempt(lambda: check_parts(partial), rank=0)
            or _attempt(lambda: checkpoints.publish(partial, self.folder / name, saved_at, self.identity), rank=0)
        )
        if failure:
            if dist.get_global_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            free_gb = shutil.disk_usage(self.folder).free / 1e9
            message = (
                f"checkpoint {self.folder / name} was not written ({failure}; {free_gb:.3g} GB are free there); "
                "the earlier ones are intact"
            )
            if self.stop_on_error or batch == self.batches:  # without its last checkpoint no run is finished
                raise CheckpointError(message)
            if dist.get_global_rank() == 0:
                print(f"warning: {message}; the run goes on", flush=True)
            return
        self.saved_batch = batch
        if dist.get_global_rank() == 0:
            self._remove_old(batch)
        dist.barrier()

    def _remove_old(self, batch: int) -> None:
        if self.keep < 0:
            return
        # Later ones were passed over as damaged when the run was resumed, and do not count.
        found = [p for p in checkpoints.complete_checkpoints(self.folder) if checkpoints.checkpoint_batch(p) <= batch]
        for path in found[: -self.keep]:
            every = self.permanent_interval_batches
            if every is None or checkpoints.checkpoint_batch(path) % every:
                checkpoints.remove(path)


def _attempt(action: Callable[[], Any], rank: int | None = None) -> str | None:
    """Run on all ranks or on one; every rank gets the first failure's text, or None, so that none waits for another."""
    failure: str | None = None
    if rank is None or dist.get_global_rank() == rank:
        try:
            action()
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            failure = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if isinstance(error, CheckpointException):
                failure = "; ".join(f"rank {r}: {cause[0]!r}" for r, cause in error.failures.items())[:300]
    return next((text for text in dist.all_gather_object(failure) if text), None)


def _prepare(partial: Path) -> None:
    if dist.get_global_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


def _write(state: State, partial: Path) -> None:
    """The state in Composer's own layout, so that Trainer's `load_path` reads it."""
    rng = reproducibility.get_rng_state()  # of all ranks
    content = {"state": state.state_dict(), "rng": rng}
    if state.fsdp_sharded_state_dict_enabled:
        if dist.get_global_rank() != 0:
            del content["rng"]
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        save_sharded(content, storage_writer=FileSystemWriter(partial), planner=planner)
    elif dist.get_global_rank() == 0:
        with (partial / checkpoints.MONOLITH).open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint import save as save_sharded
from torch.utils.serialization import config as serialization

from data_prep.common.redaction import redacted
from recipes.checkpointing import checkpoint
from recipes.checkpointing.bit_sums import Part, first_copy_sums, own_parts
from recipes.checkpointing.probe import Probe
from recipes.checkpointing.remote import RemoteRun, checkpoints_in
from recipes.checkpointing.safe_loading import check_parts
from recipes.distributed.rank_zero import outcome_of

FILES_PER_RANK = 4  # of a sharded checkpoint, written and hashed at a time


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or uploaded; the earlier ones are intact."""


class CheckpointWriter(Callback):
    """Saves `ep0-ba100` folders: written aside, hashed, flushed, renamed; then removes what need not be kept.

    With a remote, rank 0 then uploads it in one thread while training continues. The next save waits for that, so
    that no checkpoint is removed while it is read, and uploads what failed to arrive before.

    In place of Composer's CheckpointSaver, which writes under the final name. A sharded run writes a few files a rank,
    any other one file in all.

    Attributes:
        probe: gives the loss of a fixed batch, which a resumed run computes again; None: none is kept. Set from the
            Trainer.

    Args:
        folder: where the checkpoints lie; all ranks see it.
        interval_batches: save after every so many batches, and after the last.
        keep: how many of the newest to keep; -1 keeps all.
        permanent_interval_batches: keep those of every so many batches for ever; None keeps none beyond `keep`.
        batches: length of the run.
        identity: what the run is made of; written into each manifest.
        stop_on_error: whether a failed save (a full disk) or upload ends the run, or is reported and tried at the next
            interval.
        remote: where the run folder is copied to; rank 0 alone talks to it.
        replicas: copies of a sharded model; None: every rank has all of it.
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
        remote: RemoteRun | None = None,
        replicas: int | None = None,
    ) -> None:
        self.folder = folder
        self.interval_batches = interval_batches
        self.keep = keep
        self.permanent_interval_batches = permanent_interval_batches
        self.batches = batches
        self.identity = identity
        self.stop_on_error = stop_on_error
        self.remote = remote
        self.replicas = replicas
        self.probe: Probe | None = None
        self.saved_batch = self._seen_batch = -1
        self._uploader = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None  # of rank 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """What a run resumes from is saved."""
        if batch := int(state.timestamp.batch):
            self.saved_batch = self._seen_batch = batch

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Save before the evaluation of the same batch, which may take long, or be where the run dies."""
        self._save_if_due(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save where the batch is not evaluated."""
        self._save_if_due(state)

    def _save_if_due(self, state: State) -> None:
        batch = int(state.timestamp.batch)
        due = batch % self.interval_batches == 0 or batch == self.batches
        if due and batch != self._seen_batch:  # once a batch, even if it fails
            self._seen_batch = batch
            self.save(state)

    def save(self, state: State) -> None:
        """Save now, unless this batch is saved. All ranks must call it.

        Raises:
            CheckpointError: it failed on some rank, and `stop_on_error` is set or this is the run's last; or the upload
                of the one before it failed, and `stop_on_error` is set.
        """
        batch = int(state.timestamp.batch)
        if batch == self.saved_batch:
            return
        name = checkpoint.checkpoint_name(int(state.timestamp.epoch), batch)
        partial = self.folder / f"{name}.partial"
        saved_at = {
            "batch": batch,
            "epoch": int(state.timestamp.epoch),
            "sample_in_epoch": int(state.timestamp.sample_in_epoch),
        }
        own: dict[str, Any] = {}
        parts: dict[str, Part] = {}
        kept: dict[str, Any] = {}
        failure = (
            _attempt(lambda: _prepare(partial))
            or _attempt(lambda: kept.update(probe=self.probe.record(state)) if self.probe else None)
            or _attempt(lambda: parts.update(own_parts(state, self.replicas)))
            or _attempt(lambda: _write(state, partial))
            or _attempt(lambda: own.update(checkpoint.own_outputs(partial, dist.get_global_rank())))
        )
        hashed = {name: output for outputs in dist.all_gather_object(own) for name, output in outputs.items()}
        if not failure and (sums := first_copy_sums(parts, state.device)):
            kept["bit_sums"] = sums
        arguments = (partial, self.folder / name, saved_at, self.identity, hashed, kept)
        failure = (
            failure
            or _attempt(lambda: check_parts(partial), rank=0)
            or _attempt(lambda: checkpoint.publish(*arguments), rank=0)
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
                print(f"warning: {message}; the run continues", flush=True)
            return
        self.saved_batch = batch
        self.wait_for_upload()
        if dist.get_global_rank() == 0:
            for old in self._outdated([path.name for path in checkpoint.complete_checkpoints(self.folder)], batch):
                checkpoint.remove(self.folder / old)
            if self.remote:
                self._upload = self._uploader.submit(self._copy_to, self.remote, batch, name)
        dist.barrier()

    def wait_for_upload(self) -> None:
        """Wait until nothing is being uploaded. All ranks must call it.

        Raises:
            CheckpointError: the upload failed, and `stop_on_error` is set.
        """
        failure = self._upload_failure()
        if failure and self.stop_on_error:
            raise CheckpointError(failure)
        if failure and dist.get_global_rank() == 0:
            print(f"warning: {failure}; the next save tries again", flush=True)

    def finish(self) -> None:
        """Upload what the remote lacks of the finished run, and wait for it. All ranks must call it.

        Raises:
            CheckpointError: it failed, after one more attempt than at every other save.
        """
        self._upload_failure()  # is tried again
        if self.remote and dist.get_global_rank() == 0:
            self._upload = self._uploader.submit(self._copy_to, self.remote, self.batches)
        if failure := self._upload_failure():
            raise CheckpointError(failure)  # without its last checkpoint no run is finished

    def saved_before(self, batch: int) -> dict[str, Any]:
        """When the newest checkpoint before a batch was saved, here or on the remote; the run's beginning if none was.

        Raises:
            BadInput: the remote refuses.
            Unavailable: the remote does not answer.
        """
        local = {path.name: path for path in checkpoint.complete_checkpoints(self.folder)}
        far = checkpoints_in(self.remote.contents()) if self.remote else {}
        there = [name for name, complete in far.items() if complete]
        for name in sorted({*local, *there}, key=checkpoint.checkpoint_batch, reverse=True):
            if checkpoint.checkpoint_batch(name) >= batch:
                continue
            if name in local and checkpoint.fault(local[name]) is None:
                return checkpoint.saved_at(local[name])
            if self.remote and name in there and (manifest := self.remote.manifest(name)):
                return manifest["saved_at"]
        return {"batch": 0, "epoch": 0, "sample_in_epoch": 0}

    def discard_from(self, batch: int) -> None:
        """Remove the checkpoints of a batch and of later ones, on the remote first. Rank 0 calls it, between uploads.

        Raises:
            BadInput: the remote refuses.
            Unavailable: the remote does not answer.
        """
        if self.remote:
            contents = self.remote.contents()
            for name in checkpoints_in(contents):
                if checkpoint.checkpoint_batch(name) >= batch:
                    self.remote.remove(name, contents)
        for path in checkpoint.complete_checkpoints(self.folder):
            if checkpoint.checkpoint_batch(path) >= batch:
                checkpoint.remove(path)

    def _upload_failure(self) -> str | None:
        if self.remote is None:
            return None
        failure = _attempt(lambda: outcome_of(self._upload))
        self._upload = None
        return (
            failure and f"upload to {self.remote.url} failed ({failure}); the checkpoints in {self.folder} are intact"
        )

    def _copy_to(self, remote: RemoteRun, batch: int, saved: str | None = None) -> None:
        """Bring the remote to what the folder holds, in the background: first what is new, then remove what is old.

        Args:
            remote: the copy of the run folder.
            batch: how far the run is.
            saved: the checkpoint that was just written; uploaded even if the remote has one of that name.
        """
        remote.upload_run_files(self.folder.parent)
        there = checkpoints_in(remote.contents())
        for path in reversed(checkpoint.complete_checkpoints(self.folder)):
            missing = checkpoint.checkpoint_batch(path) <= batch and not there.get(path.name)
            if path.name == saved or (missing and checkpoint.fault(path) is None):
                remote.upload(path)
        contents = remote.contents()
        there = checkpoints_in(contents)
        partial = [n for n, complete in there.items() if not complete and checkpoint.checkpoint_batch(n) < batch]
        for name in [*partial, *self._outdated([n for n, complete in there.items() if complete], batch)]:
            remote.remove(name, contents)

    def _outdated(self, names: list[str], batch: int) -> list[str]:
        return checkpoint.outdated(names, batch, self.keep, self.permanent_interval_batches)


def _attempt(action: Callable[[], Any], rank: int | None = None) -> str | None:
    """Run on all ranks or on one; every rank gets the first failure's text, or None, so that none waits for another."""
    failure: str | None = None
    if rank is None or dist.get_global_rank() == rank:
        try:
            action()
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            failure = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:500]
            if isinstance(error, CheckpointException):
                failure = redacted("; ".join(f"rank {r}: {cause[0]!r}" for r, cause in error.failures.items()))[:300]
    return next((text for text in dist.all_gather_object(failure) if text), None)


def _prepare(partial: Path) -> None:
    if dist.get_global_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


def _write(state: State, partial: Path) -> None:
    """The state in Composer's own layout, so that Trainer's `load_path` reads it.

    Without torch's CRC-32: it takes 0.4 of the 1.0 s that 1.6 GB take into the page cache, and torch.load (2.7.0) reads
    an altered file without a word all the same. The manifest has a hash that is looked at.
    """
    rng = reproducibility.get_rng_state()  # of all ranks
    content = {"state": state.state_dict(), "rng": rng}
    with cast(Any, serialization).patch({"save.compute_crc32": False}):
        if state.fsdp_sharded_state_dict_enabled:
            if dist.get_global_rank() != 0:
                del content["rng"]
            planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            writer = FileSystemWriter(partial, thread_count=FILES_PER_RANK)
            save_sharded(content, storage_writer=writer, planner=planner)
        elif dist.get_global_rank() == 0:
            with (partial / checkpoint.MONOLITH).open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())

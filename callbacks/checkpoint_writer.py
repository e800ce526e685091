"""Save checkpoints so that each is either complete or absent, and copy them to an object store."""

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

FILES_PER_RANK = 4  # files of a sharded checkpoint that each rank writes and hashes in parallel


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or uploaded; the earlier checkpoints are intact."""


class CheckpointWriter(Callback):
    """Saves checkpoints as folders `ep0-ba100`: written under a temporary name, hashed, flushed to disk, renamed.

    Afterwards it removes old checkpoints that need not be kept. With a remote, a thread of rank 0 then uploads the
    checkpoint while training continues. The next save waits for that upload, so that no checkpoint is removed while it
    is read, and repeats uploads that failed.

    It replaces Composer's CheckpointSaver, which writes under the final name. In a sharded run each rank writes a few
    files; any other run writes a single file.

    Attributes:
        probe: computes the loss of a fixed batch, which a resumed run computes again; None: no such loss is recorded.
            Set from the Trainer.

    Args:
        folder: folder of the checkpoints, which all ranks see.
        interval_batches: number of batches between two saves; the last batch is saved, too.
        keep: number of newest checkpoints to keep; -1 keeps all.
        permanent_interval_batches: interval of the checkpoints that are kept permanently; None: there are none.
        batches: length of the run.
        identity: fingerprint of the run, which is written into each manifest.
        stop_on_error: whether a failed save (such as on a full disk) or upload ends the run. If not, it is reported and
            tried again at the next interval.
        remote: copy of the run folder on an object store; only rank 0 accesses it.
        replicas: number of copies of a sharded model; None: every rank has the whole model.
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
        self._upload: Future[None] | None = None  # on rank 0 only

    def fit_start(self, state: State, logger: Logger) -> None:
        """Remember that the checkpoint from which the run resumes is already saved."""
        if batch := int(state.timestamp.batch):
            self.saved_batch = self._seen_batch = batch

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Save before the evaluation of the same batch, which may take long, and in which the run may die."""
        self._save_if_due(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if the batch was not evaluated."""
        self._save_if_due(state)

    def _save_if_due(self, state: State) -> None:
        batch = int(state.timestamp.batch)
        due = batch % self.interval_batches == 0 or batch == self.batches
        if due and batch != self._seen_batch:  # one attempt for each batch, even if it fails
            self._seen_batch = batch
            self.save(state)

    def save(self, state: State) -> None:
        """Save now, unless this batch is already saved. All ranks must call it.

        Raises:
            CheckpointError: the save failed on some rank, and `stop_on_error` is set or this is the last checkpoint of
                the run; or the upload of the previous checkpoint failed, and `stop_on_error` is set.
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
            if self.stop_on_error or batch == self.batches:  # a run without its last checkpoint is not finished
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
        """Wait until the upload has ended. All ranks must call it.

        Raises:
            CheckpointError: the upload failed, and `stop_on_error` is set.
        """
        failure = self._upload_failure()
        if failure and self.stop_on_error:
            raise CheckpointError(failure)
        if failure and dist.get_global_rank() == 0:
            print(f"warning: {failure}; the next save tries again", flush=True)

    def finish(self) -> None:
        """Upload the files of the finished run that the remote lacks, and wait for it. All ranks must call it.

        Raises:
            CheckpointError: the upload failed twice.
        """
        self._upload_failure()  # a failed upload is repeated below
        if self.remote and dist.get_global_rank() == 0:
            self._upload = self._uploader.submit(self._copy_to, self.remote, self.batches)
        if failure := self._upload_failure():
            raise CheckpointError(failure)  # a run without its last checkpoint is not finished

    def saved_before(self, batch: int) -> dict[str, Any]:
        """Batch, epoch and sample of the newest checkpoint before a batch, here or on the remote.

        If there is none, the result is the beginning of the run.

        Raises:
            BadInput: the remote refuses access.
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
        """Remove the checkpoints of this and later batches, on the remote first. Rank 0 calls it, between uploads.

        Raises:
            BadInput: the remote refuses access.
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
        """Copy the run folder to the remote, in the background: first upload new files, then remove old checkpoints.

        Args:
            remote: copy of the run folder.
            batch: current batch of the run.
            saved: name of the checkpoint that was just written. It is uploaded even if the remote has one of that name.
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
    """Run `action` on all ranks or on one. Every rank gets the text of the first failure, or None.

    So all ranks take the same branch afterwards, and none waits for another in vain.
    """
    failure: str | None = None
    if rank is None or dist.get_global_rank() == rank:
        try:
            action()
        except (Exception, CheckpointException) as error:  # CheckpointException derives from BaseException
            failure = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:500]
            if isinstance(error, CheckpointException):
                failure = redacted("; ".join(f"rank {r}: {cause[0]!r}" for r, cause in error.failures.items()))[:300]
    return next((text for text in dist.all_gather_object(failure) if text), None)


def _prepare(partial: Path) -> None:
    if dist.get_global_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


def _write(state: State, partial: Path) -> None:
    """Write the state in Composer's own layout, so that `load_path` of the Trainer reads it.

    torch's CRC-32 is switched off. It takes 0.4 s of the 1.0 s that writing 1.6 GB into the page cache takes, and
    torch.load (2.7.0) does not check it: it reads an altered file without an error. The manifest has a hash that is
    checked.
    """
    rng = reproducibility.get_rng_state()  # gathers the state of all ranks
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

"""Token shards -> batches `{"input_ids": (B, T) int64, "sample_ids": (B,) int64}`; those of val with `sources`, too.

There is no `labels` entry: the model shifts `input_ids` itself, and a copy would double what travels to the GPU.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import streaming.base.shared.prefix as shared_names
import torch
from composer.core import DataSpec
from composer.utils import dist
from numpy.typing import NDArray
from streaming import Stream, StreamingDataLoader, StreamingDataset
from streaming.base.format import Reader
from streaming.base.partition import get_partitions
from streaming.base.shared import SharedMemory
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World

from data_prep.sharding.shard_format import ShardsInfo, read_shards_info
from data_prep.stage import BadInput
from recipes.config.schema import TrainConfig
from recipes.dataloading import ledger
from recipes.dataloading.shard_reader import TokenShard, open_shards
from recipes.modeling.token_loss import TokenSources

SHARDS_AHEAD = 4  # of a worker: found good, or fetched, before their first sample is due
MACHINE_MEMORY = Path("/dev/shm")  # where there is none, the folder for temporary files

Sample = dict[str, Any]


class ShortEpoch(Exception):
    """An epoch ended before it delivered its samples."""


class TokenStream(Stream):
    """A split of token shards whose files `shard_reader` answers for.

    To StreamingDataset all of it is local and present. So its threads wait for nothing, and it has no claim to a
    folder that the shared memory of a killed run could contest.
    """

    def __init__(self, info: ShardsInfo, split: str, remote: str | None):
        super().__init__(local=str(info.folder / split))
        self._arguments = info, split, remote

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shards of the split; no type is safe but the one that the writer writes."""
        return [*open_shards(*self._arguments)]

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Every shard counts as present; the bytes matter only to a cache limit, which is not used."""
        cache_usage_per_shard[:] = 1


class TokenShards(StreamingDataset):
    """A split of token shards; sample i is `{"input_ids": (seq_len,) uint16 or uint32, "sample_ids": i}`.

    StreamingDataset deals out the samples of an epoch. They are read here, without its two threads, which wait for
    files that are always there and take three quarters of the time of a sample.

    Attributes:
        skipped: positions of epochs that are left out, as `ledger.merge` returns them.
    """

    skipped: Sequence[ledger.Window] = ()
    _resumed: tuple[int, int] = (-1, 0)  # epoch, position in it

    def get_item(self, sample_id: int, retry: int = 7) -> Sample:
        """Sample `sample_id`.

        Raises:
            BadInput: its shard is damaged and cannot be made good.
        """
        shard_id, index = self.spanner[sample_id]
        return {"input_ids": cast(TokenShard, self.shards[shard_id]).tokens(index), "sample_ids": sample_id}

    def __iter__(self) -> Iterator[Sample]:
        """The samples of this worker, of the epoch that is next or was resumed.

        Raises:
            BadInput: a shard is damaged and cannot be made good.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        sample_ids = self._get_work(*self._resume_incr_epoch())
        sample_ids = sample_ids[sample_ids >= 0]  # -1 fills up a last batch
        shard_ids = np.searchsorted(self.sample_offset_per_shard, sample_ids, side="right") - 1
        indices = sample_ids - self.sample_offset_per_shard[shard_ids]
        first_uses = np.sort(np.unique(shard_ids, return_index=True)[1])
        new = np.zeros(len(sample_ids), bool)
        new[first_uses] = True
        shards = cast(list[TokenShard], self.shards)
        ahead = _LookAhead([shards[n] for n in shard_ids[first_uses]])
        try:
            order = zip(sample_ids.tolist(), shard_ids.tolist(), indices.tolist(), new.tolist(), strict=True)
            for sample_id, shard_id, index, is_new in order:
                if is_new:
                    ahead.go_on()
                yield {"input_ids": shards[shard_id].tokens(index), "sample_ids": sample_id}
        finally:
            ahead.stop()

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on where a checkpoint was saved. It counts the samples that were trained on, and not those left out."""
        self._resumed = obj["epoch"], ledger.position(self.skipped, obj["epoch"], obj["sample_in_epoch"])
        self.shuffle_seed, self.num_canonical_nodes = obj["shuffle_seed"], obj["num_canonical_nodes"]  # as workers do
        super().load_state_dict({**obj, "sample_in_epoch": self._resumed[1]})

    def next_position(self) -> tuple[int, int]:
        """The epoch about to start, and the position in it, which is not 0 if the run was resumed there."""
        epoch, position = self._resumed
        return (epoch, position) if epoch >= self.next_epoch else (self.next_epoch, 0)

    def sample_order(self, epoch: int, batch_size: int) -> NDArray[np.int64]:
        """The sample ids of an epoch by position, for any number of ranks: `batch_size` of them make a global batch.

        Within a batch, ranks and workers share them out in their own way.

        Args:
            epoch: the epoch, from 0.
            batch_size: samples of all ranks together.
        """
        shard_samples, sample_of = self.resample_streams(epoch)
        nodes = cast(int, self.num_canonical_nodes)
        order = get_partitions(self.partition_algo, self.epoch_size, nodes, 1, 1, 1, batch_size).flatten()
        if self.shuffle:
            self._set_shuffle_block_size(self._parallel_rank_world)  # as a worker does before its first sample
            block = cast(int, self.shuffle_block_size)
            order = get_shuffle(self.shuffle_algo, shard_samples, nodes, self.shuffle_seed, epoch, block)[order]
        return sample_of[order[: self.size // batch_size * batch_size]]


class _LookAhead(threading.Thread):
    """Finds shards good, or fetches them, ahead of their first sample."""

    def __init__(self, shards: Sequence[TokenShard]):
        super().__init__(daemon=True)
        self._shards = shards
        self._due = threading.Semaphore(SHARDS_AHEAD)
        self._stopped = False
        self.start()

    def run(self) -> None:
        """One shard after another, not too far ahead. An error stays with the shard; who reads of it raises it."""
        for shard in self._shards:
            self._due.acquire()
            if self._stopped:
                return
            with suppress(Exception):
                shard.prepare(wait=False)

    def go_on(self) -> None:
        """The next shard has come to its first sample."""
        self._due.release()

    def stop(self) -> None:
        """Nothing more is needed."""
        self._stopped = True
        self._due.release()


def collate(samples: Sequence[Sample], sources: TokenSources | None = None) -> dict[str, torch.Tensor]:
    """Samples as a batch, widened to the int64 that embedding lookups take; with `sources`, also (B, T) uint8."""
    tokens = np.stack([sample["input_ids"] for sample in samples]).astype(np.int64)
    sample_ids = [sample["sample_ids"] for sample in samples]
    batch = {"input_ids": torch.from_numpy(tokens), "sample_ids": torch.tensor(sample_ids)}
    return {**batch, "sources": sources.of(sample_ids)} if sources else batch


class TokenLoader(StreamingDataLoader):
    """Batches of one rank; an epoch of training has exactly its planned ones.

    StreamingDataset repeats samples until each rank has as many: seven left over for a batch of eight make a batch
    on eight ranks and none on one. Here they make none, so an epoch is as long on any number of ranks.
    """

    def __init__(self, dataset: TokenShards, batch_size: int, world_size: int, **arguments: Any):
        super().__init__(dataset, batch_size=batch_size, **arguments)
        self._dataset = dataset
        self._device_batch_size = batch_size
        self._world_size = world_size

    def __len__(self) -> int:
        return self._planned_samples(0) // self._device_batch_size if self.drop_last else super().__len__()

    def _planned_samples(self, position: int) -> int:
        """Samples that an epoch owes this rank from a position on, those left out among them."""
        size = self._dataset.size
        if not self.drop_last:
            return -(-size // self._world_size)
        batch = self._device_batch_size * self._world_size
        return (size // batch - position // batch) * self._device_batch_size

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch.

        Raises:
            BadInput: a shard is damaged and cannot be made good.
            ShortEpoch: the epoch ended early, by a fault that nothing else noticed.
        """
        epoch, position = self._dataset.next_position()
        planned, delivered = self._planned_samples(position), 0
        try:
            for batch in super().__iter__():
                if self.drop_last and delivered == planned:
                    return
                here = position + delivered * self._world_size
                delivered += len(batch["input_ids"])
                if not ledger.is_skipped(self._dataset.skipped, epoch, here):
                    yield batch
            if delivered < planned:
                split = self._dataset.streams[0].local
                raise ShortEpoch(f"{split}: an epoch delivered {delivered} of {planned} samples")
        except Exception as error:
            stop_workers(self)
            if isinstance(error, BadInput):  # from a worker, it comes wrapped in the worker's traceback
                raise BadInput(str(error).rpartition(f"{BadInput.__name__}: ")[2].strip()) from None
            raise


def stop_workers(loader: Any) -> None:
    """End the processes of a DataLoader that keeps them, while something still holds it.

    Garbage collection would stop the queue first that tells them to end, and torch, where batches go to pinned memory,
    waits 5 s for each at the end of the process.
    """
    if (iterator := getattr(loader, "_iterator", None)) is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def split_batch(batch: dict[str, torch.Tensor], microbatch_size: Any) -> list[dict[str, torch.Tensor]]:
    """A batch in microbatches; the last one of an evaluation may be smaller, which Composer's own split warns of."""
    parts = {name: values.split(int(microbatch_size)) for name, values in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _ignore_usr1(worker: int) -> None:
    """A worker goes on delivering when Slurm tells all processes of a step to leave: its rank decides.

    Not so SIGTERM, with which Python ends the workers themselves.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def registering() -> Iterator[None]:
    """Let one run of a machine at a time claim its names in shared memory.

    StreamingDataset looks for a free name and takes it a moment later: of two runs that start together on one machine,
    one would end with FileExistsError.

    In its search it opens the names of others, and those that killed runs left, twelve files for each, and keeps them
    open to the process' end: after some forty kills more than the 1,024 that a process may open by default. Here it
    lets go of them (mosaicml-streaming 0.13.0, base/shared/memory.py: the handler at exit holds them).

    All machines of a run are claimed or none: of two runs on the same two machines, each would wait for the other's.
    """
    shared_names.SharedMemory = _let_go_when_looked_at
    while not all(dist.all_gather_object((lock := _claim_machine()) is not None)):
        if lock is not None:
            os.close(lock)
        time.sleep(random.SystemRandom().uniform(0.1, 1))  # not the generator that the run has seeded
    try:
        yield
    finally:
        shared_names.SharedMemory = SharedMemory
        os.close(cast(int, lock))


def _claim_machine() -> int | None:
    """A descriptor of the lock of this machine's shared memory, held by its first rank; None: another run's."""
    path = (MACHINE_MEMORY if MACHINE_MEMORY.is_dir() else Path(tempfile.gettempdir())) / "token-shards.lock"
    try:
        lock = os.open(path, os.O_RDONLY)  # with O_CREAT the kernel refuses the file of another user here
    except FileNotFoundError:
        lock = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        if dist.get_local_rank() == 0:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _let_go_when_looked_at(name: str, create: bool, size: int = 0) -> SharedMemory:
    return SharedMemory(name, create, size, auto_cleanup=create)


def build_dataloader(
    cfg: TrainConfig,
    split: str,
    world_size: int,
    skipped: Sequence[ledger.Window] = (),
    sources: TokenSources | None = None,
) -> DataSpec:
    """The loader of one split for this rank.

    The order of training samples depends on `seed` and `data.num_canonical_nodes` alone, so the same samples make up
    each global batch on any number of ranks. The last, partial batch of a training epoch is dropped for that reason:
    which samples it holds would depend on the number of ranks.

    Args:
        cfg: the configuration.
        split: `train` or `val`.
        world_size: ranks.
        skipped: positions that the run leaves out, as `ledger.merge` returns them.
        sources: of the split's tokens; batches then have their `sources`.

    Raises:
        BadInput: no finished shards, or their index is damaged or of another format.
    """
    train = split == "train"
    batch_size = cfg.global_train_batch_size // world_size if train else cfg.device_eval_batch_size
    with registering():
        dataset = TokenShards(
            streams=[TokenStream(read_shards_info(Path(cfg.data.shards)), split, cfg.data.remote)],
            shuffle=train,
            shuffle_algo="py1e",
            shuffle_seed=cfg.seed,
            num_canonical_nodes=cfg.data.num_canonical_nodes,
            batch_size=batch_size,
        )
    dataset.skipped = skipped
    workers = cfg.data.num_workers
    loader = TokenLoader(
        dataset,
        batch_size,
        world_size,
        drop_last=train,
        collate_fn=partial(collate, sources=sources),
        num_workers=workers,
        prefetch_factor=cfg.data.prefetch_factor if workers else None,
        persistent_workers=workers > 0,
        # Its own, for the seeds of its workers: else their number would move the dropout masks after each evaluation.
        generator=torch.Generator().manual_seed(cfg.seed),
        worker_init_fn=_ignore_usr1,
        pin_memory=torch.cuda.is_available() and cfg.device != "cpu",
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
    )

"""Token shards as a StreamingDataset: yields the samples of an epoch in order, from any position, and fetches ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from composer.utils import dist
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.format import Reader
from streaming.base.partition import get_partitions
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World

from recipes.dataloading import skipped_data
from recipes.dataloading.mds_reader import TokenShard, open_shards
from recipes.planning.mixing import ShardFolder

SHARDS_AHEAD = 4  # number of shards that each worker checks or fetches before their first sample is due
Sample = dict[str, Any]


class TokenStream(Stream):
    """A split of token shards whose files `mds_reader` checks and fetches.

    To StreamingDataset all files seem local and present. So its threads never wait for a file, and it registers no
    folder in shared memory, where a killed run may have left the same name.
    """

    def __init__(self, folder: ShardFolder, split: str):
        chosen = folder.samples_a_pass if split == "train" else folder.info.counts[split].samples
        super().__init__(local=str(folder.info.folder / split), choose=chosen)
        self._arguments = folder.info, split, folder.remote, f"{folder.key}.remote"

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shards of the split. Only the column type of our own writer is accepted."""
        return [*open_shards(*self._arguments)]

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Mark every shard as present. The number of bytes would only matter for a cache limit, which is not used."""
        cache_usage_per_shard[:] = 1


class TokenShards(StreamingDataset):
    """A split of token shards; sample i is `{"input_ids": (seq_len,) uint16 or uint32, "sample_ids": i}`.

    StreamingDataset assigns the samples of an epoch to ranks and workers. This class reads them itself, without the two
    threads of StreamingDataset, which wait for files that always exist and take three quarters of the time.

    Attributes:
        skipped: positions of epochs that are skipped, as `skipped_data.merge` returns them.
    """

    skipped: Sequence[skipped_data.Window] = ()
    _resumed: tuple[int, int] = (-1, 0)  # epoch, position in it

    def get_item(self, sample_id: int, retry: int = 7) -> Sample:
        """Return the sample `sample_id`.

        Raises:
            BadInput: its shard is damaged and cannot be repaired.
        """
        shard_id, index = self.spanner[sample_id]
        return {"input_ids": cast(TokenShard, self.shards[shard_id]).tokens(index), "sample_ids": sample_id}

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of this worker in the next or resumed epoch.

        Raises:
            BadInput: a shard is damaged and cannot be repaired.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        sample_ids = self._get_work(*self._resume_incr_epoch())
        sample_ids = sample_ids[sample_ids >= 0]  # an incomplete last batch is filled up with -1
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
        """Resume where a checkpoint was saved, whose count of samples does not include skipped ones.

        The order of samples is that of the checkpoint. The configuration gives the same order, except for runs of an
        earlier version, which allowed and recorded another seed when a run was resumed, but did not use it.
        """
        order, saved = (self.shuffle_seed, self.num_canonical_nodes), (obj["shuffle_seed"], obj["num_canonical_nodes"])
        if saved != order and dist.get_global_rank() == 0:
            print(
                "warning: samples keep the order of the checkpoint, seed={}, data.num_canonical_nodes={}; the values "
                "of the configuration, {} and {}, were never used".format(*saved, *order),
                flush=True,
            )
        self._resumed = obj["epoch"], skipped_data.position(self.skipped, obj["epoch"], obj["sample_in_epoch"])
        self.shuffle_seed, self.num_canonical_nodes = saved  # the workers read them from the checkpoint, too
        super().load_state_dict({**obj, "sample_in_epoch": self._resumed[1]})

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples of a pass in the order of their shards, divided into sections that are then shuffled.

        In StreamingDataset a section has the samples of one shard. With few shards, the share of a folder would then be
        half as large again at both ends of the pass. Here each section is mixed: it has the samples of one shard of the
        largest folder, and a proportional number of samples of each other folder. A single folder is read as in
        StreamingDataset.

        Args:
            epoch: number of the pass, from 0.
            stream_id: index of a single folder; None: all folders.

        Returns:
            The lengths of the sections, and the ids of the samples.
        """
        drawn = [self._drawn(n, epoch) for n in (range(self.num_streams) if stream_id is None else [stream_id])]
        most = max(drawn, key=len)
        shards = np.searchsorted(self.sample_offset_per_shard, most, side="right")
        ends = np.append(np.flatnonzero((np.diff(shards) != 0) | (np.diff(most) <= 0)) + 1, len(most))
        if len(drawn) == 1:
            return np.diff(ends, prepend=0), most
        places = np.concatenate([(np.arange(len(one)) + 0.5) / len(one) for one in drawn])
        order = np.argsort(places, kind="stable")
        return np.diff(np.searchsorted(places[order], ends / len(most)), prepend=0), np.concatenate(drawn)[order]

    def _drawn(self, stream: int, epoch: int) -> NDArray[np.int64]:
        """Return the samples of a folder in a pass, sorted within each round through the folder.

        StreamingDataset draws new samples in each pass, so some samples come twice before others come once. Here a
        folder is read in a random order. The next pass continues where the last one stopped, and after all samples have
        been read, a new round with another order begins.
        """
        size, chosen = int(self.samples_per_stream[stream]), int(self.streams[stream].choose)
        at, end, turns = epoch * chosen, (epoch + 1) * chosen, []
        while at < end:
            turn, first = divmod(at, size)
            last = min(size, first + end - at)
            order = np.arange(size)
            if last - first < size:
                np.random.default_rng([self.shuffle_seed, stream, turn]).shuffle(order)
            turns.append(np.sort(order[first:last]))
            at += last - first
        return np.concatenate(turns) + self.sample_offset_per_stream[stream]

    def by_folder(self, samples: NDArray[np.int64]) -> dict[Path, NDArray[np.int64]]:
        """Group samples by the folder of their split. Within a folder, samples are numbered from 0."""
        streams = np.searchsorted(self.sample_offset_per_stream, samples, side="right") - 1
        return {
            Path(stream.local): samples[streams == n] - self.sample_offset_per_stream[n]
            for n, stream in enumerate(self.streams)
        }

    def next_position(self) -> tuple[int, int]:
        """Return the next epoch and the position at which it begins, which is above 0 after a resume."""
        epoch, position = self._resumed
        return (epoch, position) if epoch >= self.next_epoch else (self.next_epoch, 0)

    def sample_order(self, epoch: int, batch_size: int) -> NDArray[np.int64]:
        """Return the sample ids of an epoch by position. Each `batch_size` of them are a global batch.

        The result does not depend on the number of ranks. Within a batch, samples are distributed over ranks and
        workers in an order that is not given here.

        Args:
            epoch: number of the epoch, from 0.
            batch_size: number of samples in a batch over all ranks.
        """
        shard_samples, sample_of = self.resample_streams(epoch)
        nodes = cast(int, self.num_canonical_nodes)
        order = get_partitions(self.partition_algo, self.epoch_size, nodes, 1, 1, 1, batch_size).flatten()
        if self.shuffle:
            self._set_shuffle_block_size(self._parallel_rank_world)  # as a worker does before its first sample
            block = cast(int, self.shuffle_block_size)
            order = get_shuffle(self.shuffle_algo, shard_samples, nodes, self.shuffle_seed, epoch, block)[order]
        return sample_of[order[: self.epoch_size // batch_size * batch_size]]


class _LookAhead(threading.Thread):
    """Thread that checks or fetches shards before their first sample is due."""

    def __init__(self, shards: Sequence[TokenShard]):
        super().__init__(daemon=True)
        self._shards = shards
        self._due = threading.Semaphore(SHARDS_AHEAD)
        self._stopped = False
        self.start()

    def run(self) -> None:
        """Prepare one shard after another, not too far ahead. A shard keeps its error and raises it when it is read."""
        for shard in self._shards:
            self._due.acquire()
            if self._stopped:
                return
            with suppress(Exception):
                shard.prepare(wait=False)

    def go_on(self) -> None:
        """Note that the reader has reached the next shard."""
        self._due.release()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped = True
        self._due.release()

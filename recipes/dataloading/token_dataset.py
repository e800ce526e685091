"""Token shards as a StreamingDataset: the samples of an epoch in their order, from any of them on, fetched ahead."""

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

SHARDS_AHEAD = 4  # of a worker: found good, or fetched, before their first sample is due
Sample = dict[str, Any]


class TokenStream(Stream):
    """A split of token shards whose files `mds_reader` answers for.

    To StreamingDataset all of it is local and present. So its threads wait for nothing, and it has no claim to a
    folder that the shared memory of a killed run could contest.
    """

    def __init__(self, folder: ShardFolder, split: str):
        chosen = folder.samples_a_pass if split == "train" else folder.info.counts[split].samples
        super().__init__(local=str(folder.info.folder / split), choose=chosen)
        self._arguments = folder.info, split, folder.remote, f"{folder.key}.remote"

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
        skipped: positions of epochs that are left out, as `skipped_data.merge` returns them.
    """

    skipped: Sequence[skipped_data.Window] = ()
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
        """Resume where a checkpoint was saved. It counts the samples that were trained on, and not those left out.

        The order is the checkpoint's. It is the configuration's, too, unless an earlier version let another seed pass,
        which it recorded and which did not act.
        """
        order, saved = (self.shuffle_seed, self.num_canonical_nodes), (obj["shuffle_seed"], obj["num_canonical_nodes"])
        if saved != order and dist.get_global_rank() == 0:
            print(
                "warning: samples keep the order of the checkpoint, seed={}, data.num_canonical_nodes={}; the {}, {} "
                "of the configuration have never acted".format(*saved, *order),
                flush=True,
            )
        self._resumed = obj["epoch"], skipped_data.position(self.skipped, obj["epoch"], obj["sample_in_epoch"])
        self.shuffle_seed, self.num_canonical_nodes = saved  # as workers do
        super().load_state_dict({**obj, "sample_in_epoch": self._resumed[1]})

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of a pass in the order of their shards, in runs that are then shuffled.

        StreamingDataset has a run for what a pass takes of a shard, and with few shards the share of a folder is then
        half as large again at both ends of the pass. Here each run is mixed: it has what the folder that gives most has
        in one shard, and of the other folders their shares. One folder alone is read as StreamingDataset reads it.

        Args:
            epoch: the pass, from 0.
            stream_id: one folder alone; None: all.

        Returns:
            The lengths of the runs, and the ids of the samples.
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
        """The samples of a folder in a pass, each turn through the folder in order.

        StreamingDataset draws them anew in each pass, so that some come again before others came once. Here a folder is
        gone through in a random order, from pass to pass where the last one stopped, and in another order once all of
        its samples have been read.
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
        """Samples by the folder of the split that they lie in, which numbers its own from 0."""
        streams = np.searchsorted(self.sample_offset_per_stream, samples, side="right") - 1
        return {
            Path(stream.local): samples[streams == n] - self.sample_offset_per_stream[n]
            for n, stream in enumerate(self.streams)
        }

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
        return sample_of[order[: self.epoch_size // batch_size * batch_size]]


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

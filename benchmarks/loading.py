"""What verification costs: the verified reader against StreamingDataset on the same shards, and the share of hashing.

Both make the same batches and go through the same loader, so that only the reading differs. The passes of both
alternate, each over fresh datasets that verify anew. Time in hashing is taken around each call of
xxhash, in the one process of a pass without loader processes; the clock's own time counts as hashing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import xxhash
from streaming import StreamingDataLoader, StreamingDataset

# Before this folder, whose data_prep.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.shard_format import COLUMN, ShardsInfo, read_shards_info
from data_prep.stage import run
from recipes.data import TokenShards, TokenStream, collate, registering

ORDER: dict[str, Any] = {"shuffle": True, "shuffle_seed": 17, "num_canonical_nodes": 1, "batch_size": 8}


class PlainShards(StreamingDataset):
    """Streaming's own reading, and our tensors."""

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, torch.Tensor]:
        """As `TokenShards.get_item`."""
        tokens = super().get_item(sample_id, retry)[COLUMN].astype(np.int64)
        return {"input_ids": torch.from_numpy(tokens), "sample_ids": torch.tensor(sample_id)}


def verified(info: ShardsInfo) -> StreamingDataset:
    """The dataset that training reads."""
    with registering():
        return TokenShards(streams=[TokenStream(info, "train", None)], **ORDER)


def plain(info: ShardsInfo) -> StreamingDataset:
    """What it is compared with."""
    with registering():
        return PlainShards(local=str(info.folder / "train"), **ORDER)


def seconds(dataset: StreamingDataset, workers: int, limit_samples: int) -> float:
    """Time to load `limit_samples` samples in the order of training, from the first batch on."""
    batches = limit_samples // ORDER["batch_size"]
    loader = StreamingDataLoader(
        dataset,
        batch_size=ORDER["batch_size"],
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        drop_last=True,
        collate_fn=collate if isinstance(dataset, TokenShards) else None,
    )
    iterator = iter(loader)
    next(iterator)
    begin_s = time.perf_counter()
    for _ in range(batches - 1):
        next(iterator)
    return time.perf_counter() - begin_s


def hashing_seconds(info: ShardsInfo, limit_samples: int) -> tuple[float, float]:
    """Seconds of a pass without loader processes, and those of them that are spent in xxhash."""
    spent_s = 0.0

    def timed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(data: Any) -> Any:
            nonlocal spent_s
            begin_s = time.perf_counter()
            result = function(data)
            spent_s += time.perf_counter() - begin_s
            return result

        return call

    dataset = verified(info)
    with (
        patch.object(xxhash, "xxh64_hexdigest", timed(xxhash.xxh64_hexdigest)),
        patch.object(xxhash, "xxh3_64_intdigest", timed(xxhash.xxh3_64_intdigest)),
    ):
        total_s = seconds(dataset, 0, limit_samples)
    return total_s, spent_s


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="a shards folder")
    parser.add_argument("--limit", type=int, default=100_000, help="samples a pass (default 100000, or all there are)")
    parser.add_argument("--repeats", type=int, default=7, help="passes of each, alternating (default 7)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes (default 0 1 2)")
    args = parser.parse_args(argv)
    info = read_shards_info(args.shards)
    limit = min(args.limit, info.counts["train"].samples)
    print(f"{limit:,} samples of {info.seq_len} tokens a pass, {args.repeats} passes of each")
    plain_s = 0.0
    for workers in args.workers:
        taken: dict[str, list[float]] = {"verified": [], "plain": []}
        for _ in range(args.repeats):
            taken["verified"].append(seconds(verified(info), workers, limit))
            taken["plain"].append(seconds(plain(info), workers, limit))
        plain_s = plain_s or statistics.median(taken["plain"])
        rates = {name: limit / statistics.median(values) for name, values in taken.items()}
        ratios = sorted(ours / theirs for ours, theirs in zip(taken["verified"], taken["plain"], strict=True))
        print(
            f"{workers} loader processes: verified {rates['verified']:,.0f} samples/s, plain {rates['plain']:,.0f}; "
            f"time of verified / plain: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    passes = [hashing_seconds(info, limit) for _ in range(args.repeats)]
    ours, hashing = (statistics.median(values) for values in zip(*passes, strict=True))
    print(f"hashing: {hashing / ours:.2%} of the verified reader's time, {hashing / plain_s:.2%} of the plain one's")


if __name__ == "__main__":
    run(main)

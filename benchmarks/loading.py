"""Samples a second that the verified reader loads, against StreamingDataset on the same raw shards, in one process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from streaming import StreamingDataset

from data_prep.shard_format import read_shards_info
from data_prep.stage import run
from recipes.data import TokenShards, TokenStream


def samples_per_second(dataset: StreamingDataset, limit: int) -> float:
    """Load up to `limit` samples in the order of training; the first sample of each shard pays for opening it."""
    begin, loaded = time.perf_counter(), 0
    for _ in dataset:
        loaded += 1
        if loaded == limit:
            break
    return loaded / (time.perf_counter() - begin)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="a shards folder")
    parser.add_argument("--limit", type=int, default=100_000, help="samples a pass (default 100000)")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each, alternating; the best counts")
    args = parser.parse_args(argv)
    info = read_shards_info(args.shards)
    order = {"shuffle": True, "shuffle_seed": 17, "num_canonical_nodes": 1, "batch_size": 8}
    best = {"verified": 0.0, "plain": 0.0}
    for _ in range(args.repeats):
        for name in best:
            if name == "verified":  # a dataset of its own each time, so that every pass verifies
                dataset: StreamingDataset = TokenShards(streams=[TokenStream(info, "train", None)], **order)
            else:
                dataset = StreamingDataset(local=str(args.shards / "train"), **order)
            best[name] = max(best[name], samples_per_second(dataset, args.limit))
    for name, value in best.items():
        print(f"{name:9} {value:>10,.0f} samples/s")
    print(f"time of verified / plain: {best['plain'] / best['verified']:.3f}")


if __name__ == "__main__":
    run(main)

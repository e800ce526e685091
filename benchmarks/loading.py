"""Measure how fast a loader process delivers samples: our verifying reader, StreamingDataset and np.memmap.

python benchmarks/loading.py                                       # shards of random tokens, some minutes
python benchmarks/loading.py --shards data/sample/shards-256       # existing shards, with their compression

The readers alternate, and each pass makes a new dataset, which verifies again. A ratio compares two passes of the same
round. All readers deliver batches of eight samples as int64 tensors in shuffled order. Shards with zstd are
decompressed during the pass. All files are in the page cache, so that the reader is measured and not the disk.

The benchmark also measures the time of each part of our reader, the time to the first batch, and the memory over an
epoch.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
import xxhash
import zstandard
from streaming import StreamingDataLoader, StreamingDataset

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import machine
from data_prep.common.errors import BadInput, run
from data_prep.sharding.shard_format import (
    COLUMN,
    ShardsInfo,
    SplitCounts,
    file_entry,
    mds_config,
    mds_shard,
    read_shards_info,
    token_dtype,
)
from recipes.dataloading import loader
from recipes.dataloading.loader import collate
from recipes.dataloading.mds_reader import TokenShard
from recipes.dataloading.shared_memory import registering
from recipes.dataloading.token_dataset import TokenShards, TokenStream
from recipes.planning.mixing import ShardFolder

VOCAB_SIZE, SEQ_LEN, SHARD_SAMPLES = 28_896, 1024, 256
ORDER: dict[str, Any] = {"shuffle": True, "shuffle_seed": 17, "num_canonical_nodes": 1, "batch_size": 8}
LOOKS = 20  # measurements of memory per epoch
BESIDE = "in a thread beside it"  # label of the time in the thread that reads ahead


class PlainShards(StreamingDataset):
    """StreamingDataset's own reader with our tensors."""

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, torch.Tensor]:
        """Return a sample as `TokenShards.get_item` does."""
        tokens = super().get_item(sample_id, retry)[COLUMN].astype(np.int64)
        return {"input_ids": torch.from_numpy(tokens), "sample_ids": torch.tensor(sample_id)}


def make_shards(folder: Path, shards: int, compression: str | None) -> ShardsInfo:
    """Write a split of random tokens in the format of `data_prep/shards.py`: shards of 256 samples of 1,024 tokens."""
    draw = np.random.default_rng(17)
    config = mds_config(VOCAB_SIZE, SEQ_LEN, compression and f"{compression}:3", 1 << 26)
    split = folder / "train"
    split.mkdir(parents=True)
    entries, written = [], 0
    for n in range(shards):
        # Small ids are frequent, like frequent words in text, so that the data can be compressed.
        tokens = (draw.random((SHARD_SAMPLES, SEQ_LEN)) ** 4 * VOCAB_SIZE).astype(token_dtype(VOCAB_SIZE))
        name, raw = f"shard.{n:05}.mds", mds_shard(tokens, config)
        entry = {**config, "samples": len(tokens), "raw_data": file_entry(name, raw), "zip_data": None}
        content = raw
        if compression:
            name, content = f"{name}.{compression}", zstandard.ZstdCompressor(level=3).compress(raw)
            entry["zip_data"] = file_entry(name, content)
        (split / name).write_bytes(content)
        written += len(content)
        entries.append(entry)
    index = json.dumps({"version": 2, "shards": entries}).encode()
    (split / "index.json").write_bytes(index)
    samples = shards * SHARD_SAMPLES
    counts = SplitCounts(samples, samples, samples * SEQ_LEN, 0, written)
    outputs = {"train/index.json": file_entry("index.json", index)["hashes"]}
    return ShardsInfo(
        folder, "", SEQ_LEN, True, VOCAB_SIZE, VOCAB_SIZE - 1, "", {"train": counts}, {}, {"outputs": outputs}
    )


def verified(info: ShardsInfo) -> StreamingDataset:
    """The dataset that training uses."""
    with registering():
        return TokenShards(
            streams=[TokenStream(ShardFolder(None, info, None, info.counts["train"].samples), "train")], **ORDER
        )


def plain(info: ShardsInfo) -> StreamingDataset:
    """The StreamingDataset for comparison; it keeps the compressed files."""
    with registering():
        return PlainShards(local=str(info.folder / "train"), keep_zip=True, **ORDER)


def loader_of(dataset: StreamingDataset, workers: int) -> StreamingDataLoader:
    """A loader of batches, as in training."""
    return StreamingDataLoader(
        dataset,
        batch_size=ORDER["batch_size"],
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        drop_last=True,
        collate_fn=collate if isinstance(dataset, TokenShards) else None,
    )


def seconds(dataset: StreamingDataset, workers: int, limit_samples: int) -> float:
    """Seconds to load `limit_samples` samples in the order of training, after the first batch."""
    iterator = iter(loader_of(dataset, workers))
    next(iterator)
    begin_s = time.perf_counter()
    for _ in range(limit_samples // ORDER["batch_size"] - 1):
        next(iterator)
    return time.perf_counter() - begin_s


def mapped_seconds(path: Path, samples: int, seq_len: int, limit_samples: int) -> float:
    """Seconds to load as many samples from a memory-mapped file, without checks, resumption, processes or loader."""
    stream = np.memmap(path, np.uint16, "r", shape=(samples, seq_len))
    order = np.random.default_rng(17).permutation(samples)[:limit_samples]
    begin_s = time.perf_counter()
    for batch in np.split(order, range(ORDER["batch_size"], len(order), ORDER["batch_size"])):
        torch.from_numpy(np.stack([stream[n] for n in batch]).astype(np.int64))
    return time.perf_counter() - begin_s


def forget_unpacked(info: ShardsInfo) -> None:
    """Remove decompressed shards, so that the next pass decompresses them again."""
    for packed in (info.folder / "train").glob("*.zstd"):
        packed.with_suffix("").unlink(missing_ok=True)


def shares(info: ShardsInfo, limit_samples: int) -> tuple[float, dict[str, float]]:
    """Seconds of a pass without loader processes, in total and in each part, the cost of timing included."""
    spent_s: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin_s = time.perf_counter()
            result = function(*args, **kwargs)
            part = name if threading.current_thread() is threading.main_thread() else f"{name}, {BESIDE}"
            spent_s[part] = spent_s.get(part, 0.0) + time.perf_counter() - begin_s
            return result

        return call

    parts = [
        (xxhash, "xxh64_hexdigest", "hashing shards"),
        (xxhash, "xxh3_64_intdigest", "hashing samples"),
        (TokenShard, "_read_sample", "reading samples"),
    ]
    dataset = verified(info)
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(sys.modules[__name__], "collate", timed("batches of int64", loader.collate)))
        begin_s = time.perf_counter()
        for _ in zip(range(limit_samples // ORDER["batch_size"]), loader_of(dataset, 0), strict=False):
            pass
        total_s = time.perf_counter() - begin_s  # includes the first batch, because its parts are counted too
    return total_s, spent_s


def first_batch_seconds(make: Callable[[ShardsInfo], StreamingDataset], info: ShardsInfo) -> float:
    """Seconds from making the dataset to the first batch."""
    begin_s = time.perf_counter()
    next(iter(loader_of(make(info), 0)))
    return time.perf_counter() - begin_s


def memory_over_an_epoch(info: ShardsInfo) -> list[float]:
    """Memory of this process in MB, without the page cache, at regular points of a pass."""
    samples, process = info.counts["train"].samples, psutil.Process()
    batches = samples // ORDER["batch_size"]
    seen = []
    for n, _ in enumerate(iter(loader_of(verified(info), 0))):
        if n % max(1, batches // LOOKS) == 0:
            gc.collect()
            seen.append(process.memory_full_info().uss / 1e6)
    return seen


def rows_of(
    sets: dict[str, ShardsInfo], workers: Sequence[int], repeats: int, limit: int, mapped: Path | None
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Measure all readers; yield name, seconds per round, and StreamingDataset's seconds with the same setting."""
    for kind, info in sets.items():
        for count in workers:
            ours, theirs = [], []
            for _ in range(repeats):
                for times, make in ((ours, verified), (theirs, plain)):
                    forget_unpacked(info)
                    times.append(seconds(make(info), count, limit))
            yield f"ours, verified | {kind} | {count}", ours, theirs
            yield f"StreamingDataset | {kind} | {count}", theirs, theirs
    if mapped:
        info = next(iter(sets.values()))
        times = [mapped_seconds(mapped, info.counts["train"].samples, info.seq_len, limit) for _ in range(repeats)]
        yield "np.memmap, no loader | raw | 0", times, []


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="shards folder (default: new shards of random tokens)")
    parser.add_argument(
        "--made-shards", type=int, default=1000, help="number of new shards (default 1000, 0.5 GB twice)"
    )
    parser.add_argument(
        "--limit", type=int, default=40_000, help="samples per pass (default 40000, or all if there are fewer)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="passes of each reader, alternating (default 5)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of loader processes (default 0 1 2)"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.limit < 2 * ORDER["batch_size"]:
        raise BadInput(f"--repeats {args.repeats} must be above 0, and --limit {args.limit} two batches of 8 at least")
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        mapped = None
        if args.shards:
            info = read_shards_info(args.shards)
            kind = "zstd" if info.manifest["arguments"]["compression"] else "raw"
            sets = {kind: info}
        else:
            sets = {
                name: make_shards(Path(folder) / name, args.made_shards, compression)
                for name, compression in (("raw", None), ("zstd", "zstd"))
            }
            mapped = Path(folder) / "tokens.bin"
            shape = (sets["raw"].counts["train"].samples, SEQ_LEN)
            tokens = np.random.default_rng(17).integers(0, VOCAB_SIZE, shape, np.uint16)
            tokens.tofile(mapped)
            del tokens
        report(sets, args.workers, args.repeats, args.limit, mapped)


def report(sets: dict[str, ShardsInfo], workers: Sequence[int], repeats: int, limit: int, mapped: Path | None) -> None:
    """Run all measurements and print them."""
    info = next(iter(sets.values()))
    samples = info.counts["train"].samples
    limit = min(limit, samples)
    shards = len(json.loads((info.folder / "train/index.json").read_bytes())["shards"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml-streaming"))
    print(
        f"{limit:,} of {samples:,} samples of {info.seq_len} tokens in {shards:,} shards a pass, {repeats} passes of "
        f"each, median; {machine()}; {versions}.\n"
    )
    print("| reader | shards | loader processes | tokens/s | time / StreamingDataset's |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, times, against in rows_of(sets, workers, repeats, limit, mapped):
        ratios = sorted(one / other for one, other in zip(times, against, strict=False))
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})" if ratios else "–"
        print(f"| {name} | {limit * info.seq_len / statistics.median(times):,.0f} | {ratio} |", flush=True)
    total_s, parts = shares(info, limit)
    print(f"\nTime of each part of our reader, without loader processes ({total_s / limit * 1e6:.1f} µs per sample):")
    own_s = sum(spent_s for name, spent_s in parts.items() if BESIDE not in name)
    parts["the rest: streaming's order, the loader, Python"] = total_s - own_s
    for name, spent_s in parts.items():
        print(f"  {name}: {spent_s / total_s:.1%}")
    for name, make in (("ours", verified), ("StreamingDataset", plain)):
        taken = [first_batch_seconds(make, info) for _ in range(repeats)]
        print(f"Time to the first batch with {shards:,} shards, {name}: {statistics.median(taken):.2f} s")
    seen = memory_over_an_epoch(info)
    print(
        f"Memory of the process over an epoch of {samples * info.seq_len / 1e6:,.0f}M tokens, without the page cache: "
        f"{seen[0]:,.0f} MB at the first batch, {seen[len(seen) // 2]:,.0f} half-way, {seen[-1]:,.0f} at the end"
    )


if __name__ == "__main__":
    run(main)

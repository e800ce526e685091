"""The second pass of a shard build: cut samples out of the files of tokens and pack them as MDS shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zstandard
from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import link, read_json, write_json
from data_prep.files import json_lines
from data_prep.running.progress import Done, Progress
from data_prep.running.workers import Task, Tick, Workers, written_aside
from data_prep.sharding.encoding import Job, Slice
from data_prep.sharding.shard_format import (
    DOCUMENTS,
    SPLITS,
    SplitCounts,
    file_entry,
    mds_shard,
    samples_per_shard,
    token_dtype,
)


def pack_shard(job: Job, split: str, number: int, slices: Sequence[Slice], tick: Tick) -> None:
    """Write one shard from the files of tokens, `SPLIT.shard.NUMBER.mds` or `.mds.zstd`, and then its index entry.

    Args:
        job: settings of the build.
        split: `train` or `val`.
        number: number of the shard.
        slices: slices of the files that hold the shard's tokens.
        tick: called with the numbers of bytes and tokens that were packed.
    """
    samples = job.read(slices).reshape(-1, job.seq_len)
    name = f"shard.{number:05}.mds"
    raw = mds_shard(samples, job.config)
    entry = {**job.config, "samples": len(samples), "raw_data": file_entry(name, raw), "zip_data": None}
    data = raw
    if compression := job.config["compression"]:
        algorithm, _, level = compression.partition(":")
        data = zstandard.ZstdCompressor(level=int(level)).compress(raw)
        name = f"{name}.{algorithm}"
        entry["zip_data"] = file_entry(name, data)
    with written_aside(job.work / f"{split}.{name}") as path:
        path.write_bytes(data)
    write_json(job.work / f"{split}.shard.{number:05}.json", entry)
    tick(bytes=samples.nbytes, tokens=samples.size)


def count_samples(split: str, parts: Sequence[Done], seq_len: int) -> SplitCounts:
    """Count the samples that the tokens of a split give.

    Raises:
        BadInput: the tokens do not fill one sample.
    """
    total = Done(*map(sum, zip(*parts, strict=True)))
    samples, rest = divmod(total.tokens, seq_len)
    if not samples:
        raise BadInput(
            f"{split} has {total.tokens:,} tokens, too few for one sample of {seq_len:,}; "
            f"use a smaller --seq-len, or a corpus with a larger share in {split}"
        )
    return SplitCounts(total.documents, samples, samples * seq_len, rest, total.bytes)


def pack_shards(job: Job, parts: dict[str, dict[str, Done]], counts: dict[str, SplitCounts], workers: Workers) -> None:
    """Write the shards that are not written yet."""
    tasks, begun = [], Done()
    shard_tokens = samples_per_shard(job.config) * job.seq_len
    token_bytes = np.dtype(token_dtype(job.vocab_size)).itemsize
    for split in SPLITS:
        for number, start in enumerate(range(0, counts[split].tokens, shard_tokens)):
            count = min(shard_tokens, counts[split].tokens - start)
            if (job.work / f"{split}.shard.{number:05}.json").exists():
                begun = Done(begun.bytes + count * token_bytes, 0, begun.tokens + count)
            else:
                arguments = (job, split, number, slices_of(parts[split], start, count))
                tasks.append(Task(f"{split}/shard.{number:05}", arguments))
    total_bytes = token_bytes * sum(c.tokens for c in counts.values())
    with Progress("pack", total_bytes, begun) as progress:
        workers.run(pack_shard, tasks, job.work, progress)


def slices_of(parts: dict[str, Done], start: int, count: int) -> list[Slice]:
    """The slices of the token files that hold `count` tokens of a split's stream, from the token `start` on."""
    slices, begin = [], 0
    for name, part in parts.items():
        first, end = max(start, begin), min(start + count, begin + part.tokens)
        if first < end:
            slices.append((name, first - begin, end - first))
        begin += part.tokens
    return slices


def assemble(job: Job, folder: Path, parts: Sequence[str]) -> None:
    """Put the shards of a split, their index and the list of documents into the split's folder."""
    folder.mkdir()
    split = folder.name
    entries = [read_json(path) for path in sorted(job.work.glob(f"{split}.shard.*.json"))]
    for entry in entries:
        name = (entry["zip_data"] or entry["raw_data"])["basename"]
        link(job.work / f"{split}.{name}", folder / name)
    (folder / "index.json").write_text(json.dumps({"shards": entries, "version": 2}, sort_keys=True))
    with json_lines.Writer(folder / DOCUMENTS) as listing:
        for part in tqdm(parts, desc=f"list {split}", unit=" parts", disable=None):
            listing.append(job.work / f"{part}.documents.zst")

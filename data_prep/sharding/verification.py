"""Verify token shards: hash all files again, decode and count all tokens, and compare with the manifest.

This module reads MDS files by their layout, without the library that wrote them. A shard is `uint32 samples`, `uint32
offsets[samples + 1]`, a JSON header, and the samples, which all have the same size here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import canonical_json, read_json, sha256_file
from data_prep.common.manifest import MANIFEST, read_manifest, seal
from data_prep.files import json_lines
from data_prep.sharding.shard_format import (
    COLUMN,
    DOCUMENTS,
    MADE_BY,
    SPLITS,
    STAGE,
    ShardsInfo,
    SplitCounts,
    mds_encoding,
    read_documents,
    read_index,
    read_shards_info,
    token_dtype,
)

HASHES = {"sha256": hashlib.sha256, "xxh64": xxhash.xxh64}


def verify(folder: Path) -> ShardsInfo:
    """Check a shards folder completely. One shard at a time and the ids of all documents of val are in memory.

    Raises:
        BadInput: a file in the folder differs from what was written; the message names the file and the difference.
    """
    check_manifest(folder)
    info = read_shards_info(folder)
    _check_files(info)
    held_out = {record["id"] for _, record in read_documents(folder / "val")}
    for split in SPLITS:
        _check_split(info, split, held_out if split == "train" else set())
    return info


def check_manifest(folder: Path) -> None:
    """Check that the manifest was not altered: it holds the hashes of all other files, and its own hash as `seal`."""
    read_manifest(folder, STAGE, MADE_BY)
    path = folder / MANIFEST
    manifest = read_json(path)
    if manifest.get("seal") != seal(manifest) or path.read_text(encoding="utf-8") != canonical_json(manifest):
        raise BadInput(f"{path} was altered after it was written")


def _check_files(info: ShardsInfo) -> None:
    """Check that every file exists and has its hash, and that there are no other files except unpacked shards."""
    outputs = info.manifest["outputs"]
    present = {path.relative_to(info.folder).as_posix() for path in info.folder.rglob("*") if path.is_file()}
    if missing := sorted(outputs.keys() - present):
        raise BadInput(f"{info.folder / missing[0]} is missing ({len(missing)} of {len(outputs)} files are missing)")
    for name, expected in tqdm(outputs.items(), desc="hash", unit=" files", disable=None):
        path = info.folder / name
        measured = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for key, value in expected.items():
            if measured[key] != value:
                raise BadInput(f"{path}: {key} is {measured[key]}, the manifest says {value}")
    unpacked = {
        f"{split}/{shard['raw_data']['basename']}"
        for split in SPLITS
        for shard in read_index(info.folder / split)
        if shard["zip_data"]
    }
    if foreign := sorted(present - outputs.keys() - unpacked - {MANIFEST}):
        raise BadInput(f"{info.folder / foreign[0]} does not belong to the shards ({len(foreign)} such files)")


def _check_split(info: ShardsInfo, split: str, held_out: set[str]) -> None:
    """Count the tokens again, and compare them with the list of documents and the manifest."""
    folder = info.folder / split
    documents = size_bytes = stream_tokens = 0
    ends = array("q")
    for documents, (_, record) in enumerate(read_documents(folder), start=1):
        if record["id"] in held_out:
            raise BadInput(f"{folder / DOCUMENTS}, line {documents}: {record['id']} is in val too")
        size_bytes += record["bytes"]
        stream_tokens += record["tokens"]
        ends.append(stream_tokens - 1)

    samples = 0
    found_ends: list[np.ndarray] = []
    for path, tokens in _read_shards(info, split):
        if tokens.max(initial=0) >= info.vocab_size:
            raise BadInput(f"{path} holds the id {tokens.max()}, but the vocabulary has {info.vocab_size} entries")
        found_ends.append(np.flatnonzero(tokens.ravel() == info.eos_token_id) + samples * info.seq_len)
        samples += len(tokens)

    tokens = samples * info.seq_len
    counts = SplitCounts(documents, samples, tokens, stream_tokens - tokens, size_bytes)
    if counts != info.counts[split]:
        raise BadInput(f"{folder} holds {counts}, the manifest says {info.counts[split]}")
    expected_ends = np.array(ends if info.eos_between_documents else [], np.int64)
    expected_ends = expected_ends[expected_ends < tokens]
    if not np.array_equal(np.concatenate(found_ends), expected_ends):
        raise BadInput(f"{folder}: end-of-text is not where {DOCUMENTS} says that documents end")


def _read_shards(info: ShardsInfo, split: str) -> Iterator[tuple[Path, np.ndarray]]:
    """Read each shard and check its hashes in the index; yield its file and its tokens, (samples, seq_len)."""
    folder = info.folder / split
    encoding = mds_encoding(info.vocab_size, info.seq_len)
    for shard in tqdm(read_index(folder), desc=f"decode {split}", unit=" shards", disable=None):
        raw = folder / shard["raw_data"]["basename"]
        if (shard["column_names"], shard["column_encodings"]) != ([COLUMN], [encoding]):
            raise BadInput(f"{raw} has columns {shard['column_names']} of {shard['column_encodings']}, not {encoding}")
        if shard["zip_data"]:
            path = folder / shard["zip_data"]["basename"]
            data = _content(path)
            _check_hashes(path, data, shard["zip_data"])
            if raw.exists():
                _check_hashes(raw, raw.read_bytes(), shard["raw_data"])
            data = _unpacked(path, shard["raw_data"]["bytes"])
        else:
            path = raw
            data = _content(path)
        _check_hashes(path, data, shard["raw_data"])
        if len(data) < 8 or len(data) < 4 * (2 + int(np.frombuffer(data, np.uint32, 1)[0])):
            raise BadInput(f"{path} is too short for the list of samples that it begins with")
        size = info.seq_len * np.dtype(token_dtype(info.vocab_size)).itemsize
        samples = int(np.frombuffer(data, np.uint32, 1)[0])
        offsets = np.frombuffer(data, np.uint32, samples + 1, 4).astype(np.int64)
        if samples != shard["samples"] or offsets[-1] != len(data) or np.any(np.diff(offsets) != size):
            raise BadInput(f"{path} does not hold {shard['samples']} samples of {size} bytes")
        if offsets[0] + samples * size != len(data):
            raise BadInput(f"{path} does not have its samples where its list of offsets says")
        tokens = np.frombuffer(data, token_dtype(info.vocab_size), samples * info.seq_len, int(offsets[0]))
        yield path, tokens.reshape(samples, info.seq_len)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # an altered manifest may lack files that the index names
        raise BadInput(f"{path}, which the index of its split names: {error.strerror}; make the shards again") from None


def _unpacked(path: Path, size_bytes: int) -> bytes:
    """Decompress a shard that should have `size_bytes`; stop a little after that size."""
    content = bytearray()
    with path.open("rb") as file:
        for block in json_lines.blocks(file, f"{path.with_suffix('')}.zst"):
            content += block
            if len(content) > size_bytes:
                break
    return bytes(content)


def _check_hashes(path: Path, data: bytes, expected: dict[str, Any]) -> None:
    if len(data) != expected["bytes"]:
        raise BadInput(f"{path} has {len(data)} bytes, the index says {expected['bytes']}")
    for name, value in expected["hashes"].items():
        if name not in HASHES:
            raise BadInput(f"{path}: the index gives a hash {name}, which is none of {', '.join(HASHES)}")
        if (computed := HASHES[name](data).hexdigest()) != value:
            raise BadInput(f"{path}: {name} is {computed}, the index says {value}")

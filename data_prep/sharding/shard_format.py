"""The format of token shards, shared by their writer and their reader.

A shards folder holds the folders `train/` and `val/`, each an MDS dataset with one column, and a manifest:

    tokens        (seq_len,) uint16 (uint32 above 65,536 entries), no padding

    manifest.json stage "shards"
      arguments   seq_len, eos_between_documents, compression, …
      inputs      hashes of the corpus' and the tokenizer's manifests
      tokenizer   vocab_size, eos_token_id, sha256 of its tokenizer.json
      corpus      facts of the corpus: counts by source, dates, licences, dropped documents by reason
      counts      per split: documents, samples, tokens, dropped_tokens (the last partial sample), bytes of text
      baselines   losses on val that a model must beat: unigram nats per token, xz -9 bits per byte

The folder of each split also holds `documents.jsonl.zst`, with one line per document in the order of the shards: id,
source, tokens, bytes. It maps a sample back to the documents that the sample was cut from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.common import json_text
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json
from data_prep.common.json_text import check_shape
from data_prep.common.manifest import MANIFEST, manifest_sha256, read_manifest
from data_prep.common.names import plain_name
from data_prep.files import json_lines
from data_prep.filtering.corpus_format import FACTS
from data_prep.tokenizing.tokenizer_format import VOCABULARY

STAGE = "shards"
MADE_BY = "python data_prep/shards.py --corpus CORPUS --tokenizer TOKENIZER --out {folder}"
FORMAT = 2
COLUMN = "tokens"
SPLITS = ("train", "val")
DOCUMENTS = "documents.jsonl.zst"
SHAPE = {  # shape of the manifest
    "arguments": {"seq_len": int, "eos_between_documents": bool},
    "tokenizer": VOCABULARY,
    "corpus": FACTS,
    "counts": {
        split: dict.fromkeys(("documents", "samples", "tokens", "dropped_tokens", "bytes"), int) for split in SPLITS
    },
    "baselines": {"*": (int, float)},
}
FILE = {"basename": str, "bytes": int, "hashes": {"*": str}}
# Shape of an entry in the index of a split.
SHARD = {
    "raw_data": FILE,
    "zip_data": (dict, type(None)),
    "samples": int,
    "column_names": list,
    "column_encodings": list,
}
DOCUMENT_BYTES = 1 << 40  # limit on the bytes or tokens of one document, far above any real one
HASHES = ("sha256", "xxh64")  # hashes of each shard; the reader checks xxh64 when it opens a shard


def token_dtype(vocab_size: int) -> str:
    """The narrowest unsigned dtype that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def mds_encoding(vocab_size: int, seq_len: int) -> str:
    """The MDS encoding of `COLUMN`. It names dtype and shape, so MDS refuses to write a sample of another shape."""
    return f"ndarray:{token_dtype(vocab_size)}:{seq_len}"


def mds_config(vocab_size: int, seq_len: int, compression: str | None, size_limit_bytes: int) -> JsonDict:
    """The description of a shard in its own header and in the index, as StreamingDataset reads it."""
    return {
        "column_encodings": [mds_encoding(vocab_size, seq_len)],
        "column_names": [COLUMN],
        "column_sizes": [seq_len * np.dtype(token_dtype(vocab_size)).itemsize],
        "compression": compression,
        "format": "mds",
        "hashes": list(HASHES),
        "size_limit": size_limit_bytes,
        "version": 2,
    }


def mds_shard(samples: np.ndarray, config: JsonDict) -> bytes:
    """The bytes of a shard: `uint32 samples`, `uint32 offsets[samples + 1]`, the header as JSON, and the samples.

    This function makes the whole shard at once and gives the same bytes as MDSWriter, which is slower because it needs
    a call, a dictionary and a copy per sample.

    Args:
        samples: token ids, (samples, seq_len), of `token_dtype`.
        config: result of `mds_config`.
    """
    header = json.dumps(config, sort_keys=True).encode()
    count, row_bytes = len(samples), config["column_sizes"][0]
    begin = 4 + 4 * (count + 1) + len(header)
    offsets = begin + row_bytes * np.arange(count + 1, dtype=np.uint32)
    return b"".join([np.uint32(count).tobytes(), offsets.astype(np.uint32).tobytes(), header, samples.tobytes()])


def file_entry(name: str, data: bytes) -> JsonDict:
    """The entry for a file of a shard in the index."""
    hashes = {"sha256": hashlib.sha256(data).hexdigest(), "xxh64": xxhash.xxh64_hexdigest(data)}
    return {"basename": name, "bytes": len(data), "hashes": hashes}


def samples_per_shard(config: JsonDict) -> int:
    """The number of samples in a shard of at most `size_limit` bytes; at least one."""
    header_bytes = 4 + 4 + len(json.dumps(config, sort_keys=True).encode())
    return max(1, (config["size_limit"] - header_bytes) // (4 + config["column_sizes"][0]))


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split. `tokens` includes end-of-text but not `dropped_tokens`; `bytes` counts UTF-8 text."""

    documents: int
    samples: int
    tokens: int
    dropped_tokens: int
    bytes: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, end-of-text counted as a token."""
        return self.bytes / max(1, self.tokens + self.dropped_tokens)


@dataclass(frozen=True)
class ShardsInfo:
    """The facts about a shards folder that a reader needs before it opens a shard."""

    folder: Path
    sha256: str
    seq_len: int
    eos_between_documents: bool
    vocab_size: int
    eos_token_id: int
    tokenizer_sha256: str
    counts: dict[str, SplitCounts]
    baselines: dict[str, float]
    manifest: dict[str, Any]


def read_shards_info(folder: Path, made_by: str = MADE_BY) -> ShardsInfo:
    """Read and check the manifest of a shards folder.

    Args:
        folder: shards folder.
        made_by: command that makes such a folder, for the message.

    Raises:
        BadInput: the folder is not a finished shards folder, or has another format version.
    """
    manifest = read_manifest(folder, STAGE, made_by)
    if manifest.get("format") != FORMAT:
        raise BadInput(f"{folder} has shard format {manifest.get('format')!r}, this version reads {FORMAT}; rebuild it")
    check_shape(manifest, SHAPE, str(folder / MANIFEST))
    return ShardsInfo(
        folder=folder,
        sha256=manifest_sha256(folder),
        seq_len=manifest["arguments"]["seq_len"],
        eos_between_documents=manifest["arguments"]["eos_between_documents"],
        vocab_size=manifest["tokenizer"]["vocab_size"],
        eos_token_id=manifest["tokenizer"]["eos_token_id"],
        tokenizer_sha256=manifest["tokenizer"]["sha256"],
        counts={
            split: SplitCounts(**{key: manifest["counts"][split][key] for key in SHAPE["counts"][split]})
            for split in SPLITS
        },
        baselines=manifest["baselines"],
        manifest=manifest,
    )


def read_index(folder: Path, data: bytes | None = None) -> list[JsonDict]:
    """Read and check the entries of shards in the `index.json` of a split.

    Args:
        folder: folder of the split.
        data: content of the file, if it was read already.

    Raises:
        BadInput: the index is missing or malformed, or names a file outside the folder.
    """
    path = folder / "index.json"
    try:
        index = read_json(path) if data is None else json_text.loads(data)
    except ValueError as error:
        raise BadInput(f"{path} does not describe shards ({error})") from None
    check_shape(index, {"shards": list}, str(path))
    entries = index["shards"]
    for number, entry in enumerate(entries):
        check_shape(entry, SHARD, str(path), f"shards.{number}")
        if entry["zip_data"]:
            check_shape(entry["zip_data"], FILE, str(path), f"shards.{number}.zip_data")
        for part in filter(None, (entry["raw_data"], entry["zip_data"])):
            plain_name(part["basename"], str(path))
    return entries


def read_documents(folder: Path) -> Iterator[tuple[int, JsonDict]]:
    """Read the list of documents of a split, each with the index of its first token in the token stream.

    Raises:
        BadInput: the list is missing, cut off or damaged, or a line does not describe a document.
    """
    start_token = 0
    path = folder / DOCUMENTS
    for number, record in json_lines.read(path):
        sizes = [record.get("tokens"), record.get("bytes")]
        good = all(type(size) is int and 0 <= size <= DOCUMENT_BYTES for size in sizes)
        if not good or not isinstance(record.get("id"), str) or not isinstance(record.get("source"), str):
            raise BadInput(f"{path}, line {number}: not a document's id, source, tokens and bytes")
        yield start_token, record
        start_token += record["tokens"]

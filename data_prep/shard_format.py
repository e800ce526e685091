"""The contract between the writer of token shards and their reader.

A shards folder holds `train/` and `val/`, each an MDS dataset of one column, and a manifest:

    tokens        (seq_len,) uint16 (uint32 above 65,536 entries), no padding

    manifest.json stage "shards"
      arguments   seq_len, eos_between_documents, compression, …
      inputs      hashes of the corpus' and the tokenizer's manifests
      tokenizer   vocab_size, eos_token_id, sha256 of its tokenizer.json
      corpus      what it was made from: counts by source, dates, licences, what was dropped and why
      counts      per split: documents, samples, tokens, dropped_tokens (the last partial sample), bytes of text
      baselines   what a model must beat on val: unigram nats per token, xz -9 bits per byte

Beside each split's shards lies `documents.jsonl.zst`, one line a document in shard order: id, source, start_token,
tokens, bytes. It maps a sample back to the documents it was cut from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.stage import BadInput, manifest_sha256, read_manifest

STAGE = "shards"
FORMAT = 1
COLUMN = "tokens"
SPLITS = ("train", "val")
DOCUMENTS = "documents.jsonl.zst"


def token_dtype(vocab_size: int) -> str:
    """The narrowest unsigned dtype that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def mds_encoding(vocab_size: int, seq_len: int) -> str:
    """MDS encoding of `COLUMN`. Dtype and shape are in it, so a sample of another shape fails when it is written."""
    return f"ndarray:{token_dtype(vocab_size)}:{seq_len}"


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split; `tokens` leaves `dropped_tokens` out and counts end-of-text, `bytes` is UTF-8 text."""

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
    """What a reader needs to know of a shards folder before it opens a shard."""

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


def read_shards_info(folder: Path) -> ShardsInfo:
    """Read and check a shards folder's manifest.

    Raises:
        BadInput: no finished shards folder, or one of another format version.
    """
    manifest = read_manifest(folder, STAGE, "make shards")
    if manifest.get("format") != FORMAT:
        raise BadInput(f"{folder} has shard format {manifest.get('format')!r}, this version reads {FORMAT}; rebuild it")
    return ShardsInfo(
        folder=folder,
        sha256=manifest_sha256(folder),
        seq_len=manifest["arguments"]["seq_len"],
        eos_between_documents=manifest["arguments"]["eos_between_documents"],
        vocab_size=manifest["tokenizer"]["vocab_size"],
        eos_token_id=manifest["tokenizer"]["eos_token_id"],
        tokenizer_sha256=manifest["tokenizer"]["sha256"],
        counts={split: SplitCounts(**manifest["counts"][split]) for split in SPLITS},
        baselines=manifest["baselines"],
        manifest=manifest,
    )

"""Corpus + tokenizer -> token shards: documents end to end, cut into samples of one length, as MDS.

Documents are encoded in corpus order, each followed by `<|endoftext|>`, and cut at `seq_len` without regard to their
borders; nothing but the last partial sample of a split is lost. `shard_format` says what lies in the folder.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep import corpus, json_lines, tokenizer
from data_prep.shard_format import COLUMN, DOCUMENTS, FORMAT, SPLITS, STAGE, SplitCounts, mds_encoding, token_dtype
from data_prep.sources import Document
from data_prep.stage import (
    BadInput,
    JsonDict,
    begin,
    finished,
    library_versions,
    manifest_sha256,
    publish,
    read_manifest,
    run,
    sha256_file,
)
from data_prep.workers import follow_parent

# recipes.shard_reader checks xxh64 when it opens a shard, compressed or raw. Level 9 makes 1.2 bytes of a token's 2.
COMPRESSION = {"zstd": "zstd:9", "none": None}
HASHES = ["sha256", "xxh64"]
CHUNK_BYTES = 1 << 20  # text that goes to a worker at a time
CHUNKS_PER_WORKER = 4  # under way at once, which bounds the memory

Encode = Callable[[list[str]], list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document's token ids, of shape (tokens,), and the size of its UTF-8 text."""

    id: str
    source: str
    bytes: int
    ids: np.ndarray


def load_encoder(tokenizer_folder: Path) -> Encode:
    """The function from texts to token ids. It adds nothing, and gives no end-of-text id whatever a text says."""
    encode_batch = tokenizer.load(tokenizer_folder).encode_batch_fast
    return lambda texts: [np.array(e.ids, np.uint32) for e in encode_batch(texts, add_special_tokens=False)]


def build(
    corpus_folder: Path,
    tokenizer_folder: Path,
    out: Path,
    seq_len: int = 1024,
    eos_between_documents: bool = True,
    compression: str = "zstd",
    size_limit_mb: int = 64,
    workers: int = 1,
) -> JsonDict:
    """Make a shards folder, or find it made. Its bytes depend on all arguments but `workers`.

    Args:
        corpus_folder: a finished corpus.
        tokenizer_folder: a finished tokenizer.
        out: the folder to make.
        seq_len: tokens a sample.
        eos_between_documents: end each document with `<|endoftext|>`; the BioMedLM run of 2022 did not.
        compression: a key of `COMPRESSION`.
        size_limit_mb: MiB a shard, before compression.
        workers: processes that encode.

    Raises:
        BadInput: an unfinished or altered input folder, a bad argument, or a split too small for one sample.
    """
    if seq_len < 2:
        raise BadInput(f"--seq-len {seq_len}: a sample needs at least 2 tokens, to predict one from the other")
    if not 1 <= size_limit_mb < 4096:
        raise BadInput(f"--size-limit-mb {size_limit_mb} is not between 1 and 4095, which an MDS shard can address")
    if workers < 1:
        raise BadInput(f"--workers {workers} is not at least 1")
    corpus_manifest = read_manifest(corpus_folder, corpus.STAGE, "make corpus")
    vocabulary = read_manifest(tokenizer_folder, tokenizer.STAGE, "make tokenizer")["tokenizer"]
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {
            "seq_len": seq_len,
            "eos_between_documents": eos_between_documents,
            "compression": COMPRESSION[compression],
            "size_limit_mb": size_limit_mb,
        },
        "inputs": {"corpus": manifest_sha256(corpus_folder), "tokenizer": manifest_sha256(tokenizer_folder)},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest
    if sha256_file(tokenizer_folder / "tokenizer.json") != vocabulary["sha256"]:
        raise BadInput(f"{tokenizer_folder / 'tokenizer.json'} was altered after it was made; make the folder again")

    folder = begin(out)
    counts: dict[str, SplitCounts] = {}
    histograms: dict[str, np.ndarray] = {}
    with _encoding(tokenizer_folder, workers) as encode:
        for split in SPLITS:
            total_bytes = corpus_manifest["counts"][split]["bytes"]
            with tqdm(desc=f"encode {split}", total=total_bytes, unit="B", unit_scale=True, disable=None) as progress:
                chunks = encode(_chunks(corpus.read_documents(corpus_folder, split)))
                counts[split], histograms[split] = _write_split(
                    folder / split, chunks, request["arguments"], vocabulary, progress
                )
    for split, c in counts.items():
        print(f"{split:5} {c.documents:>11,} documents {c.tokens:>15,} tokens {c.samples:>11,} samples of {seq_len}")
    results: JsonDict = {
        "tokenizer": vocabulary,
        "corpus": {key: corpus_manifest[key] for key in ("counts", "dates", "dropped", "licenses")},
        "counts": {split: asdict(c) for split, c in counts.items()},
        "baselines": {
            "unigram_nats_per_token": _unigram_nats_per_token(**histograms),
            "xz9_bits_per_byte": corpus_manifest["baselines"]["xz9_bits_per_byte"],
        },
        "versions": library_versions("mosaicml-streaming", "numpy", "tokenizers", "zstandard", "zstd"),
    }
    return publish(folder, out, request, results)


def _write_split(
    folder: Path, chunks: Iterable[list[Encoded]], arguments: JsonDict, vocabulary: JsonDict, progress: tqdm[Any]
) -> tuple[SplitCounts, np.ndarray]:
    """Pack encoded documents into samples; returns the counts and how often each id was written, (vocab_size,)."""
    from streaming import MDSWriter

    seq_len, vocab_size = arguments["seq_len"], vocabulary["vocab_size"]
    end_of_text = [vocabulary["eos_token_id"]] if arguments["eos_between_documents"] else []
    histogram = np.zeros(vocab_size, np.int64)
    rest = np.zeros(0, token_dtype(vocab_size))
    documents = samples = start_token = size_bytes = 0
    with (
        MDSWriter(
            columns={COLUMN: mds_encoding(vocab_size, seq_len)},
            out=str(folder),
            compression=arguments["compression"],
            hashes=HASHES,
            size_limit=arguments["size_limit_mb"] << 20,
        ) as shards,
        json_lines.Writer(folder / DOCUMENTS) as index,
    ):
        for chunk in chunks:
            stream = [rest]
            for document in chunk:
                ids = np.append(document.ids, end_of_text).astype(rest.dtype)
                index.write(
                    {
                        "id": document.id,
                        "source": document.source,
                        "start_token": start_token,
                        "tokens": len(ids),
                        "bytes": document.bytes,
                    }
                )
                stream.append(ids)
                documents += 1
                start_token += len(ids)
                size_bytes += document.bytes
            tokens = np.concatenate(stream)
            whole = len(tokens) // seq_len * seq_len
            for sample in tokens[:whole].reshape(-1, seq_len):
                shards.write({COLUMN: sample})
            samples += whole // seq_len
            histogram += np.bincount(tokens[:whole], minlength=vocab_size)
            rest = tokens[whole:]
            progress.update(size_bytes - progress.n)
    if samples == 0:
        raise BadInput(
            f"{folder.name} has {start_token:,} tokens, too few for one sample of {seq_len:,}; "
            f"use a smaller --seq-len, or a corpus with a larger share in {folder.name}"
        )
    return SplitCounts(documents, samples, samples * seq_len, len(rest), size_bytes), histogram


def _unigram_nats_per_token(train: np.ndarray, val: np.ndarray) -> float:
    """Cross-entropy on val of the frequencies in train, each count plus one: the loss of a model without context."""
    log_p = np.log(train + 1) - np.log(train.sum() + len(train))
    return round(float(-(val * log_p).sum() / val.sum()), 6)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextmanager
def _encoding(
    tokenizer_folder: Path, workers: int
) -> Iterator[Callable[[Iterable[list[Document]]], Iterator[list[Encoded]]]]:
    """A `map` that encodes chunks of documents, here or in processes, and gives the results in order."""
    if workers == 1:
        yield partial(map, partial(_encode_chunk, load_encoder(tokenizer_folder)))
        return
    # "spawn", because a fork of a process with threads (the tokenizer's own) may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer_folder,)) as pool:

        def in_order(chunks: Iterable[list[Document]]) -> Iterator[list[Encoded]]:
            pending: deque[Future[list[Encoded]]] = deque()
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) == workers * CHUNKS_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

        yield in_order


def _encode_chunk(encode: Encode, chunk: list[Document]) -> list[Encoded]:
    ids = encode([document.text for document in chunk])
    return [Encoded(d.id, d.source, len(d.text.encode()), i) for d, i in zip(chunk, ids, strict=True)]


def _start_worker(tokenizer_folder: Path) -> None:
    global _worker_encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    follow_parent()
    _worker_encode = load_encoder(tokenizer_folder)


def _work(chunk: list[Document]) -> list[Encoded]:
    return _encode_chunk(_worker_encode, chunk)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Encode a corpus and pack it into token shards that a run streams.",
        epilog="example: python data_prep/shards.py --corpus data/sample/corpus --tokenizer data/sample/tokenizer "
        "--out data/sample/shards",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer folder")
    parser.add_argument("--out", type=Path, required=True, help="the shards folder to make")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens a sample (default 1024)")
    parser.add_argument("--no-eos", action="store_true", help="no end-of-text between documents, as in 2022")
    parser.add_argument("--compression", choices=sorted(COMPRESSION), default="zstd", help="of shards (default zstd)")
    parser.add_argument("--size-limit-mb", type=int, default=64, help="MiB a shard, before compression (default 64)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    build(
        args.corpus,
        args.tokenizer,
        args.out,
        seq_len=args.seq_len,
        eos_between_documents=not args.no_eos,
        compression=args.compression,
        size_limit_mb=args.size_limit_mb,
        workers=args.workers,
    )


if __name__ == "__main__":
    run(main)

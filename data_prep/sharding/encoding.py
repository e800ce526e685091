"""The first pass of a shard build: encode each part of the corpus into a file of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json, write_json
from data_prep.files import json_lines
from data_prep.filtering import corpus_format
from data_prep.filtering.corpus_format import PART
from data_prep.running.progress import Done, Progress
from data_prep.running.workers import Task, Tick, Workers, written_aside
from data_prep.sharding.shard_format import SPLITS, mds_config, token_dtype
from data_prep.sources.document import Document
from data_prep.tokenizing import encoder
from data_prep.tokenizing.encoder import Encoder

COMPARE_EVERY = 256  # the saved tokenizer also encodes one in 256 characters of a part, as a check
COMPARE_CHARACTERS = 512 << 10  # largest check per document
FAST = 1  # zstd level of temporary files


@dataclass(frozen=True)
class Job:
    """The settings that every task needs; its folders are the same on every node.

    Attributes:
        corpus: folder of a finished corpus.
        tokenizer: folder of a finished tokenizer.
        work: folder that tasks write to.
        arguments: arguments of the build, as in the manifest.
        vocab_size: number of entries of the vocabulary.
        end_of_text: id that ends a document, or empty.
        encoder: one of `ENCODERS`.
    """

    corpus: Path
    tokenizer: Path
    work: Path
    arguments: JsonDict
    vocab_size: int
    end_of_text: tuple[int, ...]
    encoder: str

    @property
    def seq_len(self) -> int:
        """Tokens per sample."""
        return self.arguments["seq_len"]

    @property
    def config(self) -> JsonDict:
        """The result of `shard_format.mds_config` for this build."""
        limit_bytes = self.arguments["size_limit_mb"] << 20
        return mds_config(self.vocab_size, self.seq_len, self.arguments["compression"], limit_bytes)

    def read(self, slices: Sequence[Slice]) -> np.ndarray:
        """Read slices of the token stream, (tokens,)."""
        dtype = np.dtype(token_dtype(self.vocab_size))
        return np.concatenate(
            [
                np.fromfile(self.work / f"{name}.tokens", dtype, count, offset=start * dtype.itemsize)
                for name, start, count in slices
            ]
        )


Slice = tuple[str, int, int]  # name of a part, index of the first token in it, number of tokens


def encode_part(job: Job, name: str, sha256: str, tick: Tick) -> None:
    """Encode one part of the corpus; write `NAME.tokens`, `.documents.zst`, `.histogram.zst`, and last `.json`, counts.

    Args:
        job: settings of the build.
        name: name of the part without its ending.
        sha256: hash of the part.
        tick: called with the numbers of UTF-8 bytes, documents and tokens that were encoded.

    Raises:
        BadInput: the part was altered, or the encoder differs from the tokenizer.
    """
    encode = encoder.load(job.tokenizer, job.encoder)
    seen = compared = 0
    with (
        written_aside(job.work / f"{name}.tokens") as tokens_path,
        written_aside(job.work / f"{name}.documents.zst") as documents_path,
        tokens_path.open("wb") as file,
        json_lines.Writer(documents_path, FAST) as documents,
    ):
        tokens = _TokenFile(file, documents, encode, job, tick)
        for document in corpus_format.read_part(job.corpus / f"{name}{PART}", sha256):
            if compared * COMPARE_EVERY <= seen:
                text = document.text[:COMPARE_CHARACTERS]
                compared += len(text)
                if not encode.compare(text):
                    raise BadInput(
                        f"{job.encoder} gives other ids than {job.tokenizer} for {document.id}; "
                        "use --encoder tokenizers, which is many times slower"
                    )
            seen += len(document.text)
            tokens.write(document)
        tokens.flush()
    with written_aside(job.work / f"{name}.histogram.zst") as path:
        path.write_bytes(zstandard.compress(tokens.histogram.tobytes()))
    write_json(job.work / f"{name}.json", tokens.total._asdict())


class _TokenFile:
    """Encodes documents and writes their ids, many documents per call, because a call has a high fixed cost.

    Attributes:
        histogram: number of times that each id was written, (vocab_size,).
        total: number of bytes, documents and tokens written.
    """

    def __init__(self, file: IO[bytes], listing: json_lines.Writer, encode: Encoder, job: Job, tick: Tick):
        self._file, self._listing, self._encode, self._tick = file, listing, encode, tick
        self._end_of_text, self._dtype = job.end_of_text, np.dtype(token_dtype(job.vocab_size))
        self.histogram, self.total = np.zeros(job.vocab_size, np.int64), Done()
        self._unended = np.zeros(2, np.int64)  # tokens and bytes written of a document that has not ended yet
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []  # documents; long ones in pieces
        self._characters = 0
        self._ends: list[int] = []  # index in _texts after the last piece of each document
        self._documents: list[Document] = []  # documents that end in _texts

    def write(self, document: Document) -> None:
        """Add a document."""
        for text in encoder.pieces(document.text):
            if self._characters > encoder.PIECE:
                self.flush()
            self._texts.append(text)
            self._characters += len(text)
        self._ends.append(len(self._texts))
        self._documents.append(document)

    def flush(self) -> None:
        """Encode, check and write the collected texts."""
        if not self._texts:
            return
        ids, counts, sizes_bytes = self._encode.encode(self._texts)
        ends = np.array(self._ends, np.int64) - 1
        token_ends = np.cumsum(counts)[ends]
        ids = np.insert(ids, np.repeat(token_ends, len(self._end_of_text)), self._end_of_text * len(ends))
        self.histogram += np.bincount(ids, minlength=len(self.histogram))
        ids.astype(self._dtype).tofile(self._file)
        tokens = np.diff(token_ends, prepend=0) + len(self._end_of_text)
        sizes = np.diff(np.cumsum(sizes_bytes)[ends], prepend=0)
        unended = np.array([counts.sum(), sizes_bytes.sum()])
        if len(ends):
            unended -= [token_ends[-1], sizes.sum()]
            tokens[0] += self._unended[0]
            sizes[0] += self._unended[1]
        else:
            unended += self._unended
        self._unended = unended
        for document, n, size_bytes in zip(self._documents, tokens.tolist(), sizes.tolist(), strict=True):
            self._listing.write({"id": document.id, "source": document.source, "tokens": n, "bytes": size_bytes})
        done = Done(int(sizes_bytes.sum()), len(ends), len(ids))
        self.total = Done(*map(sum, zip(self.total, done, strict=True)))
        self._tick(**done._asdict())
        self._clear()


def encode_parts(job: Job, corpus_manifest: JsonDict, workers: Workers) -> dict[str, dict[str, Done]]:
    """Encode the parts that are not encoded yet; return split -> part -> its counts, in the order of the stream."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    hashes: dict[str, str] = {}
    for file, output in sorted(corpus_manifest["outputs"].items()):
        split, name = file.partition("-")[0], file.removesuffix(PART)
        if file.endswith(PART) and split in names:
            names[split].append(name)
            hashes[name] = output["sha256"]

    def done() -> dict[str, Done]:
        paths = {name: job.work / f"{name}.json" for name in hashes}
        return {name: Done(**read_json(path)) for name, path in paths.items() if path.exists()}

    begun = done()
    tasks = [Task(name, (job, name, hashes[name])) for name in hashes if name not in begun]
    total_bytes = sum(corpus_manifest["counts"][split]["bytes"] for split in SPLITS)
    with Progress("encode", total_bytes, Done(*map(sum, zip(*begun.values(), strict=True)))) as progress:
        workers.run(encode_part, tasks, job.work, progress)
    encoded = done()
    return {split: {name: encoded[name] for name in names[split]} for split in SPLITS}

"""Corpus + tokenizer -> token shards: documents end to end, cut into samples of one length, as MDS.

Documents are encoded in corpus order, each followed by `<|endoftext|>`, and cut at `seq_len` without regard to their
borders; nothing but the last partial sample of a split is lost. `shard_format` says what lies in the folder.

Two passes of tasks, each of which makes files of its own from files that are there: one task a part of the corpus
makes a file of tokens; then, as it is known where in the stream each part begins, one task a shard cuts its samples out
of these. So any number of processes or machines makes the same bytes. The files lie in `NAME.work` beside the shards,
2 bytes a token, and go when the shards are there; a killed build does not make again what lies in it.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import zstandard
from tqdm import tqdm

from data_prep import corpus, tokenizer
from data_prep.files import json_lines
from data_prep.files.store import THREADS, Store
from data_prep.running.progress import Done, Progress
from data_prep.running.workers import HERE, Task, Tick, Workers, add_workers, written_aside
from data_prep.sharding.shard_format import (
    DOCUMENTS,
    FORMAT,
    SPLITS,
    STAGE,
    SplitCounts,
    file_entry,
    mds_config,
    mds_shard,
    samples_per_shard,
    token_dtype,
)
from data_prep.sources import Document
from data_prep.stage import (
    MANIFEST,
    BadInput,
    JsonDict,
    Unavailable,
    begin,
    canonical_json,
    finished,
    library_versions,
    link,
    manifest_sha256,
    publish,
    read_json,
    read_manifest,
    run,
    sha256_file,
    write_json,
)
from data_prep.tokenizing import encoder
from data_prep.tokenizing.encoder import ENCODERS, Encoder

COMPRESSION = {"zstd": "zstd:3", "none": None}  # 1.4 bytes of a token's 2; level 9 makes 1.25, in a third of all time
LIBRARIES = ("gigatoken", "numpy", "tokenizers", "zstandard")  # that decide the bytes here
COMPARE_EVERY = 256  # characters of a part: so much of its text, spread over it, the saved tokenizer encodes too
COMPARE_CHARACTERS = 512 << 10  # of one document
FAST = 1  # zstd level of files that live as long as a build
UPLOAD_FILES = 64  # are uploaded, then listed and read back, at a time
UPLOADS = 3  # of a file that does not arrive as it was written


def build(
    corpus_folder: Path,
    tokenizer_folder: Path,
    out: Path,
    seq_len: int = 1024,
    eos_between_documents: bool = True,
    compression: str = "zstd",
    size_limit_mb: int = 64,
    encoder_name: str = ENCODERS[0],
    workers: Workers = HERE,
) -> JsonDict:
    """Make a shards folder, or find it made. Its bytes depend on all arguments but the last two.

    Args:
        corpus_folder: a finished corpus.
        tokenizer_folder: a finished tokenizer.
        out: the folder to make.
        seq_len: tokens a sample.
        eos_between_documents: end each document with `<|endoftext|>`; the BioMedLM run of 2022 did not.
        compression: a key of `COMPRESSION`.
        size_limit_mb: MiB a shard, before compression.
        encoder_name: one of `encoder.ENCODERS`.
        workers: where the tasks run.

    Raises:
        BadInput: an unfinished or altered input folder, a bad argument, a split too small for one sample, an encoder
            that differs from the tokenizer, or no room on the disk.
    """
    if seq_len < 2:
        raise BadInput(f"--seq-len {seq_len}: a sample needs at least 2 tokens, to predict one from the other")
    if not 1 <= size_limit_mb < 4096:
        raise BadInput(f"--size-limit-mb {size_limit_mb} is not between 1 and 4095, which an MDS shard can address")
    if encoder_name not in ENCODERS:
        raise BadInput(f"--encoder {encoder_name} is not one of {', '.join(ENCODERS)}")
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
    versions = library_versions(*LIBRARIES)
    # In a folder of its own, so that another request, or other libraries, neither take its files nor throw them away.
    key = hashlib.sha256(canonical_json({**request, "versions": versions}).encode()).hexdigest()[:24]
    work = out.absolute().with_name(f"{out.name}.work")
    job = Job(
        corpus_folder.absolute(),
        tokenizer_folder.absolute(),
        work / key,
        request["arguments"],
        vocab_size=vocabulary["vocab_size"],
        end_of_text=(vocabulary["eos_token_id"],) if eos_between_documents else (),
        encoder=encoder_name,
    )
    try:
        job.work.mkdir(parents=True, exist_ok=True)
        parts = _encode(job, corpus_manifest, workers)
        counts = {split: _counts(split, list(parts[split].values()), seq_len) for split in SPLITS}
        _pack(job, parts, counts, workers)
        partial = begin(out)
        for split in SPLITS:
            _assemble(job, partial / split, list(parts[split]))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(f"no room left for {out}; make some and type the same command, it goes on") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise BadInput(f"cannot write {error.filename}: {error.strerror}") from None
        raise
    for split, c in counts.items():
        print(f"{split:5} {c.documents:>11,} documents {c.tokens:>15,} tokens {c.samples:>11,} samples of {seq_len}")
    results: JsonDict = {
        "tokenizer": vocabulary,
        "corpus": {key: corpus_manifest[key] for key in ("counts", "dates", "dropped", "licenses")},
        "counts": {split: asdict(c) for split, c in counts.items()},
        "baselines": {
            "unigram_nats_per_token": _unigram_nats_per_token(
                *(_histogram(job, parts[split], counts[split]) for split in SPLITS)
            ),
            "xz9_bits_per_byte": corpus_manifest["baselines"]["xz9_bits_per_byte"],
        },
        "versions": versions,
    }
    manifest = publish(partial, out, request, results)
    shutil.rmtree(work)
    return manifest


@dataclass(frozen=True)
class Job:
    """What every task needs to know; its folders are the same on every node.

    Attributes:
        corpus: a finished corpus.
        tokenizer: a finished tokenizer.
        work: where tasks write.
        arguments: as in the manifest.
        vocab_size: entries.
        end_of_text: the id that ends a document, or nothing.
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
        """Tokens a sample."""
        return self.arguments["seq_len"]

    @property
    def config(self) -> JsonDict:
        """As `shard_format.mds_config` gives it."""
        limit_bytes = self.arguments["size_limit_mb"] << 20
        return mds_config(self.vocab_size, self.seq_len, self.arguments["compression"], limit_bytes)

    def read(self, slices: Sequence[Slice]) -> np.ndarray:
        """Tokens of the stream, (tokens,)."""
        dtype = np.dtype(token_dtype(self.vocab_size))
        return np.concatenate(
            [
                np.fromfile(self.work / f"{name}.tokens", dtype, count, offset=start * dtype.itemsize)
                for name, start, count in slices
            ]
        )


Slice = tuple[str, int, int]  # a part's name, the first token in it, and how many


def encode_part(job: Job, name: str, sha256: str, tick: Tick) -> None:
    """One part of the corpus as tokens: `NAME.tokens`, `.documents.zst`, `.histogram.zst`, last `.json` with counts.

    Args:
        job: what is made.
        name: of the part, without its ending.
        sha256: of the part.
        tick: is told the UTF-8 bytes, documents and tokens that were encoded.

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
        for document in corpus.read_part(job.corpus / f"{name}{corpus.PART}", sha256):
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
    """Ids of documents, made, checked and written many at a time: a call costs more than one document's share.

    Attributes:
        histogram: how often each id was written, (vocab_size,).
        total: what was written.
    """

    def __init__(self, file: IO[bytes], listing: json_lines.Writer, encode: Encoder, job: Job, tick: Tick):
        self._file, self._listing, self._encode, self._tick = file, listing, encode, tick
        self._end_of_text, self._dtype = job.end_of_text, np.dtype(token_dtype(job.vocab_size))
        self.histogram, self.total = np.zeros(job.vocab_size, np.int64), Done()
        self._unended = np.zeros(2, np.int64)  # tokens and bytes written of a document whose end is yet to come
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []  # documents, the long ones in pieces
        self._characters = 0
        self._ends: list[int] = []  # of documents, in texts
        self._documents: list[Document] = []  # that end here

    def write(self, document: Document) -> None:
        """Take a document."""
        for text in encoder.pieces(document.text):
            if self._characters > encoder.PIECE:
                self.flush()
            self._texts.append(text)
            self._characters += len(text)
        self._ends.append(len(self._texts))
        self._documents.append(document)

    def flush(self) -> None:
        """Encode, check and write what was gathered."""
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


def pack_shard(job: Job, split: str, number: int, slices: Sequence[Slice], tick: Tick) -> None:
    """One shard out of the files of tokens: `SPLIT.shard.NUMBER.mds`, or `.mds.zstd`, and last its entry of the index.

    Args:
        job: what is made.
        split: `train` or `val`.
        number: of the shard.
        slices: where its tokens lie.
        tick: is told the bytes and tokens that were packed.
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


def _encode(job: Job, corpus_manifest: JsonDict, workers: Workers) -> dict[str, dict[str, Done]]:
    """Encode the parts that are not there yet; split -> part -> what is in it, in the order of the stream."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    hashes: dict[str, str] = {}
    for file, output in sorted(corpus_manifest["outputs"].items()):
        split, name = file.partition("-")[0], file.removesuffix(corpus.PART)
        if file.endswith(corpus.PART) and split in names:
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


def _counts(split: str, parts: Sequence[Done], seq_len: int) -> SplitCounts:
    total = Done(*map(sum, zip(*parts, strict=True)))
    samples, rest = divmod(total.tokens, seq_len)
    if not samples:
        raise BadInput(
            f"{split} has {total.tokens:,} tokens, too few for one sample of {seq_len:,}; "
            f"use a smaller --seq-len, or a corpus with a larger share in {split}"
        )
    return SplitCounts(total.documents, samples, samples * seq_len, rest, total.bytes)


def _pack(job: Job, parts: dict[str, dict[str, Done]], counts: dict[str, SplitCounts], workers: Workers) -> None:
    """Make the shards that are not there yet."""
    tasks, begun = [], Done()
    shard_tokens = samples_per_shard(job.config) * job.seq_len
    token_bytes = np.dtype(token_dtype(job.vocab_size)).itemsize
    for split in SPLITS:
        for number, start in enumerate(range(0, counts[split].tokens, shard_tokens)):
            count = min(shard_tokens, counts[split].tokens - start)
            if (job.work / f"{split}.shard.{number:05}.json").exists():
                begun = Done(begun.bytes + count * token_bytes, 0, begun.tokens + count)
            else:
                arguments = (job, split, number, _slices(parts[split], start, count))
                tasks.append(Task(f"{split}/shard.{number:05}", arguments))
    total_bytes = token_bytes * sum(c.tokens for c in counts.values())
    with Progress("pack", total_bytes, begun) as progress:
        workers.run(pack_shard, tasks, job.work, progress)


def _slices(parts: dict[str, Done], start: int, count: int) -> list[Slice]:
    """Where `count` tokens of a split's stream lie, from the token `start` on."""
    slices, begin = [], 0
    for name, part in parts.items():
        first, end = max(start, begin), min(start + count, begin + part.tokens)
        if first < end:
            slices.append((name, first - begin, end - first))
        begin += part.tokens
    return slices


def _assemble(job: Job, folder: Path, parts: Sequence[str]) -> None:
    """Put a split's shards, their index, and the list of documents into its folder."""
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


def upload(folder: Path, url: str) -> None:
    """Copy a finished shards folder to an object store and read the copy back; its manifest goes last.

    What is there already, of an upload that was cut short, is read back and stays where it is good.

    Args:
        folder: the shards.
        url: `s3://bucket/prefix`, which is then a run's `data.remote`.

    Raises:
        BadInput: other shards are there, or access is denied.
        Unavailable: the store does not answer, or a file does not arrive as it was written.
    """
    far = Store(url, "--remote")
    outputs = read_manifest(folder, STAGE, "make shards")["outputs"]
    manifest, contents = (folder / MANIFEST).read_bytes(), far.contents()
    if MANIFEST in contents:
        if far.get(MANIFEST) != manifest:
            raise BadInput(f"{far.url} holds other shards; give another --remote")
        if all(contents.get(name) == output["bytes"] for name, output in outputs.items()):
            print(f"{far.url} is up to date")
            return
    far.check_writable()
    total_bytes = sum(output["bytes"] for output in outputs.values())
    names = sorted(outputs)
    with Progress("upload", total_bytes) as progress, ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(names), UPLOAD_FILES):
            group = names[first : first + UPLOAD_FILES]
            left = [name for name in group if contents.get(name) != outputs[name]["bytes"]]
            for attempt in range(UPLOADS):
                progress.waiting_for = group
                if left:
                    far.put_files({name: folder / name for name in left})
                there = group if attempt == 0 else left
                hashes = dict(zip(there, pool.map(far.sha256, there), strict=True))
                left = [name for name, found in hashes.items() if found != outputs[name]["sha256"]]
                if not left:
                    break
            else:
                raise Unavailable(f"{far.url}/{left[0]} is not what was written after {UPLOADS} uploads")
            progress.tick(bytes=sum(outputs[name]["bytes"] for name in group))
    far.put(MANIFEST, manifest)
    print(f"{far.url} holds {folder}: {len(names)} files, each read back")


def _histogram(job: Job, parts: dict[str, Done], counts: SplitCounts) -> np.ndarray:
    """How often each id is in a split's samples, (vocab_size,)."""
    total = np.zeros(job.vocab_size, np.int64)
    for name in parts:
        total += np.frombuffer(zstandard.decompress((job.work / f"{name}.histogram.zst").read_bytes()), np.int64)
    if counts.dropped_tokens:
        rest = job.read(_slices(parts, counts.tokens, counts.dropped_tokens))
        total -= np.bincount(rest, minlength=job.vocab_size)
    return total


def _unigram_nats_per_token(train: np.ndarray, val: np.ndarray) -> float:
    """Cross-entropy on val of the frequencies in train, each count plus one: the loss of a model without context."""
    log_p = np.log(train + 1) - np.log(train.sum() + len(train))
    return round(float(-(val * log_p).sum() / val.sum()), 6)


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
    parser.add_argument(
        "--encoder", choices=ENCODERS, default=ENCODERS[0], help=f"same ids, other speeds (default {ENCODERS[0]})"
    )
    add_workers(parser)
    parser.add_argument("--remote", metavar="s3://…", help="then copy the folder there, and read the copy back")
    args = parser.parse_args(argv)
    build(
        args.corpus,
        args.tokenizer,
        args.out,
        seq_len=args.seq_len,
        eos_between_documents=not args.no_eos,
        compression=args.compression,
        size_limit_mb=args.size_limit_mb,
        encoder_name=args.encoder,
        workers=Workers(args.workers, args.cluster),
    )
    if args.remote:
        upload(args.out, args.remote)


if __name__ == "__main__":
    run(main)

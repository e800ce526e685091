"""Build token shards from a corpus and a tokenizer: concatenate the documents, cut samples of one length, write MDS.

Documents are encoded in corpus order, each followed by `<|endoftext|>`. The stream of tokens is cut every `seq_len`
tokens, without regard to document borders; only the last partial sample of a split is dropped. `shard_format` describes
the folder.

The build has two passes of tasks. In the first pass, one task per part of the corpus writes a file of tokens. After it,
the position of each part in the stream is known. In the second pass, one task per shard cuts the shard's samples out of
these files. So any number of processes or machines makes the same bytes. The token files lie in the folder `NAME.work`
beside the shards, take 2 bytes per token, and are removed when the shards are finished; a build that was killed resumes
from them.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import zstandard

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, canonical_json
from data_prep.common.limits import DEFAULT_SEQ_LEN, SEQ_LEN, Whole
from data_prep.common.manifest import begin, finished, library_versions, manifest_sha256, publish, read_manifest
from data_prep.filtering import corpus_format
from data_prep.running.progress import Done
from data_prep.running.workers import HERE, Workers
from data_prep.sharding.encoding import Job, encode_parts
from data_prep.sharding.packing import assemble, count_samples, pack_shards, slices_of
from data_prep.sharding.shard_format import FORMAT, SPLITS, STAGE, SplitCounts
from data_prep.tokenizing.encoder import ENCODERS
from data_prep.tokenizing.tokenizer_format import read_vocabulary

SIZE_LIMIT_MB = Whole(1, 4095)  # MDS addresses bytes of a shard with 32 bits
# zstd level 3 turns the 2 bytes of a token into 1.4 bytes. Level 9 would give 1.25 bytes, but take a third of all time.
COMPRESSION = {"zstd": "zstd:3", "none": None}
LIBRARIES = ("gigatoken", "numpy", "tokenizers", "zstandard")  # libraries that decide the bytes of the shards


def build_shards(
    corpus_folder: Path,
    tokenizer_folder: Path,
    out: Path,
    seq_len: int = DEFAULT_SEQ_LEN,
    eos_between_documents: bool = True,
    compression: str = "zstd",
    size_limit_mb: int = 64,
    encoder_name: str = ENCODERS[0],
    workers: Workers = HERE,
) -> JsonDict:
    """Build a shards folder, unless it is built already. Its bytes depend on all arguments but the last two.

    Args:
        corpus_folder: finished corpus.
        tokenizer_folder: finished tokenizer, or a model folder whose tokenizer is used.
        out: shards folder to make.
        seq_len: tokens per sample.
        eos_between_documents: end each document with `<|endoftext|>`; the BioMedLM run of 2022 did not.
        compression: a key of `COMPRESSION`.
        size_limit_mb: MiB per shard before compression.
        encoder_name: one of `encoder.ENCODERS`.
        workers: processes or cluster that the tasks run on.

    Raises:
        BadInput: an input folder is unfinished or altered, an argument is out of range, a split is too small for one
            sample, the encoder differs from the tokenizer, or the disk is full.
    """
    _check_arguments(seq_len, size_limit_mb, encoder_name)
    corpus_manifest = read_manifest(corpus_folder, corpus_format.STAGE, corpus_format.MADE_BY, corpus_format.SHAPE)
    vocabulary, tokenizer_sha256 = read_vocabulary(tokenizer_folder)
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {
            "seq_len": seq_len,
            "eos_between_documents": eos_between_documents,
            "compression": COMPRESSION[compression],
            "size_limit_mb": size_limit_mb,
        },
        "inputs": {"corpus": manifest_sha256(corpus_folder), "tokenizer": tokenizer_sha256},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest
    versions = library_versions(*LIBRARIES)
    # Each request has its own work folder, so that another request, or other library versions, neither use nor remove
    # its files.
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
    with _named_disk_errors(out):
        job.work.mkdir(parents=True, exist_ok=True)
        parts = encode_parts(job, corpus_manifest, workers)
        counts = {split: count_samples(split, list(parts[split].values()), seq_len) for split in SPLITS}
        pack_shards(job, parts, counts, workers)
        partial = begin(out)
        for split in SPLITS:
            assemble(job, partial / split, list(parts[split]))
    for split, c in counts.items():
        print(f"{split:5} {c.documents:>11,} documents {c.tokens:>15,} tokens {c.samples:>11,} samples of {seq_len}")
    results = {"tokenizer": vocabulary, **_results(job, corpus_manifest, parts, counts), "versions": versions}
    manifest = publish(partial, out, request, results)
    shutil.rmtree(work)
    return manifest


def _check_arguments(seq_len: int, size_limit_mb: int, encoder_name: str) -> None:
    SEQ_LEN.check("--seq-len", seq_len)
    SIZE_LIMIT_MB.check("--size-limit-mb", size_limit_mb)
    if encoder_name not in ENCODERS:
        raise BadInput(f"--encoder {encoder_name} is not one of {', '.join(ENCODERS)}")


@contextmanager
def _named_disk_errors(out: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into BadInput with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(f"no room left for {out}; free some, then type the same command to resume") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise BadInput(f"cannot write {error.filename}: {error.strerror}") from None
        raise


def _results(
    job: Job, corpus_manifest: JsonDict, parts: dict[str, dict[str, Done]], counts: dict[str, SplitCounts]
) -> JsonDict:
    """The results for the manifest: counts, facts of the corpus, and baseline losses."""
    histograms = [_histogram(job, parts[split], counts[split]) for split in SPLITS]
    return {
        "corpus": {key: corpus_manifest[key] for key in ("counts", "dates", "dropped", "licenses")},
        "counts": {split: asdict(c) for split, c in counts.items()},
        "baselines": {
            "unigram_nats_per_token": _unigram_nats_per_token(*histograms),
            "xz9_bits_per_byte": corpus_manifest["baselines"]["xz9_bits_per_byte"],
        },
    }


def _histogram(job: Job, parts: dict[str, Done], counts: SplitCounts) -> np.ndarray:
    """Number of occurrences of each id in the samples of a split, (vocab_size,)."""
    total = np.zeros(job.vocab_size, np.int64)
    for name in parts:
        total += np.frombuffer(zstandard.decompress((job.work / f"{name}.histogram.zst").read_bytes()), np.int64)
    if counts.dropped_tokens:
        rest = job.read(slices_of(parts, counts.tokens, counts.dropped_tokens))
        total -= np.bincount(rest, minlength=job.vocab_size)
    return total


def _unigram_nats_per_token(train: np.ndarray, val: np.ndarray) -> float:
    """The loss on val of a model without context: cross-entropy under the token counts of train, each plus one."""
    log_p = np.log(train + 1) - np.log(train.sum() + len(train))
    return round(float(-(val * log_p).sum() / val.sum()), 6)

"""Sources -> corpus: all documents, split into train and val, in an order of their own, with a manifest.

Both the split and the order of a document follow from hashes of its id. So the corpus does not depend on the order of
its input, all sources are mixed, and every part of it is a random sample. Part `train-00000.jsonl.zst` and its like
hold one record a line: id, text, source, license, date.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import json_lines
from data_prep.sources import Document, Source, sample
from data_prep.stage import BadInput, JsonDict, begin, finished, library_versions, publish, read_manifest, run

STAGE = "corpus"
FORMAT = 1
SPLITS = ("train", "val")
SOURCES: dict[str, Source] = {"sample": sample}
FIELDS = {field.name for field in fields(Document)}
PART_BYTES = 64 << 20  # of UTF-8 text
XZ_BYTES = 64 << 20  # of val text; xz -9 looks back 64 MiB, and takes about a minute for them


def split_of(document_id: str, val_fraction: float) -> str:
    """`train` or `val`, from the id alone: order, workers and re-runs cannot move a document."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_fraction * 2**64 else "train"


def place_of(document_id: str) -> bytes:
    """The sort key of a document within its split; independent of `split_of`."""
    return hashlib.sha256(b"place\0" + document_id.encode()).digest()


def build(source_name: str, out: Path, val_fraction: float) -> JsonDict:
    """Make a corpus folder, or find it made. All text is in memory for the sort: about twice its size in bytes.

    A document that comes twice with the same text is kept once and counted.

    Args:
        source_name: a key of `SOURCES`.
        out: the folder to make.
        val_fraction: share of the documents that go to val, 0 to 1, both excluded.

    Raises:
        BadInput: unknown source, bad fraction, broken input, an id with two texts, or a split without documents.
    """
    if source_name not in SOURCES:
        raise BadInput(f"unknown source {source_name!r}; known: {', '.join(sorted(SOURCES))}")
    if not 0 < val_fraction < 1:
        raise BadInput(f"--val-fraction {val_fraction} is not between 0 and 1")
    source = SOURCES[source_name]
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {"source": source_name, "val_fraction": val_fraction, "part_bytes": PART_BYTES},
        "inputs": source.inputs(),
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest

    dropped: Counter[str] = Counter()
    found: dict[str, Document] = {}
    for document in tqdm(source.documents(dropped), desc="read", unit=" documents", disable=None):
        if document.id not in found:
            found[document.id] = document
        elif found[document.id].text == document.text:
            dropped["duplicates"] += 1
        else:
            raise BadInput(f"the source {source_name} gives two texts for {document.id}")
    documents = sorted(found.values(), key=lambda document: place_of(document.id))
    splits = {name: [d for d in documents if split_of(d.id, val_fraction) == name] for name in SPLITS}
    for name, members in splits.items():
        if not members:
            raise BadInput(
                f"of {len(documents)} documents in the source {source_name} none fell into {name} "
                f"with --val-fraction {val_fraction}; give more input or another fraction"
            )

    partial = begin(out)
    for name, members in splits.items():
        for number, part in enumerate(_parts(members)):
            with json_lines.Writer(partial / f"{name}-{number:05}.jsonl.zst") as writer:
                for document in tqdm(part, desc=f"write {name}-{number:05}", unit=" documents", disable=None):
                    writer.write(asdict(document))
    results: JsonDict = {
        "counts": {name: _counts(members) for name, members in splits.items()},
        "dropped": dict(dropped),
        "licenses": dict(Counter(document.license or "unknown" for document in documents)),
        "dates": _date_range(documents),
        "baselines": {"xz9_bits_per_byte": _xz9_bits_per_byte(splits["val"])},
        "versions": library_versions("lxml", "orjson", "zstandard"),
    }
    for name, counts in results["counts"].items():
        print(f"{name:5} {counts['documents']:>11,} documents {counts['bytes'] / 1e6:>11,.2f} MB")
    return publish(partial, out, request, results)


def read_documents(folder: Path, split: str) -> Iterator[Document]:
    """The documents of one split of a finished corpus, in its order.

    Raises:
        BadInput: no finished corpus there, a part is missing, cut off, damaged or altered, or a line is not a document.
    """
    manifest = read_manifest(folder, STAGE, "make corpus")
    for name, output in sorted(manifest["outputs"].items()):
        if not name.startswith(f"{split}-"):
            continue
        for number, record in json_lines.read(folder / name, output["sha256"]):
            if record.keys() != FIELDS:
                raise BadInput(f"{folder / name}, line {number}: not a document, it has the keys {list(record)}")
            yield Document(**record)


def _parts(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents of at most `PART_BYTES` of text; a longer document is a part of its own."""
    part: list[Document] = []
    part_bytes = 0
    for document in documents:
        size_bytes = len(document.text.encode())
        if part and part_bytes + size_bytes > PART_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(document)
        part_bytes += size_bytes
    yield part


def _counts(documents: Sequence[Document]) -> dict[str, Any]:
    sources = sorted({document.source for document in documents})
    texts = {source: [len(d.text.encode()) for d in documents if d.source == source] for source in sources}
    by_source = {source: {"documents": len(sizes), "bytes": sum(sizes)} for source, sizes in texts.items()}
    totals = {key: sum(counts[key] for counts in by_source.values()) for key in ("documents", "bytes")}
    return {**totals, "sources": by_source}


def _date_range(documents: Sequence[Document]) -> dict[str, str | None]:
    dates = [document.date for document in documents if document.date]
    return {"first": min(dates, default=None), "last": max(dates, default=None)}


def _xz9_bits_per_byte(documents: Sequence[Document]) -> float:
    """What a general compressor makes of the val text: bits per byte that a language model has to beat."""
    text = "\n".join(document.text for document in documents).encode()[:XZ_BYTES]
    return round(8 * len(lzma.compress(text, preset=9)) / len(text), 6)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Read documents from a source, split them into train and val, and write them as a corpus.",
        epilog="example: python data_prep/corpus.py --source sample --out data/sample/corpus",
    )
    parser.add_argument("--source", required=True, help=f"where the text comes from: {', '.join(sorted(SOURCES))}")
    parser.add_argument("--out", type=Path, required=True, help="the corpus folder to make")
    parser.add_argument("--val-fraction", type=float, default=0.01, help="share of documents in val (default 0.01)")
    args = parser.parse_args(argv)
    build(args.source, args.out, args.val_fraction)


if __name__ == "__main__":
    run(main)

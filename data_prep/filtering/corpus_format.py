"""The format of a corpus folder, and the reader of its documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import read_manifest
from data_prep.common.pmid import pmid_of_id
from data_prep.files import json_lines
from data_prep.sources.document import Document

STAGE = "corpus"
MADE_BY = "python data_prep/corpus.py --source NAME --input FILES --out {folder}"
# Version of the text that the sources produce. Documents of all versions are read in the same way. Since version 4, the
# text of articles and abstracts follows the rules of docs/data.md; the text of the user's own files is unchanged.
FORMAT = 4
SPLITS = ("train", "val")
RECORD = ("id", "text", "source", "license", "date")  # followed by `pmid`, unless the id is `pmid:N` itself
COUNTS = {"documents": int, "bytes": int}
FACTS = {  # the part of the manifest that is copied into the manifest of the shards
    "counts": {split: {**COUNTS, "sources": {"*": COUNTS}} for split in SPLITS},
    "dates": {"first": (str, type(None)), "last": (str, type(None))},
    "dropped": {"*": int},
    "licenses": {"*": int},
}
SHAPE = {**FACTS, "baselines": {"xz9_bits_per_byte": (int, float)}}
PART = ".jsonl.zst"  # a single zstd frame, because many readers silently stop at the end of the first frame


def record_of(document: Document) -> JsonDict:
    """The corpus record of a document."""
    record = {name: getattr(document, name) for name in RECORD}
    return record if document.pmid == pmid_of_id(document.id) else {**record, "pmid": document.pmid}


def read_documents(folder: Path, split: str) -> Iterator[Document]:
    """Read the documents of one split of a finished corpus, in order.

    Raises:
        BadInput: the folder is not a finished corpus, a part is missing, cut off, damaged or altered, or a line is not
            a document.
    """
    manifest = read_manifest(folder, STAGE, MADE_BY, SHAPE)
    for name, output in sorted(manifest["outputs"].items()):
        if name.startswith(f"{split}-"):
            yield from read_part(folder / name, output["sha256"])


def read_part(path: Path, sha256: str | None) -> Iterator[Document]:
    """Read the documents of one part.

    Args:
        path: path of the part.
        sha256: hash of the part in the manifest; None if only the beginning is read.

    Raises:
        BadInput: the part is missing, cut off, damaged or altered, or a line is not a document.
    """
    for number, record in json_lines.read(path, sha256):
        if record.keys() - {"pmid"} != set(RECORD):
            raise BadInput(f"{path}, line {number}: not a document, it has the keys {str(list(record))[:200]}")
        texts = [record["id"], record["text"], record["source"], record["license"] or "", record["date"] or ""]
        if {*map(type, texts)} != {str} or type(record.get("pmid", 0)) not in (int, type(None)):
            raise BadInput(f"{path}, line {number}: not a document, it has values of other types")
        yield Document(**record)

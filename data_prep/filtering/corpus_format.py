"""What a corpus folder holds, and how its documents are read."""

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
# Of what a command makes of its input; documents of all formats are read alike. Since 4 the text of articles
# and abstracts is made by the rules of docs/data.md, and that of files of one's own as before.
FORMAT = 4
SPLITS = ("train", "val")
RECORD = ("id", "text", "source", "license", "date")  # and `pmid` after them, where the id is not `pmid:N` itself
COUNTS = {"documents": int, "bytes": int}
FACTS = {  # of its manifest, which go to that of its shards
    "counts": {split: {**COUNTS, "sources": {"*": COUNTS}} for split in SPLITS},
    "dates": {"first": (str, type(None)), "last": (str, type(None))},
    "dropped": {"*": int},
    "licenses": {"*": int},
}
SHAPE = {**FACTS, "baselines": {"xz9_bits_per_byte": (int, float)}}
PART = ".jsonl.zst"  # one zstd frame each: many readers stop at the first one's end without a word


def record_of(document: Document) -> JsonDict:
    """A document as the corpus keeps it."""
    record = {name: getattr(document, name) for name in RECORD}
    return record if document.pmid == pmid_of_id(document.id) else {**record, "pmid": document.pmid}


def read_documents(folder: Path, split: str) -> Iterator[Document]:
    """The documents of one split of a finished corpus, in its order.

    Raises:
        BadInput: no finished corpus there, a part is missing, cut off, damaged or altered, or a line is not a document.
    """
    manifest = read_manifest(folder, STAGE, MADE_BY, SHAPE)
    for name, output in sorted(manifest["outputs"].items()):
        if name.startswith(f"{split}-"):
            yield from read_part(folder / name, output["sha256"])


def read_part(path: Path, sha256: str | None) -> Iterator[Document]:
    """The documents of one part.

    Args:
        path: the file.
        sha256: what the manifest says of it; None where only its beginning is read.

    Raises:
        BadInput: it is missing, cut off, damaged or altered, or a line is not a document.
    """
    for number, record in json_lines.read(path, sha256):
        if record.keys() - {"pmid"} != set(RECORD):
            raise BadInput(f"{path}, line {number}: not a document, it has the keys {str(list(record))[:200]}")
        texts = [record["id"], record["text"], record["source"], record["license"] or "", record["date"] or ""]
        if {*map(type, texts)} != {str} or type(record.get("pmid", 0)) not in (int, type(None)):
            raise BadInput(f"{path}, line {number}: not a document, it has values of other types")
        yield Document(**record)

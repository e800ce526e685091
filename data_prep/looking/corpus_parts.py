"""Find documents of a finished corpus by id or at random, without reading the whole corpus."""

from __future__ import annotations

import random
import re
from collections.abc import Container, Mapping
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.manifest import read_manifest
from data_prep.filtering.corpus_format import PART, SHAPE, STAGE, read_part
from data_prep.filtering.spool import place_of
from data_prep.sources.document import Document

NAME = re.compile(rf"([a-z]+)-(\d+){re.escape(PART)}")
LISTED = {
    **SHAPE,
    "arguments": {"sources": {"*": dict}, "keep_characters?": bool},
    "characters?": {"*": int},
    "entries?": int,
    "format": int,
}
PARTS_TRIED = 8  # random parts that are searched for a document of certain sets


class Corpus:
    """A corpus folder. For each split, one part at a time is in memory.

    Attributes:
        folder: path of the corpus.
        manifest: manifest of the corpus.
        parts: split -> names of its parts, in order; all documents are sorted by `place_of`.

    Raises:
        BadInput: the folder is not a finished corpus.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder, STAGE, "python data_prep/corpus.py", LISTED)
        self.parts: dict[str, list[str]] = {}
        for name in sorted(self.manifest["outputs"]):
            if match := NAME.fullmatch(name):
                self.parts.setdefault(match[1], []).append(name)
        if not self.parts:
            raise BadInput(f"{folder} has no documents; make it again with `python data_prep/corpus.py`")
        self._first: dict[str, bytes] = {}
        self._read: dict[str, tuple[str, Mapping[str, Document]]] = {}

    @property
    def keeps_characters(self) -> bool:
        """Whether the corpus was made with --keep-characters, or before the rules for characters existed."""
        return self.manifest["arguments"].get("keep_characters", True)

    def documents(self, split: str, name: str) -> Mapping[str, Document]:
        """The documents of a part, by id.

        Raises:
            BadInput: the part is missing, damaged or altered.
        """
        if self._read.get(split, ("",))[0] != name:
            self._read.pop(split, None)  # free the memory before the next part is read
            sha256 = self.manifest["outputs"][name]["sha256"]
            self._read[split] = (name, {document.id: document for document in read_part(self.folder / name, sha256)})
        return self._read[split][1]

    def find(self, id: str) -> tuple[str, Document] | None:
        """Find a document by its id and return its split and the document; None if it is not in the corpus."""
        place = place_of(id)
        for split, names in self.parts.items():
            low, high = 0, len(names)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._first_place(split, names[middle]) <= place else (low, middle)
            if document := self.documents(split, names[low]).get(id):
                return split, document
        return None

    def any_of(self, draw: random.Random, sets: Container[str], without: Container[str]) -> tuple[str, Document] | None:
        """Choose a random document.

        Args:
            draw: random generator.
            sets: allowed values of the document's `source`.
            without: ids of documents to exclude.
        """
        names = [(split, name) for split, names in self.parts.items() for name in names]
        sizes = [self.manifest["outputs"][name]["bytes"] for _, name in names]
        for split, name in draw.choices(names, sizes, k=PARTS_TRIED):
            documents = [
                one for one in self.documents(split, name).values() if one.source in sets and one.id not in without
            ]
            if documents:
                return split, draw.choice(documents)
        return None

    def _first_place(self, split: str, name: str) -> bytes:
        if name not in self._first:
            self._first[name] = place_of(next(iter(read_part(self.folder / name, None))).id)
        return self._first[name]

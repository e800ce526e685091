"""A finished corpus whose documents are found by their id, or at random, without reading all of it."""

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
PARTS_TRIED = 8  # in which a document of some sets is looked for


class Corpus:
    """A corpus folder; of each split one part at a time is in memory.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        parts: split -> names of its parts in their order, in which the documents lie by `place_of`.

    Raises:
        BadInput: there is no finished corpus.
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
        """Whether it was made with --keep-characters, or before there were rules for them."""
        return self.manifest["arguments"].get("keep_characters", True)

    def documents(self, split: str, name: str) -> Mapping[str, Document]:
        """The documents of a part, by id.

        Raises:
            BadInput: it is missing, damaged or altered.
        """
        if self._read.get(split, ("",))[0] != name:
            self._read.pop(split, None)  # before the next one is read
            sha256 = self.manifest["outputs"][name]["sha256"]
            self._read[split] = (name, {document.id: document for document in read_part(self.folder / name, sha256)})
        return self._read[split][1]

    def find(self, id: str) -> tuple[str, Document] | None:
        """The split and the document of an id; None if it is not in the corpus."""
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
        """A document at random.

        Args:
            draw: what decides.
            sets: which it may be of, as its `source` says.
            without: ids that it may not have.
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

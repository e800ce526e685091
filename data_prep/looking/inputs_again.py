"""The input files that a corpus was made of, as far as they are still there, read again with what rules change."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.json_text import check_shape
from data_prep.common.location import Location
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import KNOWN, Input, Tick
from data_prep.filtering.build_corpus import INPUTS
from data_prep.looking.corpus_parts import Corpus
from data_prep.sources.changes import Changes, listening
from data_prep.sources.characters import cleaned
from data_prep.sources.document import Document, Source
from data_prep.sources.registry import SOURCES

LISTED = {"source": str, "name": str, "bytes": int, "sha256": (str, type(None)), "entries": int}


@dataclass(frozen=True)
class Origin:
    """An input file of a corpus.

    Attributes:
        source_name: as given to `--source`.
        name: what the corpus calls it.
        entries: entries that were read of it.
        sha256: of its content then.
        file: to read, where it is there.
        problem: why it cannot be read; empty where it may be.
    """

    source_name: str
    name: str
    entries: int
    sha256: str | None
    file: Input | None = None
    problem: str = ""


class Inputs:
    """The list of a corpus' inputs; it may be of millions, so that details are read for those that are asked for."""

    def __init__(self, corpus: Corpus):
        self._listing, self._known = corpus.folder / INPUTS, known_inputs(corpus.folder)
        self.kinds: dict[tuple[str, str], Kind] = {}
        for number, record in self._records():
            key = record["source"], PurePosixPath(record["name"]).suffix
            self.kinds.setdefault(key, Kind()).add(number, record["entries"])
        self._sources: dict[str, Source | str] = {
            name: _source(name, settings) for name, settings in corpus.manifest["arguments"]["sources"].items()
        }

    def source(self, name: str) -> Source | None:
        """The source as the corpus was made with it; None where this version has no such one."""
        source = self._sources[name]
        return None if isinstance(source, str) else source

    def origins(self, numbers: Collection[int]) -> dict[int, Origin]:
        """Inputs by their numbers in the list, with the file where it is there, as long and as large as then."""
        origins: dict[int, Origin] = {}
        sizes: dict[int, int] = {}
        for number, record in self._records():
            if number in numbers:
                values = (record[key] for key in ("source", "name", "entries", "sha256"))
                origins[number], sizes[number] = Origin(*values), record["bytes"]
        places = self._places({origin.sha256 for origin in origins.values()})
        return {number: self._located(origin, sizes[number], places) for number, origin in origins.items()}

    def numbers(self, fits: Callable[[JsonDict], bool]) -> list[int]:
        """The numbers of the inputs that a test finds fit, in their order."""
        return [number for number, record in self._records() if fits(record)]

    def _records(self) -> Iterator[tuple[int, JsonDict]]:
        for number, record in json_lines.read(self._listing):
            check_shape(record, LISTED, f"{self._listing}, line {number}")
            yield number, record

    def _places(self, hashes: Collection[str | None]) -> Mapping[str, str] | None:
        """Where files of these hashes were; None where nothing says it."""
        if not self._known.is_file():
            return None
        places: dict[str, str] = {}
        for number, record in json_lines.read(self._known):
            check_shape(record, KNOWN, f"{self._known}, line {number}")
            if record["sha256"] in hashes:
                places[record["sha256"]] = record["url"]
        return places

    def _located(self, origin: Origin, size_bytes: int, places: Mapping[str, str] | None) -> Origin:
        source = self._sources[origin.source_name]
        if isinstance(source, str):
            return replace(origin, problem=source)
        if places is None:
            return replace(
                origin, problem=f"{self._known.name}, which says where the inputs lie, is not beside the corpus"
            )
        place = places.get(origin.sha256 or "")
        if place is None:
            return replace(origin, problem=f"{self._known.name} does not say where it lies")
        if "://" in place:
            return replace(origin, problem=f"it lies at {place}, and only local files are read again")
        try:
            found_bytes = Path(place).stat().st_size
        except OSError as error:
            return replace(origin, problem=f"{place}: {error.strerror}")
        if found_bytes != size_bytes:
            return replace(origin, problem=f"{place} has {found_bytes:,} bytes, and had {size_bytes:,}")
        return replace(origin, file=Input(origin.name, Location(place), size_bytes, ""))


class Kind:
    """Inputs of one source and ending: their numbers, and how many entries each has."""

    def __init__(self) -> None:
        self.numbers, self._sums = array("Q"), array("Q")
        self.spent: set[int] = set()  # of which no more documents can be had

    @property
    def entries(self) -> int:
        """Of all of them."""
        return self._sums[-1] if self._sums else 0

    def add(self, number: int, entries: int) -> None:
        """One input more."""
        self.numbers.append(number)
        self._sums.append(self.entries + entries)

    def draw(self, draw: random.Random) -> int | None:
        """The number of an input that is not spent, at random by its entries; None where all are."""
        for _ in range(64 if self.entries else 0):
            number = self.numbers[bisect_right(self._sums, draw.randrange(self.entries))]
            if number not in self.spent:
                return number
        left = [number for number in self.numbers if number not in self.spent]
        return draw.choice(left) if left else None


def known_inputs(folder: Path) -> Path:
    """What corpus.py writes beside a corpus: where its inputs lay."""
    return folder.with_name(f"{folder.name}.{INPUTS}")


@dataclass(frozen=True)
class Again:
    """A document as its input gives it again, with what was told of its making."""

    document: Document
    changes: Changes


def read_again(
    origin: Origin,
    source: Source,
    starts: Sequence[int],
    fits: Callable[[Again], bool],
    keep_characters: bool,
    tick: Tick = lambda _: None,
) -> Iterator[Again]:
    """From each of some entries of an input on, the first document that fits.

    Args:
        origin: the input.
        source: source that reads it.
        starts: numbers of entries, from 0, ascending.
        fits: whether a document is wanted.
        keep_characters: as the corpus has them.
        tick: is told the bytes that were read.

    Raises:
        BadInput: it cannot be read, or its content is another one than it was: what was found in it does not count.
    """
    assert origin.file is not None
    left = list(starts)
    with inputs.reading(origin.file, tick) as stream:
        entries = source.read(origin.file, stream)
        with closing(entries):  # pyright: ignore[reportArgumentType] (generators all)
            for number in count():
                if number < left[0]:
                    record, entry = None, next(entries, None)
                else:
                    with listening() as record:
                        entry = next(entries, None)
                        if isinstance(entry, Document) and not keep_characters:
                            entry = replace(entry, text=cleaned(entry.text)[0])
                if entry is None:
                    break
                if record and isinstance(entry, Document) and fits(again := Again(entry, record.take())):
                    yield again
                    left.pop(0)
                    if not left:
                        break
        if stream.sha256() != origin.sha256:
            raise BadInput(f"{origin.file.url} has other content than when the corpus was made")


def _source(name: str, settings: JsonDict) -> Source | str:
    """The source, or why there is none."""
    if name not in SOURCES:
        return f"its source {name} is none that this version knows"
    try:
        return SOURCES[name](**settings)
    except TypeError:
        return f"its source {name} was read with switches that this version does not have"

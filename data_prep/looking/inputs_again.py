"""Read again the input files of a corpus that still exist, and record what the rules change in their documents."""

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
        source_name: name of the source, as given to `--source`.
        name: name of the file in the corpus.
        entries: number of entries that were read from the file.
        sha256: hash of the content when the corpus was made.
        file: the file to read, if it still exists.
        problem: why the file cannot be read; empty if nothing is known against it.
    """

    source_name: str
    name: str
    entries: int
    sha256: str | None
    file: Input | None = None
    problem: str = ""


class Inputs:
    """The list of a corpus' inputs. It may have millions of lines, so details are read only for requested inputs."""

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
        """The source with the settings of the corpus; None if this version of the code does not know the source."""
        source = self._sources[name]
        return None if isinstance(source, str) else source

    def origins(self, numbers: Collection[int]) -> dict[int, Origin]:
        """Inputs by their numbers in the list; each has its file if that file still exists with the same size."""
        origins: dict[int, Origin] = {}
        sizes: dict[int, int] = {}
        for number, record in self._records():
            if number in numbers:
                values = (record[key] for key in ("source", "name", "entries", "sha256"))
                origins[number], sizes[number] = Origin(*values), record["bytes"]
        places = self._places({origin.sha256 for origin in origins.values()})
        return {number: self._located(origin, sizes[number], places) for number, origin in origins.items()}

    def numbers(self, fits: Callable[[JsonDict], bool]) -> list[int]:
        """The numbers of the inputs that pass a test, in order."""
        return [number for number, record in self._records() if fits(record)]

    def _records(self) -> Iterator[tuple[int, JsonDict]]:
        for number, record in json_lines.read(self._listing):
            check_shape(record, LISTED, f"{self._listing}, line {number}")
            yield number, record

    def _places(self, hashes: Collection[str | None]) -> Mapping[str, str] | None:
        """The paths of files with these hashes when the corpus was made; None if there is no record of paths."""
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
                origin, problem=f"{self._known.name}, which lists the paths of the inputs, is not beside the corpus"
            )
        place = places.get(origin.sha256 or "")
        if place is None:
            return replace(origin, problem=f"{self._known.name} does not list its path")
        if "://" in place:
            return replace(origin, problem=f"it is at {place}, but only local files are read again")
        try:
            found_bytes = Path(place).stat().st_size
        except OSError as error:
            return replace(origin, problem=f"{place}: {error.strerror}")
        if found_bytes != size_bytes:
            return replace(origin, problem=f"{place} has {found_bytes:,} bytes, but had {size_bytes:,}")
        return replace(origin, file=Input(origin.name, Location(place), size_bytes, ""))


class Kind:
    """The inputs of one source that have the same ending: their numbers and their numbers of entries."""

    def __init__(self) -> None:
        self.numbers, self._sums = array("Q"), array("Q")
        self.spent: set[int] = set()  # inputs that give no more documents

    @property
    def entries(self) -> int:
        """The number of entries of all inputs."""
        return self._sums[-1] if self._sums else 0

    def add(self, number: int, entries: int) -> None:
        """Add an input."""
        self.numbers.append(number)
        self._sums.append(self.entries + entries)

    def draw(self, draw: random.Random) -> int | None:
        """Choose a random input that is not spent, weighted by its entries; None if all inputs are spent."""
        for _ in range(64 if self.entries else 0):
            number = self.numbers[bisect_right(self._sums, draw.randrange(self.entries))]
            if number not in self.spent:
                return number
        left = [number for number in self.numbers if number not in self.spent]
        return draw.choice(left) if left else None


def known_inputs(folder: Path) -> Path:
    """The file with the paths of the inputs, which corpus.py writes beside a corpus."""
    return folder.with_name(f"{folder.name}.{INPUTS}")


@dataclass(frozen=True)
class Again:
    """A document that was read again from its input, with the changes that the rules made."""

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
    """Read an input again and yield, for each start entry, the first document from there on that fits.

    Args:
        origin: input to read.
        source: source that reads the input.
        starts: numbers of the start entries, from 0, ascending.
        fits: function that returns whether a document is wanted.
        keep_characters: whether the corpus was made with --keep-characters.
        tick: called with the number of bytes read.

    Raises:
        BadInput: the input cannot be read, or its content has changed, so that the documents found do not count.
    """
    assert origin.file is not None
    left = list(starts)
    with inputs.reading(origin.file, tick) as stream:
        entries = source.read(origin.file, stream)
        with closing(entries):  # pyright: ignore[reportArgumentType] (all sources return generators)
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
    """Make the source with its settings, or return why that is impossible."""
    if name not in SOURCES:
        return f"this version does not know its source {name}"
    try:
        return SOURCES[name](**settings)
    except TypeError:
        return f"its source {name} was read with switches that this version does not have"

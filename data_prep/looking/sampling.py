"""Choose documents of a corpus at random or by id, and find what the rules changed in them if their input exists."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from data_prep.looking.corpus_parts import Corpus
from data_prep.looking.inputs_again import Again, Inputs, Kind, Origin, read_again
from data_prep.running.progress import Progress
from data_prep.sources.changes import Changes
from data_prep.sources.document import Document, Source

MISSES = 64  # documents of an input that are not in the corpus, after which another input is tried
NUMBERED = re.compile(r"(?:pmid:|pmcid:PMC)(\d+)")
AT_A_TIME = 256  # inputs that are searched for one document
OTHER_TEXT = "its input now gives another text: another version of the rules or of a library made the corpus"


@dataclass(frozen=True)
class Shown:
    """A document of the corpus that the page shows.

    Attributes:
        split: `train`, `val` or `recent`.
        document: document as it is in the corpus.
        changes: changes that rules made in the document; None if unknown.
        file: name of the document's input, if known.
        problem: why the changes are unknown; empty if they are known.
    """

    split: str
    document: Document
    changes: Changes | None = None
    file: str = ""
    problem: str = ""


def sample(corpus: Corpus, count: int, seed: int, source: str | None = None, rule: str | None = None) -> list[Shown]:
    """Choose random documents, spread evenly over sources and over the endings of input files.

    The function draws an input, weighted by its number of entries, and then an entry. From that entry on, it takes the
    first document that is in the corpus. So only a few inputs, and a few parts of a large corpus, are read. If an input
    no longer exists, any document of its source's sets is taken instead, without changes.

    Args:
        corpus: corpus to choose from.
        count: number of documents; fewer are returned if there are not enough.
        seed: random seed; the same corpus, inputs and seed give the same documents.
        source: name of a source as given to `corpus.py --source`; None for all sources.
        rule: choose only documents that this rule changed; None for all documents.

    Raises:
        BadInput: the corpus was not made from this source, or cannot be read.
    """
    listing = Inputs(corpus)
    known = {name for name, _ in listing.kinds}
    if source is not None and source not in known:
        raise BadInput(f"--source {source}: {corpus.folder} was made from {', '.join(sorted(known))}")
    sampler = _Sampler(corpus, listing, random.Random(seed), rule)
    active = [kind for (name, _), kind in sorted(listing.kinds.items()) if source in (None, name)]
    shown: list[Shown] = []
    while active and len(shown) < count:
        for place, kind in enumerate(sorted(active, key=lambda kind: kind.entries)):
            share = (count - len(shown)) // (len(active) - place)
            shown += sampler.of_kind(kind, min(share, kind.entries))
        active = [kind for kind in active if len(kind.spent) < len(kind.numbers)]
    return sorted(shown, key=lambda one: (one.document.source, one.document.id))


class _Sampler:
    def __init__(self, corpus: Corpus, listing: Inputs, draw: random.Random, rule: str | None):
        self._corpus, self._listing, self._draw, self._rule = corpus, listing, draw, rule
        self._seen: set[str] = set()

    def of_kind(self, kind: Kind, count: int) -> list[Shown]:
        """Choose `count` documents from inputs of one kind; fewer if there are not enough."""
        chosen: list[Shown] = []
        while len(chosen) < count:
            drawn = Counter(n for n in (kind.draw(self._draw) for _ in range(count - len(chosen))) if n is not None)
            if not drawn:
                break
            origins = self._listing.origins(drawn)
            with Progress("read inputs", sum(o.file.bytes for o in origins.values() if o.file)) as progress:
                for number, wanted in sorted(drawn.items()):
                    some = self._of_input(origins[number], wanted, progress)
                    chosen += some
                    if len(some) < wanted:
                        kind.spent.add(number)
        return chosen

    def _of_input(self, origin: Origin, count: int, progress: Progress) -> list[Shown]:
        source, problem = self._listing.source(origin.source_name), origin.problem
        if source is not None and not problem:
            before = set(self._seen)
            try:
                with progress.under_way(origin.name):
                    return self._read(origin, source, count, progress)
            except BadInput as error:
                self._seen, problem = before, str(error)
        return [] if self._rule else list(self._alone(origin, source, count, problem))

    def _read(self, origin: Origin, source: Source, count: int, progress: Progress) -> list[Shown]:
        shown: list[Shown] = []
        misses = others = 0

        def fits(again: Again) -> bool:
            nonlocal misses, others
            id = again.document.id
            if id in self._seen or misses > MISSES or (self._rule and self._rule not in again.changes.rules()):
                return False
            hit = self._corpus.find(id)
            if hit is None or hit[1].text != again.document.text:
                misses, others = misses + 1, others + (hit is not None)
                return False
            self._seen.add(id)
            shown.append(Shown(*hit, again.changes, origin.name))
            return True

        def tick(size_bytes: int) -> None:
            progress.tick(bytes=size_bytes)

        starts = sorted(self._draw.randrange(max(1, origin.entries)) for _ in range(count))
        for numbers in (starts, [0] * count):  # from the drawn entries to the end, then from the first entry on
            wanted = numbers[len(shown) :]
            if wanted:
                list(read_again(origin, source, wanted, fits, self._corpus.keeps_characters, tick))
        if not shown and others:
            raise BadInput(OTHER_TEXT)
        return shown

    def _alone(self, origin: Origin, source: Source | None, count: int, problem: str) -> Iterator[Shown]:
        sets = source.sets if source else set(self._sets())
        for _ in range(count):
            if hit := self._corpus.any_of(self._draw, sets, self._seen):
                self._seen.add(hit[1].id)
                yield Shown(*hit, problem=f"{origin.name}: {problem}")

    def _sets(self) -> Iterator[str]:
        for counts in self._corpus.manifest["counts"].values():
            yield from counts["sources"]


def one(corpus: Corpus, id: str) -> Shown:
    """Find a document by its id; `PMC7` also stands for `pmcid:PMC7`, and `7` for `pmid:7`.

    Its input is searched first among files whose names match the id, then among all inputs, the newest first.

    Raises:
        BadInput: the document is not in the corpus, or the corpus cannot be read.
    """
    ids = [id, f"pmcid:{id.upper()}" if id.upper().startswith("PMC") else f"pmid:{id}"]
    hit = next(filter(None, map(corpus.find, ids)), None)
    if hit is None:
        raise BadInput(
            f"{corpus.folder} holds no document {ids[0]!r} or {ids[1]!r}; a filter may have dropped it: "
            "corpus_card.md in that folder says how many documents each filter dropped"
        )
    listing = Inputs(corpus)
    document = hit[1]
    problems: dict[str, None] = {}
    for origin in _where(corpus, listing, document, problems):
        source = listing.source(origin.source_name)
        assert source is not None
        try:
            for again in list(read_again(origin, source, [0], _is(document, problems), corpus.keeps_characters)):
                return Shown(*hit, again.changes, origin.name)
        except BadInput as error:
            problems[str(error)] = None
    first = next(iter(problems), "none of the inputs that are still there holds it")
    return Shown(*hit, problem=OTHER_TEXT if OTHER_TEXT in problems else first)


def _is(document: Document, problems: dict[str, None]) -> Callable[[Again], bool]:
    def fits(again: Again) -> bool:
        if again.document.id == document.id and again.document.text != document.text:
            problems[OTHER_TEXT] = None
        return again.document.id == document.id and again.document.text == document.text

    return fits


def _where(corpus: Corpus, listing: Inputs, document: Document, problems: dict[str, None]) -> Iterator[Origin]:
    """The inputs that may hold a document, the likeliest first; `problems` gets the reasons why others are skipped."""
    match = NUMBERED.fullmatch(document.id)
    digits = str(match[1]) if match else None
    in_name = re.compile(rf"(?<!\d){digits}(?!\d)") if digits else None

    def may_hold(record: JsonDict) -> bool:
        source = listing.source(record["source"])
        return source is None or document.source in source.sets

    def leads(record: JsonDict) -> bool:
        stem = PurePosixPath(record["name"]).name.partition(".")[0]
        named = in_name.search(record["name"]) if in_name else {record["name"], stem} & set(document.id.split(":"))
        return bool(named) and may_hold(record)

    likely = listing.numbers(leads)
    others = [number for number in reversed(listing.numbers(may_hold)) if number not in set(likely)]
    groups = [(likely, None), *((others[at : at + AT_A_TIME], digits) for at in range(0, len(others), AT_A_TIME))]
    for numbers, searched in groups:
        origins = listing.origins(numbers)
        files = {number: origin.file for number, origin in origins.items() if origin.file}
        problems.update({f"{origin.name}: {origin.problem}": None for origin in origins.values() if origin.problem})
        with Progress("search inputs", sum(file.bytes for file in files.values())) as progress:
            for number in (number for number in numbers if number in files):
                with progress.under_way(files[number].name):
                    if searched is None or _holds(files[number], searched.encode()):
                        yield origins[number]
                progress.tick(bytes=files[number].bytes)


def _holds(file: Input, sought: bytes) -> bool:
    """Whether a file contains these bytes after decompression; also True if it cannot be decompressed.

    In that case the reader of the file reports the error.
    """
    tail = b""
    try:
        with inputs.reading(file) as stream:
            for block in json_lines.blocks(stream, file.url):
                if sought in tail + block:
                    return True
                tail = block[-len(sought) :]
    except BadInput:
        return True
    return False

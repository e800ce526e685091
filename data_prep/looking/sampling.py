"""Documents of a corpus at random, or one by its id, with what rules changed in them where their input is there."""

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

MISSES = 64  # documents of one input that are looked up and are not in the corpus, until another input is taken
NUMBERED = re.compile(r"(?:pmid:|pmcid:PMC)(\d+)")
AT_A_TIME = 256  # inputs that are searched for one document
OTHER_TEXT = "its input gives another text now: the corpus was made by another version of the rules, or of a library"


@dataclass(frozen=True)
class Shown:
    """A document of the corpus.

    Attributes:
        split: `train`, `val` or `recent`.
        document: as the corpus has it.
        changes: what rules changed in it; None where that is not known.
        file: the input that it comes from, where it is known.
        problem: why it is not known what rules changed; empty where it is.
    """

    split: str
    document: Document
    changes: Changes | None = None
    file: str = ""
    problem: str = ""


def sample(corpus: Corpus, count: int, seed: int, source: str | None = None, rule: str | None = None) -> list[Shown]:
    """Documents at random, spread evenly over sources and the endings of their inputs.

    An input is drawn by how many entries it has, then an entry of it; what follows there first and is in the corpus is
    shown. So a few inputs are read, and of a large corpus a few parts. Where an input is no longer there, any document
    of its source's sets takes the place, without what was changed.

    Args:
        corpus: the corpus.
        count: how many documents, if there are so many.
        seed: seed of all that is random; the same corpus, inputs and seed give the same documents.
        source: as it was given to `corpus.py --source`; None for all.
        rule: only documents that it changed.

    Raises:
        BadInput: the corpus was not made of this source, or cannot be read.
    """
    listing = Inputs(corpus)
    known = {name for name, _ in listing.kinds}
    if source is not None and source not in known:
        raise BadInput(f"--source {source}: {corpus.folder} was made of {', '.join(sorted(known))}")
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
        """So many documents of inputs of one kind; fewer where there are no more."""
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
        for numbers in (starts, [0] * count):  # from the drawn ones to the end, then from the first one on
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
    """A document by its id, or by `PMC7` for `pmcid:PMC7` and `7` for `pmid:7`.

    Its input is looked for where names or the id itself lead, then in all inputs, the newest first.

    Raises:
        BadInput: it is not in the corpus, or that cannot be read.
    """
    ids = [id, f"pmcid:{id.upper()}" if id.upper().startswith("PMC") else f"pmid:{id}"]
    hit = next(filter(None, map(corpus.find, ids)), None)
    if hit is None:
        raise BadInput(
            f"{corpus.folder} holds no document {ids[0]!r} or {ids[1]!r}; a filter may have left it out, "
            "corpus_card.md there says how many each took"
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
    """The inputs that may hold a document, the likeliest first; why others cannot be looked into."""
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
    """Whether the unpacked content of a file has these bytes in it, or cannot be unpacked: its reader will say why."""
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

"""Find odd documents in a corpus and the lengths of its texts, from one part per split, which is a random sample."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.looking.corpus_parts import Corpus

PERCENTILES = (0, 10, 50, 90, 99, 100)
ODDITIES = 3  # documents of each kind
LEAST_CHARACTERS = 100  # shorter texts are not judged by their share of signs and digits
EXCERPT_CHARACTERS = 160
LETTERS_AND_SPACE = re.compile(r"[^\W\d_]+|\s+")
SHORTEST, LONGEST, SIGNS = "shortest", "longest", "most signs and digits"
KINDS = {SHORTEST: "{:,.0f} characters", LONGEST: "{:,.0f} characters", SIGNS: "{:.0f} % of the characters"}


@dataclass(frozen=True, order=True)
class Oddity:
    """A document that is worth reading first; `value` is the number by which it was chosen."""

    value: float
    id: str
    split: str
    excerpt: str


@dataclass
class Lengths:
    """Lengths of the texts of one set, in characters and in words."""

    characters: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def percentiles(self) -> dict[str, list[int]]:
        """The lengths at `PERCENTILES`, for each unit."""
        units = {"characters": sorted(self.characters), "words": sorted(self.words)}
        return {
            unit: [values[(len(values) - 1) * percent // 100] for percent in PERCENTILES]
            for unit, values in units.items()
        }


@dataclass
class Survey:
    """Lengths and odd documents, found in one part of each split.

    Attributes:
        documents: number of documents that were read.
        sets: `source` of documents -> their lengths.
        oddities: kind (a key of `KINDS`) -> documents, the oddest first.
    """

    documents: int = 0
    sets: dict[str, Lengths] = field(default_factory=dict)
    oddities: dict[str, list[Oddity]] = field(default_factory=dict)


def survey(corpus: Corpus, seed: int) -> Survey:
    """Survey one part of each split, chosen by the seed."""
    draw, summary = random.Random(seed), Survey()
    oddest: dict[str, list[tuple[float, str, str]]] = {kind: [] for kind in KINDS}
    texts: dict[str, str] = {}
    for split, names in corpus.parts.items():
        for document in corpus.documents(split, draw.choice(names)).values():
            summary.documents += 1
            words = document.text.split()
            characters, signs = len(document.text), sum(map(len, words))
            lengths = summary.sets.setdefault(document.source, Lengths())
            lengths.characters.append(characters)
            lengths.words.append(len(words))
            others = len(LETTERS_AND_SPACE.sub("", document.text))
            _keep(oddest[SHORTEST], (-characters, document.id, split))
            _keep(oddest[LONGEST], (characters, document.id, split))
            if characters >= LEAST_CHARACTERS:
                _keep(oddest[SIGNS], (round(100 * others / signs, 1), document.id, split))
            texts |= {document.id: _excerpt(words)} if _is_kept(document.id, oddest) else {}
    for kind, kept in oddest.items():
        summary.oddities[kind] = [
            Oddity(abs(rank), id, split, texts[id]) for rank, id, split in sorted(kept, reverse=True)
        ]
    return summary


def _keep(kept: list[tuple[float, str, str]], one: tuple[float, str, str]) -> None:
    heapq.heappush(kept, one) if len(kept) < ODDITIES else heapq.heappushpop(kept, one)


def _is_kept(id: str, oddest: dict[str, list[tuple[float, str, str]]]) -> bool:
    return any(id == one[1] for kept in oddest.values() for one in kept)


def _excerpt(words: Sequence[str]) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(words[:EXCERPT_CHARACTERS])
    return line if len(line) <= EXCERPT_CHARACTERS else f"{line[:EXCERPT_CHARACTERS]} …"

"""Sources of text. Each module here has `inputs()` and `documents(dropped)` and so is a `Source`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

# The names by which The Pile called the two sets, so that corpora of every source can be compared.
ABSTRACTS = "PubMed Abstracts"
ARTICLES = "PubMed Central"

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        id: `pmid:…` or `pmcid:PMC…`; unique in a corpus.
        text: normalised text, never empty.
        source: `ABSTRACTS`, `ARTICLES`, or another set's name.
        license: an SPDX-like code such as `CC BY`, None where unknown.
        date: ISO 8601, as exact as the source says: `2021`, `2021-03` or `2021-03-09`; None where unknown.
    """

    id: str
    text: str
    source: str
    license: str | None
    date: str | None


class Source(Protocol):
    """What a module of this package offers to the corpus stage."""

    def inputs(self) -> dict[str, str]:
        """The files that are read: name without a path -> SHA-256."""
        ...

    def documents(self, dropped: Counter[str]) -> Iterator[Document]:
        """All documents, in any order; `dropped` counts what was left out, by reason, as it goes."""
        ...


def fold(text: str) -> str:
    """All white space, Unicode's too, to single spaces, none at the ends."""
    return " ".join(text.split())


def iso_date(year: str | None, month: str | None, day: str | None) -> str | None:
    """An ISO 8601 date as exact as its parts allow; `month` is a number or an English name, a season counts as none."""
    if not year or not (year := year.strip()).isdecimal() or len(year) != 4:
        return None
    month = (month or "").strip().lower()
    number = MONTHS.index(month[:3]) + 1 if month[:3] in MONTHS else int(month) if month.isdecimal() else 0
    if not 1 <= number <= 12:
        return year
    day = (day or "").strip()
    if not day.isdecimal() or not 1 <= int(day) <= 31:
        return f"{year}-{number:02}"
    return f"{year}-{number:02}-{int(day):02}"

"""Sources of text. Each is a small class of settings that finds its files and reads one of them as entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from data_prep.common.command_line import Allowed
from data_prep.common.limits import LINE
from data_prep.common.pmid import pmid_of_id
from data_prep.files.inputs import Input, Stream

# White space at which a text may be cut: no word that was cut at a line's end, and nothing unseen, reaches over it.
UNSEEN_AFTER_WORDS = r"\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f"
SPACE = re.compile(rf"(?<![\s\-\u2010\xad{UNSEEN_AFTER_WORDS}])\s")
NEVER_FOLDED = bytes(code for code in range(0x80) if code == 0x20 or not chr(code).isspace())
PIECE = 1 << 20  # characters of a text that are looked at at a time: as words they take ten times their size
# The names by which The Pile called the two sets, so that corpora of every source can be compared.
ABSTRACTS = "PubMed Abstracts"
ARTICLES = "PubMed Central"
DELETED = "deletions"


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        id: `pmid:…`, `pmcid:PMC…`, `pile:…`, or a source's own; unique in a corpus.
        text: normalised text, never empty.
        source: `ABSTRACTS`, `ARTICLES`, or another set's name.
        license: an SPDX-like code such as `CC BY`, None where unknown.
        date: ISO 8601, as exact as the source says: `2021`, `2021-03` or `2021-03-09` (`dates`); None where unknown.
        pmid: PubMed's number of the abstract, or of the article's abstract; None where unknown. An id `pmid:…` says it.
        version: the highest version of an id counts; a later entry replaces those of its own version.
    """

    id: str
    text: str
    source: str
    license: str | None
    date: str | None
    pmid: int | None = None
    version: int = 1

    def __post_init__(self) -> None:
        """Take the PubMed number from the id that names one."""
        if self.pmid is None:
            object.__setattr__(self, "pmid", pmid_of_id(self.id))


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry that gives no document, by a rule.

    With an id it also takes the place of older entries of that id and version, and of lower versions; but for one of
    the reason `DELETED`, with which the lower versions count again.
    """

    reason: str
    id: str | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Bad:
    """An entry that cannot be read: where in its file (`line 7`), and what is wrong with it."""

    place: str
    problem: str


Entry = Document | Dropped | Bad


ONE_LINE = Allowed(LINE)


def switch(default: Any, help_text: str, kind: Callable[[str], Any] = ONE_LINE) -> Any:
    """A field of a source that is a switch of the command: `--section-labels` for `section_labels`.

    Args:
        default: False makes a switch without a value.
        help_text: for `--help`.
        kind: type of the option.
    """
    return field(default=default, metadata={"help": help_text, "type": kind})


class Source(Protocol):
    """What a class of this package offers to the corpus stage; it is a frozen dataclass, its fields are switches."""

    needs_input: ClassVar[bool]
    """Whether files must be given; if not, it brings its own."""

    newest_wins: ClassVar[bool]
    """A later entry of an id replaces the earlier ones; if not, an id with two texts is an error."""

    @property
    def sets(self) -> tuple[str, ...]:
        """What the documents' `source` may be."""
        ...

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files to read, in the order in which their entries count.

        Raises:
            BadInput: there are none, or they are not this source's.
        """
        ...

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The entries of one file, in its order, a few at a time in memory.

        Raises:
            BadInput: the file cannot be read to its end.
        """
        ...


def fold(text: str) -> str:
    """All white space, Unicode's too, to single spaces, none at the ends."""
    if len(text) <= PIECE:
        return text.strip(" ") if _is_folded(text) else " ".join(text.split())
    return " ".join(filter(None, (" ".join(piece.split()) for piece in pieces(text))))


def _is_folded(text: str) -> bool:
    """Whether its white space are single spaces, for a third of the price of making it so; False for a few that are."""
    if "  " in text:
        return False
    others = text.encode("utf-8", "surrogatepass").translate(None, NEVER_FOLDED)
    return not others or others.decode("utf-8", "surrogatepass").isprintable()


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of about `PIECE` characters, all but the first of which begin with white space."""
    start = 0
    while space := SPACE.search(text, start + PIECE) if len(text) - start > PIECE else None:
        yield text[start : space.start()]
        start = space.start()
    yield text[start:] if start else text

"""The types for documents and sources. A source is a class of settings that finds files and reads their entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from data_prep.common.command_line import Allowed
from data_prep.common.limits import LINE
from data_prep.common.pmid import pmid_of_id
from data_prep.files.inputs import Input, Stream

# White space at which a text may be cut into pieces: not within a word that is split at a line end, and not beside
# invisible characters.
UNSEEN_AFTER_WORDS = r"\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f"
SPACE = re.compile(rf"(?<![\s\-\u2010\xad{UNSEEN_AFTER_WORDS}])\s")
NEVER_FOLDED = bytes(code for code in range(0x80) if code == 0x20 or not chr(code).isspace())
PIECE = 1 << 20  # characters of a text that are processed at a time; as words they take ten times the memory
# The Pile's names of the two sets, used for all sources so that corpora can be compared.
ABSTRACTS = "PubMed Abstracts"
ARTICLES = "PubMed Central"
DELETED = "deletions"


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        id: `pmid:…`, `pmcid:PMC…`, `pile:…`, or another id of the source; unique in a corpus.
        text: normalised text, never empty.
        source: name of the document's set: `ABSTRACTS`, `ARTICLES`, or another.
        license: licence code such as `CC BY`, similar to SPDX; None if unknown.
        date: date in ISO 8601, as exact as the source gives it: `2021`, `2021-03` or `2021-03-09`; None if unknown.
        pmid: PubMed number of the abstract, or of the article's abstract; None if unknown. It defaults to the number in
            an id `pmid:…`.
        version: version of the document. The highest version of an id is kept; a later entry of the same version
            replaces an earlier one.
    """

    id: str
    text: str
    source: str
    license: str | None
    date: str | None
    pmid: int | None = None
    version: int = 1

    def __post_init__(self) -> None:
        """Take the PubMed number from the id if the id contains one."""
        if self.pmid is None:
            object.__setattr__(self, "pmid", pmid_of_id(self.id))


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry that gives no document, because of a rule.

    With an id, the entry also replaces older entries of the same id and version, and lower versions. If the reason is
    `DELETED`, lower versions are not replaced: they count again.
    """

    reason: str
    id: str | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Bad:
    """An entry that cannot be read: its place in the file, such as `line 7`, and the problem."""

    place: str
    problem: str


Entry = Document | Dropped | Bad


ONE_LINE = Allowed(LINE)


def switch(default: Any, help_text: str, kind: Callable[[str], Any] = ONE_LINE) -> Any:
    """Declare a field of a source that is also an option of corpus.py: `section_labels` is `--section-labels`.

    Args:
        default: default value; False makes an option without a value.
        help_text: text for `--help`.
        kind: type of the option.
    """
    return field(default=default, metadata={"help": help_text, "type": kind})


class Source(Protocol):
    """The interface of a source for the corpus build. A source is a frozen dataclass whose fields are its switches."""

    needs_input: ClassVar[bool]
    """Whether the user must give input files; otherwise the source has its own files."""

    newest_wins: ClassVar[bool]
    """Whether a later entry of an id replaces the earlier ones; otherwise an id with two texts is an error."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The possible values of the documents' `source`."""
        ...

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files to read, in the order in which later entries replace earlier ones.

        Raises:
            BadInput: there are no files, or they do not belong to this source.
        """
        ...

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the entries of one file in order, a few at a time in memory.

        Raises:
            BadInput: the file cannot be read to its end.
        """
        ...


def fold(text: str) -> str:
    """Replace each run of white space (Unicode's too) by one space, and remove white space at the ends."""
    if len(text) <= PIECE:
        return text.strip(" ") if _is_folded(text) else " ".join(text.split())
    return " ".join(filter(None, (" ".join(piece.split()) for piece in pieces(text))))


def _is_folded(text: str) -> bool:
    """Whether a text has only single spaces as white space. The test takes a third of the time of folding.

    The result is False for a few texts that are folded.
    """
    if "  " in text:
        return False
    others = text.encode("utf-8", "surrogatepass").translate(None, NEVER_FOLDED)
    return not others or others.decode("utf-8", "surrogatepass").isprintable()


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of about `PIECE` characters; each piece after the first begins with white space."""
    start = 0
    while space := SPACE.search(text, start + PIECE) if len(text) - start > PIECE else None:
        yield text[start : space.start()]
        start = space.start()
    yield text[start:] if start else text

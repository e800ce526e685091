"""Question sets, source -> target sets and tagged sentences, as they are used here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file

LETTERS = "ABCDEFGH"  # of the options of a question in a set where each has its own
MOST_OPTIONS = 64  # labels that all questions of a set share


class Example(Protocol):
    """What every example of a set has, of whatever kind; one made of PubMed abstracts has `pmids`, too."""

    @property
    def id(self) -> str:
        """Unique in its set."""
        ...

    @property
    def where(self) -> str:
        """File and line, for messages."""
        ...

    @property
    def text(self) -> str:
        """All that is read to answer it."""
        ...

    @property
    def fault(self) -> str:
        """Why it cannot be used; empty if it can."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer.

    Attributes:
        id: unique in its set.
        question: what is asked.
        options: what can be answered, in the order of the labels.
        answer: index of the right option.
        where: file and line, for messages.
        context: text to answer from; empty where there is none.
        subject: the part of the set that is scored by itself, such as an MMLU subject; empty where there is none.
        pmids: the PubMed abstracts that the question or its context was made of, by number.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    where: str
    context: str = ""
    subject: str = ""
    pmids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is read to answer it."""
        return f"{self.context}\n{self.question}".strip()

    @property
    def fault(self) -> str:
        """Why it cannot be used; empty if it can."""
        if not self.question.strip():
            return "the question is empty"
        if not 2 <= len(self.options) <= MOST_OPTIONS:
            return f"{len(self.options)} options; a question has 2 to {MOST_OPTIONS}"
        if blank := [n for n, option in enumerate(self.options, 1) if not option.strip()]:
            return f"option {blank[0]} is empty"
        if not 0 <= self.answer < len(self.options):
            return f"the answer is option {self.answer + 1} of {len(self.options)}"
        return ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and what is to be written from it."""

    id: str
    source: str
    target: str
    where: str
    pmids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is read."""
        return self.source

    @property
    def fault(self) -> str:
        """Why it cannot be used; empty if it can."""
        empty = [name for name in ("source", "target") if not getattr(self, name).strip()]
        return f"its {empty[0]} is empty" if empty else ""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their tags.

    Attributes:
        id: unique in its set.
        words: as they stand in the file, one a line.
        tags: one a word.
        where: file and line of the first word, for messages.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str

    @property
    def text(self) -> str:
        """All that is read."""
        return " ".join(self.words)

    @property
    def fault(self) -> str:
        """Empty: the reader has refused what is none."""
        return ""

    def where_of(self, word: int) -> str:
        """File and line of a word."""
        path, _, line = self.where.rpartition(" ")
        return f"{path} {int(line) + word}"


E = TypeVar("E", bound=Example)
Examples = Sequence[Example]
Splits = Mapping[str, Examples]


@dataclass(frozen=True)
class TaskSet:
    """One set.

    Attributes:
        name: such as `medqa`.
        kind: `choice` (each question has its own options), `verdict` (all have the same ones), `pairs`, `tags` or
            another line of `KINDS` in recipes/finetuning/kinds.py.
        splits: split name -> examples (`Question`; `Pair` in `pairs`, `Sentence` in `tags`), in the order of the files.
        files: file name below the set's folder -> SHA-256.
        scored: the split that published numbers are of.
        note: what a reader of scores should know of the splits.
    """

    name: str
    kind: str
    splits: Splits
    files: dict[str, str]
    scored: str = "test"
    note: str = ""

    def questions(self, split: str) -> list[Question]:
        """The questions of a split.

        Raises:
            BadInput: there is no such split, or the set is of pairs.
        """
        return [example for example in self._split(split) if isinstance(example, Question)]

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split.

        Raises:
            BadInput: there is no such split.
        """
        return [example for example in self._split(split) if isinstance(example, Pair)]

    def sentences(self, split: str) -> list[Sentence]:
        """The tagged sentences of a split.

        Raises:
            BadInput: there is no such split.
        """
        return [example for example in self._split(split) if isinstance(example, Sentence)]

    def _split(self, split: str) -> Examples:
        if split not in self.splits:
            raise BadInput(f"{self.name} has no {split} split here; it has {', '.join(self.splits)}")
        return self.splits[split]


def file_hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Names below `folder` and SHA-256 of the files that a set was read from."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def the_file(folder: Path, pattern: str, optional: bool = False) -> Path | None:
    """The one file below `folder` whose name matches; None if there is none and it is optional.

    Raises:
        BadInput: there is none, or there are several.
    """
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if len(files) > 1:
        raise BadInput(f"{folder} holds {pattern} {len(files)} times: {', '.join(map(str, files))}; keep one")
    if not files and not optional:
        raise BadInput(f"{folder} holds no {pattern}")
    return files[0] if files else None


def need(folder: Path, pattern: str) -> Path:
    """The one file below `folder` whose name matches.

    Raises:
        BadInput: there is none, or there are several.
    """
    file = the_file(folder, pattern)
    assert file is not None
    return file


def the_form(folder: Path, forms: Mapping[str, Sequence[str]]) -> str:
    """Which of several forms a set lies in below `folder`: two of them would leave one unread without a word.

    Args:
        folder: the set's.
        forms: what a form is called -> patterns of names that only its files have.

    Raises:
        BadInput: none, or several.
    """
    files = {form: next((p for pattern in forms[form] for p in folder.rglob(pattern)), None) for form in forms}
    there = {form: path for form, path in files.items() if path}
    if len(there) > 1:
        names = ", ".join(f"{form} ({path.relative_to(folder)})" for form, path in there.items())
        raise BadInput(f"{folder} holds the set in {len(there)} forms: {names}; keep one")
    if not there:
        raise BadInput(f"{folder} holds no {', and no '.join(forms)}")
    return next(iter(there))


def part_by_hash(examples: Sequence[E], n: int | None) -> list[E]:
    """The `n` examples whose ids have the smallest hashes, in their order: files are sorted by subject or label.

    Args:
        examples: examples of a split.
        n: how many; None: all.
    """
    if n is None or n >= len(examples):
        return list(examples)
    chosen = set(sorted((example.id for example in examples), key=_hash)[:n])
    return [example for example in examples if example.id in chosen]


def _hash(id_: str) -> bytes:
    return hashlib.sha256(id_.encode()).digest()


def split_by_hash(id_: str, shares: dict[str, float]) -> str:
    """The split of an id where a set has no official one: from the id alone, so that files' order cannot move it."""
    place = int.from_bytes(_hash(id_)[:8], "big") / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return next(reversed(shares))

"""The types for question sets, sets of source and target texts, and tagged sentences; and how examples get a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file

LETTERS = "ABCDEFGH"  # letters of the options, if each question has its own options
MOST_OPTIONS = 64  # largest number of labels, if all questions share their options


class Example(Protocol):
    """The properties of every example, of whatever kind; an example made from PubMed abstracts also has `pmids`."""

    @property
    def id(self) -> str:
        """An id that is unique in its set."""
        ...

    @property
    def where(self) -> str:
        """The file and line of the example, for messages."""
        ...

    @property
    def text(self) -> str:
        """All text that is read to answer."""
        ...

    @property
    def fault(self) -> str:
        """Why the example cannot be used; empty if it can."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer.

    Attributes:
        id: id that is unique in its set.
        question: text of the question.
        options: possible answers, in the order of the labels.
        answer: index of the right option.
        where: file and line, for messages.
        context: text to answer from; empty if there is none.
        subject: part of the set that gets a score of its own, such as an MMLU subject; empty if there is none.
        pmids: numbers of the PubMed abstracts that the question or its context was made from.
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
        """All text that is read to answer."""
        return f"{self.context}\n{self.question}".strip()

    @property
    def fault(self) -> str:
        """Why the question cannot be used; empty if it can."""
        if not self.question.strip():
            return "the question is empty"
        if not 2 <= len(self.options) <= MOST_OPTIONS:
            return f"{len(self.options)} options; a question has 2 to {MOST_OPTIONS}"
        if blank := [n for n, option in enumerate(self.options, 1) if not option.strip()]:
            return f"option {blank[0]} is empty"
        if not 0 <= self.answer < len(self.options):
            return f"the answer is option {self.answer + 1}, but there are {len(self.options)} options"
        return ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A source text and the target text to be written from it."""

    id: str
    source: str
    target: str
    where: str
    pmids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All text that is read."""
        return self.source

    @property
    def fault(self) -> str:
        """Why the pair cannot be used; empty if it can."""
        empty = [name for name in ("source", "target") if not getattr(self, name).strip()]
        return f"its {empty[0]} is empty" if empty else ""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their tags.

    Attributes:
        id: id that is unique in its set.
        words: words as in the file, which has one per line.
        tags: tags, one per word.
        where: file and line of the first word, for messages.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str

    @property
    def text(self) -> str:
        """All text that is read."""
        return " ".join(self.words)

    @property
    def fault(self) -> str:
        """Always empty, because the reader refuses bad sentences."""
        return ""

    def where_of(self, word: int) -> str:
        """The file and line of a word."""
        path, _, line = self.where.rpartition(" ")
        return f"{path} {int(line) + word}"


E = TypeVar("E", bound=Example)
Examples = Sequence[Example]
Splits = Mapping[str, Examples]


@dataclass(frozen=True)
class TaskSet:
    """A set of examples, read from its files.

    Attributes:
        name: name of the set, such as `medqa`.
        kind: `choice` (each question has its own options), `verdict` (all questions have the same options), `pairs`,
            `tags` or another key of `KINDS` in recipes/finetuning/kinds.py.
        splits: split name -> examples in the order of the files; they are a `Pair` in `pairs`, a `Sentence` in `tags`,
            else a `Question`.
        files: file name below the set's folder -> SHA-256.
        scored: split that published scores are on.
        note: remarks on the splits for readers of scores.
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
            BadInput: there is no such split.
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
    """The SHA-256 of the files that a set was read from, by their paths below `folder`."""
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
    """The one format of several that the set in `folder` has. Two formats are refused, because one would go unread.

    Args:
        folder: folder of the set.
        forms: name of a format -> patterns of file names that only this format has.

    Raises:
        BadInput: the folder holds no known format, or several.
    """
    files = {form: next((p for pattern in forms[form] for p in folder.rglob(pattern)), None) for form in forms}
    there = {form: path for form, path in files.items() if path}
    if len(there) > 1:
        names = ", ".join(f"{form} ({path.relative_to(folder)})" for form, path in there.items())
        raise BadInput(f"{folder} holds the set in {len(there)} formats: {names}; keep one")
    if not there:
        raise BadInput(f"{folder} holds no {', and no '.join(forms)}")
    return next(iter(there))


def part_by_hash(examples: Sequence[E], n: int | None) -> list[E]:
    """A subset of `n` examples in their order: those whose ids have the smallest hashes.

    The first `n` examples would not be representative, because files are often sorted by subject or label.

    Args:
        examples: examples of a split.
        n: size of the subset; None for all.
    """
    if n is None or n >= len(examples):
        return list(examples)
    chosen = set(sorted((example.id for example in examples), key=_hash)[:n])
    return [example for example in examples if example.id in chosen]


def _hash(id_: str) -> bytes:
    return hashlib.sha256(id_.encode()).digest()


def split_by_hash(id_: str, shares: dict[str, float]) -> str:
    """The split of an id in a set without official splits, from the id alone, so that file order does not matter."""
    place = int.from_bytes(_hash(id_)[:8], "big") / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return next(reversed(shares))

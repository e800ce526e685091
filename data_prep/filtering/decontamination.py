"""Find overlap with evaluation texts by runs of words, as for GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C).

A gram is 13 consecutive words of an evaluation text. A text of 8 to 12 words is one gram. A shorter text could match by
chance; it is only counted. Words are runs of letters and digits, in one case and one Unicode form, so that line breaks,
case, punctuation and invisible characters do not matter. A word that a hyphen may have split at the end of a line is
searched for in both forms (`characters.readings`). As for GPT-3, a gram that occurs in more than 10 documents of the
corpus is a common phrase and does not count; `selection` decides that when it knows all documents. A document with any
other gram is dropped whole. GPT-3 removed only 200 characters around a gram, but the rest of an abstract would not be
an abstract any more.
"""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import orjson

from data_prep.common.bounds import JSON_BYTES, check_bytes
from data_prep.common.errors import BadInput
from data_prep.common.json_text import too_full
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from data_prep.sources.characters import readings
from data_prep.sources.document import pieces
from data_prep.sources.text import PARQUET, parquet_rows

GRAM_WORDS = 13
SHORTEST_WORDS = 8
COMMON_DOCUMENTS = 10
SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".jsonl.xz", ".json", ".csv", ".tsv", ".txt", ".parquet")
OTHER_SIGNS = re.compile(r"[^\w\x00-\x7f]")
# All bytes from 128 on are kept, because in UTF-8 they are parts of letters.
LETTERS = bytes(c if c >= 0x80 or chr(c).isalnum() else 32 for c in range(256)).lower()
BASE = np.uint64(0x9E3779B97F4A7C15)  # base of a polynomial hash over words; odd, so that no bits are lost
TABLE_BITS = 24


@dataclass
class FileTexts:
    """Counts of one evaluation file: texts, texts too short for a gram, and the numbers of all grams."""

    texts: int = 0
    too_short: int = 0
    numbers: set[int] = field(default_factory=set)


class Grams:
    """The set of all grams of the evaluation texts.

    Attributes:
        files: counts by file name; texts that come from no file have the name `""`.
    """

    def __init__(self, texts: Iterable[str] = ()):
        self.files: dict[str, FileTexts] = {}
        self._numbers: dict[bytes, int] = {}
        self._sizes: set[int] = set()
        self._words: dict[bytes, int] = {}
        self._table = np.zeros(1 << TABLE_BITS, bool)  # marks the hashes of the first words of all grams
        for text in texts:
            self.add(text)

    @property
    def texts(self) -> int:
        """The number of evaluation texts."""
        return sum(file.texts for file in self.files.values())

    @property
    def too_short(self) -> int:
        """The number of texts that are too short for a gram."""
        return sum(file.too_short for file in self.files.values())

    def add(self, text: str, file_name: str = "") -> None:
        """Add the grams of one text."""
        file = self.files.setdefault(file_name, FileTexts())
        file.texts += 1
        file.too_short += not grams_of(text)
        for words in map(words_of, readings(text)):
            grams = _runs(words)
            if not grams:
                continue
            self._sizes.add(min(len(words), GRAM_WORDS))
            for word in words:
                self._words.setdefault(word, _hash(word))
            self._table[self._places(words)[: len(grams)]] = True
            for gram in grams:
                file.numbers.add(self._numbers.setdefault(gram, number_of(gram)))

    def __len__(self) -> int:
        return len(self._numbers)

    def within(self, text: str) -> list[int]:
        """The 63-bit numbers of the grams that a text contains, each once."""
        numbers: set[int] = set()
        for words in words_in_pieces(text, GRAM_WORDS - 1, readings):
            # The table gives a few candidates, some of them by hash collision.
            for start in np.flatnonzero(self._table[self._places(words)]).tolist():
                for size in self._sizes:
                    if number := self._numbers.get(b" ".join(words[start : start + size])):
                        numbers.add(number)
        return sorted(numbers)

    def _places(self, words: Sequence[bytes]) -> np.ndarray:
        """The index in the table of each run of `SHORTEST_WORDS` words; shape (runs,)."""
        get = self._words.get
        values = np.array([get(word, 0) for word in words], np.uint64)
        runs = max(0, len(words) - SHORTEST_WORDS + 1)
        total = np.zeros(runs, np.uint64)
        for offset in range(SHORTEST_WORDS):
            total = total * BASE + values[offset : offset + runs]
        return total >> np.uint64(64 - TABLE_BITS)


def words_of(text: str) -> list[bytes]:
    """Split a text into words, in one case and one Unicode form, as UTF-8."""
    if not text.isascii():
        text = OTHER_SIGNS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return text.encode().translate(LETTERS).split()


def grams_of(text: str) -> list[bytes]:
    """The grams of an evaluation text, in order, for each of its `readings`; empty if the text is too short."""
    return list(dict.fromkeys(gram for reading in readings(text) for gram in _runs(words_of(reading))))


def _runs(words: Sequence[bytes]) -> list[bytes]:
    if len(words) < SHORTEST_WORDS:
        return []
    size = min(len(words), GRAM_WORDS)
    return [b" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]


def number_of(gram: bytes) -> int:
    """The 63-bit number that stands for a gram."""
    return _hash(gram) >> 1


def words_in_pieces(
    text: str, again: int, read: Callable[[str], Sequence[str]] = lambda piece: readings(piece)[:1]
) -> Iterator[list[bytes]]:
    """Split a text into words piece by piece; each piece begins with the last `again` words of the piece before it.

    Args:
        text: text to split.
        again: number of words that are repeated.
        read: function that returns one or more readings of a piece. Where pieces have different numbers of readings,
            the first reading is repeated.
    """
    before: list[list[bytes]] = [[]]
    for piece in pieces(text):
        latest = [words_of(reading) for reading in read(piece)]
        ways = range(max(len(before), len(latest)))
        tails, ends = ([lists[way] if way < len(lists) else lists[0] for way in ways] for lists in (before, latest))
        before = [tail[max(0, len(tail) - again) :] + words for tail, words in zip(tails, ends, strict=True)]
        yield from before


@lru_cache(maxsize=1)
def load(files: tuple[Input, ...]) -> Grams:
    """Load the grams of evaluation files.

    The evaluation texts are every text at any depth in JSON, every cell in Parquet, CSV and TSV, and every paragraph in
    txt, where an empty line ends a paragraph.

    Raises:
        BadInput: a file cannot be read, or no text in any of the files is long enough.
    """
    grams = Grams()
    for file in files:
        for text in _texts(file):
            grams.add(text, file.name)
    if files and not len(grams):
        raise BadInput(f"{files[0].url} holds no text of {SHORTEST_WORDS} words or more")
    return grams


def _texts(file: Input) -> Iterator[str]:
    try:
        with inputs.reading(file) as stream:
            if file.name.endswith(PARQUET):
                for row in parquet_rows(file, stream):
                    if isinstance(row, str):
                        raise ValueError(row)
                    yield from _strings(row)
                return
            lines = _whole_lines(json_lines.lines(stream, file.url))
            if file.name.endswith(".txt"):
                yield from _paragraphs(line.decode() for line in lines)
            elif file.name.endswith((".csv", ".tsv")):
                delimiter = "," if file.name.endswith(".csv") else "\t"
                for row in csv.reader((f"{line.decode()}\n" for line in lines), delimiter=delimiter):
                    yield from row
            else:
                for value in _json(lines, file.url):
                    yield from _strings(value)
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{file.url}: {error}") from None


def _whole_lines(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        if isinstance(line, json_lines.LongLine):
            raise ValueError(json_lines.parse(line))
        yield line


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Join lines to paragraphs, which are separated by empty lines."""
    for is_blank, group in groupby(lines, key=lambda line: not line.strip()):
        if not is_blank:
            yield "\n".join(group)


def _json(lines: Iterator[bytes], name: str) -> Iterator[Any]:
    """Parse a file with one JSON value per line, or with a single JSON value, whatever its ending is."""
    parts = []
    size_bytes = 0
    for line in filter(bytes.strip, lines):
        if problem := too_full(line):
            raise ValueError(problem)
        if not parts:
            try:
                yield orjson.loads(line)
                continue
            except orjson.JSONDecodeError:
                pass
        parts.append(line)
        size_bytes += len(line)
        check_bytes(size_bytes, JSON_BYTES, name, "write one JSON object per line")
    if parts:
        content = b"\n".join(parts)
        if problem := too_full(content):
            raise ValueError(problem)
        yield orjson.loads(content)


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value; without recursion, because the value may be nested deeper than Python's stack."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            left += reversed(value.values() if isinstance(value, dict) else value)


def _hash(words: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") | 1

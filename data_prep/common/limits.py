"""What a setting may be, said once: the keys of YAML files, the options of commands and functions refuse by it."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_prep.common.dates import is_day
from data_prep.common.errors import BadInput
from data_prep.common.names import is_plain

# Digits may be grouped by threes, as 1_000_000; 2026_11_27 is no number, though Python and YAML would read one.
_NUMBER = re.compile(r"[-+]?([0-9]{1,3}(_[0-9]{3})+|[0-9]+)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def read_number(text: str) -> float:
    """A finite decimal number, as a person writes it.

    Raises:
        ValueError: the text is none, or so large that it would be infinite.
    """
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(text)
    return number


class Rule(ABC):
    """What a value may be; `str` says it, so that it stands behind "must be"."""

    def read(self, text: str) -> Any:
        """The value that a text stands for, in its type; whether it is allowed, `admits` says.

        Raises:
            ValueError: it stands for none.
        """
        return text

    @abstractmethod
    def admits(self, value: Any) -> bool:
        """Whether a value of the right type is allowed."""

    def refuse(self, what: str, value: object) -> BadInput:
        """The error of a value that is not allowed, under the name that the user knows it by."""
        return BadInput(f"{what} = {'null' if value is None else repr(value)}, but it must be {self}")

    def check(self, what: str, value: Any) -> None:
        """Raise BadInput unless a value is allowed."""
        if not self.admits(value):
            raise self.refuse(what, value)


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number from `low` to `high`, or the one beside them that has a meaning of its own."""

    low: int
    high: int
    also: int | None = None

    def read(self, text: str) -> int:
        """`1000`, or `1e3`: numbers with an exponent are whole once they are written out."""
        number = read_number(text)
        if not number.is_integer():
            raise ValueError(text)
        return int(number)

    def admits(self, value: Any) -> bool:
        """Whether it lies in the range."""
        return self.low <= value <= self.high or value == self.also

    def __str__(self) -> str:
        return f"a whole number from {self.low:,} to {self.high:,}" + ("" if self.also is None else f", or {self.also}")


@dataclass(frozen=True)
class Real(Rule):
    """A number between two ends, which are allowed themselves unless said otherwise; never NaN or infinite."""

    low: float
    high: float
    above: bool = False  # low itself is not allowed
    below: bool = False  # high itself is not allowed
    also: float | None = None  # beside them, with a meaning of its own

    def read(self, text: str) -> float:
        """A number."""
        return read_number(text)

    def admits(self, value: Any) -> bool:
        """Whether it lies between the ends; NaN does not."""
        over = self.low < value if self.above else self.low <= value
        return value == self.also or (over and (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        low, high = _plain(self.low), _plain(self.high)
        ends = f"from {low} to {high}"
        if self.above or self.below:
            ends = f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"
        return f"a number {ends}" + ("" if self.also is None else f", or {_plain(self.also)}")


def _plain(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() and abs(number) < 1e9 else f"{number:g}"


@dataclass(frozen=True)
class OneOf(Rule):
    """One of a few texts."""

    choices: tuple[str, ...]

    def admits(self, value: Any) -> bool:
        """Whether it is one of them."""
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"


@dataclass(frozen=True)
class Text(Rule):
    """A text that satisfies a test, with the words that say which."""

    test: Callable[[str], object]
    words: str

    def admits(self, value: Any) -> bool:
        """Whether it satisfies the test."""
        return bool(self.test(value))

    def __str__(self) -> str:
        return self.words


def _names_one_file(text: str) -> bool:
    return is_plain(text) and text == text.strip() and len(text.encode()) <= NAME_BYTES


NAME_BYTES = 200  # file systems take 255; what is written aside, and logs, add an ending
# Every name that a user gives and that becomes a folder or a file: it leads nowhere else.
FILE_NAME = Text(
    _names_one_file,
    f"the name of one folder: printable, at most {NAME_BYTES} bytes, without / and \\, not . or .., no blank around it",
)
PATH = Text(lambda text: text.strip() and text.isprintable(), "a path: printable, not empty")
LINE = Text(lambda text: text.strip() and text.isprintable(), "one line of printable text, not empty")
PROSE = Text(lambda text: text.strip() and "\0" not in text, "a text, not empty")


DAY = Text(is_day, "a day such as 2026-01-31")
BUCKET = Text(re.compile(r"s3://[\w.-]{3,}(/[^\s/?#@]+)*/?").fullmatch, "of the form s3://bucket/prefix")
REPOSITORY = Text(re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII).fullmatch, "of the form OWNER/NAME")
DEVICE = Text(re.compile(r"cpu|cuda(:\d{1,3})?").fullmatch, "cpu, cuda, or one of several such as cuda:1")
SEQ_LEN = Whole(2, 2**20)  # tokens of a sample; the second is predicted from the first
DEFAULT_SEQ_LEN = 1024  # BioMedLM's

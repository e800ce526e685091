"""Rules for allowed values, each defined once and used for YAML keys, command-line options and function arguments."""

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

# Digits may be grouped by threes, as in 1_000_000. Python and YAML also read 2026_11_27 as a number; this does not.
_NUMBER = re.compile(r"[-+]?([0-9]{1,3}(_[0-9]{3})+|[0-9]+)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def read_number(text: str) -> float:
    """Parse a finite decimal number.

    Raises:
        ValueError: the text is no number, or the number is too large for a float.
    """
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(text)
    return number


class Rule(ABC):
    """A rule for the values that a setting may have. `str(rule)` is a phrase that completes "must be …"."""

    def read(self, text: str) -> Any:
        """Parse a text into a value of the right type. `admits` decides whether the value is allowed.

        Raises:
            ValueError: the text cannot be parsed.
        """
        return text

    @abstractmethod
    def admits(self, value: Any) -> bool:
        """Whether a value of the right type is allowed."""

    def refuse(self, what: str, value: object) -> BadInput:
        """Return the error for a value that is not allowed; `what` is the setting's name as the user knows it."""
        return BadInput(f"{what} = {'null' if value is None else repr(value)}, but it must be {self}")

    def check(self, what: str, value: Any) -> None:
        """Raise BadInput if a value is not allowed."""
        if not self.admits(value):
            raise self.refuse(what, value)


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number from `low` to `high`, or the special value `also`."""

    low: int
    high: int
    also: int | None = None

    def read(self, text: str) -> int:
        """Parse a whole number such as `1000` or `1e3`."""
        number = read_number(text)
        if not number.is_integer():
            raise ValueError(text)
        return int(number)

    def admits(self, value: Any) -> bool:
        """Whether the value lies in the range or is the special value."""
        return self.low <= value <= self.high or value == self.also

    def __str__(self) -> str:
        return f"a whole number from {self.low:,} to {self.high:,}" + ("" if self.also is None else f", or {self.also}")


@dataclass(frozen=True)
class Real(Rule):
    """A finite number from `low` to `high`, both included unless `above` or `below` is set, or the value `also`."""

    low: float
    high: float
    above: bool = False  # the value must be above low
    below: bool = False  # the value must be below high
    also: float | None = None  # a special value outside the range

    def read(self, text: str) -> float:
        """Parse a number."""
        return read_number(text)

    def admits(self, value: Any) -> bool:
        """Whether the value lies in the range or is the special value; NaN is not allowed."""
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
    """One of several fixed texts."""

    choices: tuple[str, ...]

    def admits(self, value: Any) -> bool:
        """Whether the value is one of the texts."""
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"


@dataclass(frozen=True)
class Text(Rule):
    """A text that satisfies a test; `words` describes the test."""

    test: Callable[[str], object]
    words: str

    def admits(self, value: Any) -> bool:
        """Whether the text satisfies the test."""
        return bool(self.test(value))

    def __str__(self) -> str:
        return self.words


def _names_one_file(text: str) -> bool:
    return is_plain(text) and text == text.strip() and len(text.encode()) <= NAME_BYTES


NAME_BYTES = 200  # file systems allow 255; temporary files and logs add an ending
# Rule for every name from the user that becomes a file or folder, so that the name cannot point to another folder.
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
SEQ_LEN = Whole(2, 2**20)  # tokens per sample; at least 2, because each token is predicted from those before it
DEFAULT_SEQ_LEN = 1024  # BioMedLM's

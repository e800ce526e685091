"""Parse dates into ISO 8601, as exact as the source gives them. Sorted as texts, such dates are in order of time."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
ISO = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})(?:[T ].*)?)?)?", re.DOTALL)
NUMBER = re.compile(r"[0-9]{1,4}")


def parse_date(text: str) -> str | None:
    """Return `2021`, `2021-03` or `2021-03-09`, without a time of day; None if the text is no date of the calendar."""
    match = ISO.fullmatch(text)
    if match is None:
        return None
    parts = [part for part in match.groups() if part]
    return "-".join(parts) if _exists(*map(int, parts)) else None


def is_day(text: str) -> bool:
    """Whether a text is a day of the calendar, such as `2021-03-09`."""
    return len(text) == len("2021-03-09") and parse_date(text) == text


@lru_cache(maxsize=4096)  # the records of one file share a few dates
def iso_date(year: str | None, month: str | None, day: str | None) -> str | None:
    """An ISO 8601 date as exact as its parts allow. `month` is a number or an English name; a season is ignored."""
    year, month, day = ((part or "").strip().lower() for part in (year, month, day))
    if not NUMBER.fullmatch(year) or len(year) != 4 or not _exists(int(year)):
        return None
    number = MONTHS.index(month[:3]) + 1 if month[:3] in MONTHS else int(month) if NUMBER.fullmatch(month) else 0
    if not _exists(int(year), number):
        return year
    if not NUMBER.fullmatch(day) or not _exists(int(year), number, int(day)):
        return f"{year}-{number:02}"
    return f"{year}-{number:02}-{int(day):02}"


def _exists(year: int, month: int = 1, day: int = 1) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False

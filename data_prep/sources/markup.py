"""Raised and lowered text in a line: `10<sup>6</sup>` is 10^6, not 106, and `log<sub>10</sub>2` is log10 2, not log102.

Who writes a line puts these signs around the text of a `sup` or `sub`, whatever is in it, and has `numbers_apart` take
them out when the line is whole. XML cannot contain them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RAISED, LOWERED, SCRIPT_END = "\x01", "\x02", "\x03"
SIGNS = (RAISED, LOWERED, SCRIPT_END)
SIGNED_NUMBER = r"\s*[+\N{MINUS SIGN}\N{EN DASH}-]?\d"
# What stands before is looked at after the first sign: a pattern that begins with a sign leaps from one to the next.
POWER = re.compile(
    rf"(?:{SCRIPT_END}(?<=\d{SCRIPT_END}){SCRIPT_END}*{RAISED}|{RAISED}(?<=\d{RAISED})){RAISED}*(?={SIGNED_NUMBER})"
)
DIGITS_AFTER = re.compile(rf"{SCRIPT_END}(?<=\d{SCRIPT_END}){SCRIPT_END}*{LOWERED}*(?=\d)")


def numbers_apart(line: str) -> str:
    """A line without the signs: `^` before a number raised right after a digit, a space between one and a digit."""
    if RAISED in line:
        line = POWER.sub("^", line)
    if SCRIPT_END in line:
        line = DIGITS_AFTER.sub(" ", line)
    return without(line, SIGNS)


def without(line: str, signs: Iterable[str]) -> str:
    """A line without some signs; most lines hold none of them."""
    for sign in signs:
        if sign in line:
            line = line.replace(sign, "")
    return line

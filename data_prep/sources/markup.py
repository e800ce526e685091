"""Keep superscript and subscript numbers apart from their neighbours: `10<sup>6</sup>` becomes 10^6, not 106.

Likewise, `log<sub>10</sub>2` becomes log10 2, not log102. The code that makes a line puts the signs RAISED or LOWERED,
and SCRIPT_END, around the text of every `sup` and `sub`. When the line is complete, `numbers_apart` removes the signs.
XML cannot contain these characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RAISED, LOWERED, SCRIPT_END = "\x01", "\x02", "\x03"
SIGNS = (RAISED, LOWERED, SCRIPT_END)
SIGNED_NUMBER = r"\s*[+\N{MINUS SIGN}\N{EN DASH}-]?\d"
# The character before is checked only after the first sign was matched, because a pattern that begins with a sign is
# searched much faster.
POWER = re.compile(
    rf"(?:{SCRIPT_END}(?<=\d{SCRIPT_END}){SCRIPT_END}*{RAISED}|{RAISED}(?<=\d{RAISED})){RAISED}*(?={SIGNED_NUMBER})"
)
DIGITS_AFTER = re.compile(rf"{SCRIPT_END}(?<=\d{SCRIPT_END}){SCRIPT_END}*{LOWERED}*(?=\d)")


def numbers_apart(line: str) -> str:
    """Remove the signs from a line. Put `^` between a digit and a raised number, and a space between it and a digit."""
    if RAISED in line:
        line = POWER.sub("^", line)
    if SCRIPT_END in line:
        line = DIGITS_AFTER.sub(" ", line)
    return without(line, SIGNS)


def without(line: str, signs: Iterable[str]) -> str:
    """Remove some signs from a line; most lines contain none of them."""
    for sign in signs:
        if sign in line:
            line = line.replace(sign, "")
    return line

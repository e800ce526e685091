"""Marks in the text of an article that cite or point to a note: `[1]-[3]`, `(4, 5)`, a raised 6; and holes in a line.

A mark is removed with its brackets and the signs that join it to others, or stays as it is printed; never half of it:

- `(Orr et al. 2000)`, `Orr (2000)`: a year is a word, and no mark;
- `[1, 3–5 and 7]`, `(e.g., 1)`, `[see 1]`, `[1, p. 23]`: brackets that hold marks and such words alone go whole;
- `word<sup>1,2</sup>`, `word<xref>1</xref>`, `word 12, 13`: what is raised, attached or bare goes;
- `see Refs. 3 and 4`, `as in [5]`: stays, for its sentence is nothing without it; so does `. [5] reported`;
- `(Orr, 2000–3)`: what is joined to a name or year stays with it;
- `(n = 20; [6])` becomes `(n = 20)`; a bare number among other words in brackets stays.

Who writes a line puts the signs of `signs_of` around a link, and `HOLE` where anything else was left out;
`without_marks` takes them out when the line is whole. XML cannot contain these signs.
"""

from __future__ import annotations

import re

from data_prep.sources.markup import LOWERED, RAISED, SCRIPT_END

MARK, MARK_END, HOLE, GONE, NAME, NAME_END = "\x04", "\x05", "\x06", "\x07", "\x0e", "\x0f"
SIGNS = re.compile(f"[{MARK}{MARK_END}{HOLE}{GONE}{NAME}{NAME_END}]+")
# Unicode's category Pd, and what stands in for a dash: minus, tilde, bullet.
DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d\u2212\u2043\u223c~"
)

# What a link says that is a mark. A year is none, nor is the letter after one: `2003a, b`.
YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")
NUMBERS = re.compile(r"[\W\d_]*[a-z]?[\W\d_]*")
NOTE = re.compile(r"[\W\d_]*(?:[a-z]|[A-Z]|[ivx]{1,5}|([a-z])\1)?[\W\d_]*")
NOTE_LINKS = ("fn", "table-fn", "aff", "corresp", "author-notes")

JOINING = rf",;:/&+…·•*|\\{DASHES}"
JOINT = rf"(?:[{JOINING}]|\.(?!\s)|\b(?:and|or|to|through)\b)"
JOINTS = rf"(?:[\s{RAISED}{LOWERED}{SCRIPT_END}]|{JOINT})"
ONE = f"{MARK}[^{MARK}{MARK_END}]*{MARK_END}"
RUN = f"{ONE}(?:{JOINTS}*{ONE})*"
GROUP = re.compile(f" ?(?:{RAISED}+ ?{RUN} ?{SCRIPT_END}+|{RUN})")
OPENING, CLOSING = "[({", "])}"
BRACKETS = re.compile(rf"([\[({{])((?:{ONE}|[^\[\](){{}}{MARK}{MARK_END}])*)([\])}}])")
# What brackets of marks hold beside them, and more numbers of references, which are joined to others.
WORDS = (
    r"and|or|to|through|see|also|eg|e\.g|ie|i\.e|cf|refs?|references?|therein|reviewed|reviews?|in|by|for|an?|overview|"
    rf"example|pp?\. ?\d+(?:[{DASHES}]\d+)?"
)
CITING = re.compile(
    rf"(?:[{JOINING}.\s{RAISED}{LOWERED}{SCRIPT_END}]|{ONE}|\b(?:{WORDS})\b|\b\d{{1,3}}[a-z]?(?=\s*(?:[,;/&{DASHES}]|and\b|$)))*",
    re.IGNORECASE,
)

# Words before a mark that need it.
REFERRING = r"refs?|references?|citations?|footnotes?|notes?|nos?|numbers?"
NEEDING = re.compile(
    rf"(?:^|[\s\[({{])(?:{REFERRING}|see|in|by|of|from|to|with|than|per|via|and|or|both|between|as|at|on|for)\.?$",
    re.IGNORECASE,
)
NAMED = re.compile(rf"(?:^|[\s\[({{])(?:{REFERRING})\.?$", re.IGNORECASE)
SIGNS_AROUND = dict.fromkeys(map(ord, (RAISED, LOWERED, SCRIPT_END, NAME, NAME_END)))
JOINED_TO_NAME = re.compile(rf"{NAME_END}(?:(?:\s*{JOINT})+\s*)?$")
NAME_JOINED = re.compile(rf"(?:(?:\s*{JOINT})+\s*)?{NAME}")
SENTENCE_END = re.compile(r"(?:^|(?<!\bal)[.!?])$")
AFTER_WORDS = ".)]}\"'”’%*†"
BEFORE = 40  # characters that are looked at before a mark
BRACKET_LENGTH = 2000  # within so many characters an opening bracket is looked for
NESTED = 4  # brackets in brackets

EMPTY = re.compile(rf"[\[({{]\s*{GONE}[\s,;:{GONE}]*[\])}}]")
LAST = re.compile(rf"[\s,;:]*{GONE}[\s{GONE}]*(?=[\])}}{SCRIPT_END}])")  # a raised one may end before a word
FIRST = re.compile(rf"(?<=[\[({{])\s?{GONE}[\s,;:{GONE}]*")
DOUBLE = re.compile(rf"(?:[,;:]\s*{GONE}[\s{GONE}]*(?=[,;.])|\.\s*{GONE}[\s{GONE}]*(?=\.(?!\.)))")
LEFT_OUT = re.compile(rf"\s*[{GONE}{HOLE}][\s{GONE}{HOLE}]*")


def signs_of(text: str, kind: str | None, before: str) -> tuple[str, str]:
    """The signs around a link: of a mark, of the name or year of a reference, or none.

    Args:
        text: of the link.
        kind: its `ref-type`.
        before: the text before it, as it ends.
    """
    if kind not in ("bibr", *NOTE_LINKS):
        return "", ""
    is_letter_of_year = kind == "bibr" and text.strip().isalpha() and YEAR.search(before[-12:])
    if (NUMBERS if kind == "bibr" else NOTE).fullmatch(text) and not YEAR.search(text) and not is_letter_of_year:
        return MARK, MARK_END
    return NAME, NAME_END


def without_marks(line: str) -> str:
    """A line whose white space is folded, without marks and holes."""
    if MARK in line:
        line = GROUP.sub(_decided, _brackets_whole(line))
        for _ in range(NESTED):
            line = EMPTY.sub(GONE, line)
        line = DOUBLE.sub("", FIRST.sub("", LAST.sub(GONE, line)))
    if GONE in line or HOLE in line:
        line = LEFT_OUT.sub(_closed, line)
    return SIGNS.sub("", line).strip()


def _brackets_whole(line: str) -> str:
    """Brackets that hold marks alone, and what may stand beside them, become one mark."""

    def whole(found: re.Match[str]) -> str:
        if MARK not in found[2] or not CITING.fullmatch(found[2]):
            return found[0]
        return f"{MARK}{SIGNS.sub('', found[0])}{MARK_END}"

    for _ in range(NESTED):
        line = BRACKETS.sub(whole, line)
    return line


def _decided(found: re.Match[str]) -> str:
    """A group of marks as it is printed, or the sign that it is gone."""
    line, start, group = found.string, found.start(), found[0]
    before = line[max(0, start - BEFORE) : start]
    spoken = before.translate(SIGNS_AROUND)
    if RAISED not in group and (JOINED_TO_NAME.search(before) or NAME_JOINED.match(line, found.end())):
        return group
    is_raised = RAISED in group or before.rfind(RAISED) > before.rfind(SCRIPT_END)
    is_apart = group.startswith(" ") or not (spoken[-1:].isalnum() or spoken[-1:] in tuple(AFTER_WORDS))
    if (NEEDING if is_apart and not is_raised else NAMED).search(spoken):
        return group if group.startswith(" ") else f" {group}"
    is_bracketed = group.lstrip(f" {MARK}{RAISED}")[:1] in OPENING
    if is_apart and not is_raised:
        if not is_bracketed and _in_brackets(line, start):
            return group
        if SENTENCE_END.search(spoken) and line[found.end() : found.end() + 2].lstrip(" ")[:1].islower():
            return group
    return f" {GONE}" if group.startswith(" ") else GONE


def _in_brackets(line: str, position: int) -> bool:
    """Whether brackets are open at a position."""
    first = max(0, position - BRACKET_LENGTH)
    return max(line.rfind(sign, first, position) for sign in OPENING) > max(
        line.rfind(sign, first, position) for sign in CLOSING
    )


def _closed(found: re.Match[str]) -> str:
    """White space in the place of what was left out, where there was some, or two words would become one."""
    line, start, end = found.string, found.start(), found.end()
    before = line[max(0, start - BEFORE) : start].translate(SIGNS_AROUND)[-1:]
    after = line[end : end + BEFORE].translate(SIGNS_AROUND)[:1]
    if not after or after in ",.;:!?)]}" or before in tuple(OPENING):
        return ""
    return " " if " " in found[0] or (before.isalnum() and after.isalnum()) else ""

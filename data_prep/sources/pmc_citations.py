"""Remove marks that cite a reference or a note from the text of an article: `[1]-[3]`, `(4, 5)`, a superscript 6.

A mark is either removed together with its brackets and the signs that join it to other marks, or kept as it is printed.
No mark is removed in part:

- `(Orr et al. 2000)`, `Orr (2000)`: a year is a word and not a mark;
- `[1, 3–5 and 7]`, `(e.g., 1)`, `[see 1]`, `[1, p. 23]`: brackets that contain only marks and such words are removed;
- `word<sup>1,2</sup>`, `word<xref>1</xref>`, `word 12, 13`: superscript, attached and bare marks are removed;
- `see Refs. 3 and 4`, `as in [5]`, `. [5] reported`: kept, because the sentence is meaningless without the mark;
- `(Orr, 2000–3)`: a mark that is joined to a name or year is kept;
- `(n = 20; [6])` becomes `(n = 20)`; a bare number among other words in brackets is kept.

The code that makes a line puts the signs from `signs_of` around each link, and `HOLE` in the place of any other text
that was left out. When the line is complete, `without_marks` removes the marks and all signs. XML cannot contain these
signs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from data_prep.sources.markup import LOWERED, RAISED, SCRIPT_END, without

MARK, MARK_END, HOLE, NAME, NAME_END = "\x04", "\x05", "\x06", "\x0e", "\x0f"
GONE = f"{HOLE}\x07"  # the place of a mark that was removed
SIGNS = (MARK, MARK_END, *GONE, NAME, NAME_END)
# Characters of Unicode's category Pd, and characters that are used as dashes: minus, tilde, bullet.
DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d\u2212\u2043\u223c~"
)

# Link texts that are marks. A year is not a mark, and neither is a letter after a year: `2003a, b`.
YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")
NUMBERS = re.compile(r"[\W\d_]*[a-z]?[\W\d_]*")
NOTE = re.compile(r"[\W\d_]*(?:[a-z]|[A-Z]|[ivx]{1,5}|([a-z])\1)?[\W\d_]*")
REFERENCE_LINK = "bibr"
MARK_LINKS = (
    REFERENCE_LINK,
    "fn",
    "table-fn",
    "aff",
    "corresp",
    "author-notes",
)  # `ref-type` of links that may be marks

JOINING = rf",;:/&+…·•*|\\{DASHES}"
JOINT = rf"(?:[{JOINING}]|\.(?!\s)|\b(?:and|or|to|through)\b)"
JOINTS = rf"(?:[\s{RAISED}{LOWERED}{SCRIPT_END}]|{JOINT})"
ONE = f"{MARK}[^{MARK}{MARK_END}]*{MARK_END}"
RUN = re.compile(f"{ONE}(?:{JOINTS}*{ONE})*")
OPENING, CLOSING = ("[", "(", "{"), ("]", ")", "}")
OPENING_SIGNS = "".join(OPENING)
OTHER = rf"[^\[\](){{}}{MARK}{MARK_END}]*"
BRACKETS = re.compile(rf"[\[({{]({OTHER}(?:{ONE}{OTHER})+)[\])}}]")
# Words that brackets may contain beside marks, and further reference numbers that are joined to other marks.
WORDS = (
    r"and|or|to|through|see|also|eg|e\.g|ie|i\.e|cf|refs?|references?|therein|reviewed|reviews?|in|by|for|an?|overview|"
    rf"example|pp?\. ?\d+(?:[{DASHES}]\d+)?"
)
CITING = re.compile(
    rf"(?:[{JOINING}.\s{RAISED}{LOWERED}{SCRIPT_END}]|{ONE}|\b(?:{WORDS})\b|\b\d{{1,3}}[a-z]?(?=\s*(?:[,;/&{DASHES}]|and\b|$)))*",
    re.IGNORECASE,
)

# Words before a mark that make no sense without it.
# fmt: off
REFERRING = {
    "citation", "citations", "footnote", "footnotes", "no", "nos", "note", "notes", "number", "numbers", "ref", "refs",
    "reference", "references",
}
NEEDING = REFERRING | {
    "and", "as", "at", "between", "both", "by", "for", "from", "in", "of", "on", "or", "per", "see", "than", "to",
    "via", "with",
}
# fmt: on
SIGNS_AROUND = f"{RAISED}{LOWERED}{SCRIPT_END}{NAME}{NAME_END}"
JOINED_TO_NAME = re.compile(rf"{NAME_END}(?:(?:\s*{JOINT})+\s*)?$")
NAME_JOINED = re.compile(rf"(?:(?:\s*{JOINT})+\s*)?{NAME}")
SENTENCE_END = re.compile(r"(?:^|(?<!\bal)[.!?])$")
AFTER_WORDS = tuple(".)]}\"'”’%*†")
BEFORE = 40  # characters before a mark that are examined
BRACKET_LENGTH = 2000  # characters before a mark in which an opening bracket is searched
NESTED = 4  # levels of nested brackets

LEFT_OUT = re.compile(f"({HOLE}(?:[ {RAISED}{LOWERED}{SCRIPT_END}{GONE}]*[{GONE}])?)")
SEPARATORS = " ,;:"


def signs_of(text: str, kind: str, before: Sequence[str]) -> tuple[str, str]:
    """The signs to put around a link: those for a mark, or those for the name or year of a reference.

    Args:
        text: text of the link.
        kind: `ref-type` of the link, one of `MARK_LINKS`.
        before: parts of the line before the link.
    """
    is_reference = kind == REFERENCE_LINK
    if is_reference and text.isdecimal() and len(text) < 4:  # a fast test for most links: a number that is not a year
        return MARK, MARK_END
    is_letter_of_year = is_reference and text.strip().isalpha() and YEAR.search("".join(before[-8:])[-12:])
    if (NUMBERS if is_reference else NOTE).fullmatch(text) and not YEAR.search(text) and not is_letter_of_year:
        return MARK, MARK_END
    return NAME, NAME_END


def without_marks(line: str) -> str:
    """Remove marks and holes from a line whose white space is folded."""
    if MARK in line:
        line = _brackets_whole(line)
        parts, end = [], 0
        for match in RUN.finditer(line):
            before, after = line[end : match.start()], match.end()
            group = match[0]
            if before.endswith(RAISED) and line.startswith(SCRIPT_END, after):
                before, group, after = before[:-1], f"{RAISED}{group}{SCRIPT_END}", after + 1
            parts += [before, _decided(line, group, after - len(group), after)]
            end = after
        line = "".join([*parts, line[end:]])
    if HOLE in line:
        line = _closed(LEFT_OUT.split(line))
    return without(line, SIGNS).strip()


def _brackets_whole(line: str) -> str:
    """Turn brackets that contain only marks, and words that may accompany them, into one mark."""
    for _ in range(NESTED):
        parts, end = [], 0
        for match in _brackets(line):
            if CITING.fullmatch(match[1]):
                parts += [line[end : match.start()], MARK, without(match[0], SIGNS), MARK_END]
                end = match.end()
        if not parts:
            break
        line = "".join([*parts, line[end:]])
    return line


def _brackets(line: str) -> Iterator[re.Match[str]]:
    """Find the matches of `BRACKETS`. Searching from a mark back to its bracket is faster than trying all brackets."""
    start, mark = 0, line.find(MARK)
    while mark >= 0:
        opening = _last(OPENING, line, start, mark)
        match = BRACKETS.match(line, opening) if opening >= 0 else None
        if match:
            yield match
        start = match.end() if match else mark
        mark = line.find(MARK, max(start, mark + 1))


def _decided(line: str, group: str, start: int, end: int) -> str:
    """Decide on a group of marks: return it as printed if it is kept, or `GONE` if it is removed."""
    before = line[max(0, start - BEFORE) : start]
    spoken = without(before, SIGNS_AROUND)
    is_joined = (NAME_END in before and JOINED_TO_NAME.search(before)) or NAME_JOINED.match(line, end)
    if is_joined and RAISED not in group:
        return group
    is_raised = RAISED in group or before.rfind(RAISED) > before.rfind(SCRIPT_END)
    is_apart = not (spoken[-1:].isalnum() or spoken[-1:] in AFTER_WORDS)
    spoken = spoken.rstrip()
    word = spoken.rpartition(" ")[2].lstrip(OPENING_SIGNS).rstrip(".").lower()
    if word in (NEEDING if is_apart and not is_raised else REFERRING):
        return group if is_apart else f" {group}"
    if is_apart and not is_raised:
        is_bracketed = group.lstrip(f"{MARK}{RAISED} ").startswith(OPENING)
        if not is_bracketed and _in_brackets(line, start):
            return group
        if line[end : end + 2].lstrip(" ")[:1].islower() and SENTENCE_END.search(spoken):
            return group
    return GONE


def _in_brackets(line: str, position: int) -> bool:
    """Whether a position is inside brackets."""
    first = max(0, position - BRACKET_LENGTH)
    return _last(OPENING, line, first, position) > _last(CLOSING, line, first, position)


def _last(signs: Iterable[str], line: str, start: int, end: int) -> int:
    """The position of the last of three signs in part of a line, or -1."""
    one, two, three = signs
    return max(line.rfind(one, start, end), line.rfind(two, start, end), line.rfind(three, start, end))


def _closed(parts: list[str]) -> str:
    """Close the gaps in a line where text was left out.

    Args:
        parts: text, signs of a gap, text, signs of a gap, and so on.
    """
    line = [parts[0]]
    for signs, text in zip(parts[1::2], parts[2::2], strict=True):
        is_spaced = line[-1].endswith(" ") or text.startswith(" ") or " " in signs
        line[-1], text = line[-1].rstrip(" "), text.lstrip(" ")
        if GONE in signs:
            text = _without_separators(line, text)
        before, after = line[-1][-BEFORE:].rstrip(SIGNS_AROUND)[-1:], text[:BEFORE].lstrip(SIGNS_AROUND)[:1]
        is_spaced = is_spaced or (before.isalnum() and after.isalnum())
        if is_spaced and after and after not in ",.;:!?)]}" and before not in OPENING:
            line.append(" ")
        line.append(text)
    return "".join(line)


def _without_separators(line: list[str], text: str) -> str:
    """Remove the separators around a removed mark, at the end of the line and at the start of the text after it.

    Brackets that contained only the mark are removed too. The function changes the line and returns the text.
    """
    before = line[-1]
    while before.endswith(OPENING) and (rest := text.lstrip(SEPARATORS))[:1] in CLOSING:
        before, text = before[:-1].rstrip(" "), rest[1:]
    if before.endswith(OPENING):
        text = text.lstrip(SEPARATORS)
    elif text.startswith((*CLOSING, SCRIPT_END)):
        before = before.rstrip(SEPARATORS)
    elif (before.endswith((",", ";", ":")) and text.startswith((",", ";", "."))) or (
        before.endswith(".") and text.startswith(".") and not text.startswith("..")
    ):
        before = before[:-1]
    line[-1] = before
    return text

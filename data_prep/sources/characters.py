"""The characters of a text: what a reader does not see, or sees as another character, is taken out or replaced.

The one place that decides it, for the text of a corpus and for every comparison of texts. `docs/data.md` has the rules
with their reasons.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from data_prep.sources.changes import listener
from data_prep.sources.document import pieces

PLAIN = bytes([*b"\t\n", *range(0x20, 0x7F)])
# Of other characters, those that a rule may change; and those from which on a text may be in another form than NFC.
ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\ufb00-\ufb06\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
MAY_BE_DECOMPOSED = "\u0300"

LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
SPACE = re.compile("[\x1c-\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff]")
BYTE_ORDER_MARK = re.compile("(?<=[ \n])\ufeff[\ufeff ]*|\ufeff+")
INVISIBLE = "\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f"
# Joiners stay between letters that they join, as of Persian, and between emojis: where none beside them is of ASCII.
JOINERS = "\u200c\u200d"
ASCII = r"[\x00-\x7f]"
# With the spaces after it where one stands before it, so that no two are left where one was seen.
ZERO_WIDTH = re.compile(
    rf"(?<=[ \n])[{INVISIBLE}{JOINERS}][{INVISIBLE}{JOINERS} ]*|[{INVISIBLE}]+|(?<={ASCII})[{JOINERS}]+"
    rf"|[{JOINERS}](?={ASCII})"
)
SOFT_HYPHEN = re.compile(r"\xad+(?:[ \t]*(?:\n[ \t]*)?(?=[^\W\d_A-Z]))?")
LIGATURE = re.compile("[\ufb00-\ufb06]")
HYPHEN_OR_BLANK = ("-", "\u2010", " ", "\t")  # at the end of a line that may end in a hyphen
HYPHENS = re.compile(r"[-\u2010][ \t]*\n")
HYPHEN_AT_LINE_END = re.compile(r"(?<=\w)[-\u2010][ \t]*\n[ \t]*(?=\w)")
WORD_CHARACTERS = 40  # of a word that is cut at a line's end
SMALL = r"[^\W\d_A-Z]"  # letter; it matters that no capital is one
# `pre- and postoperative`: the hyphen is no cut.
SUSPENDED = re.compile(r"(?:and|or|to|nor|und|oder|bis|et|ou|y|o|e)\b")
HYPHENATED = re.compile(rf"(?<!{SMALL}){SMALL}+-{SMALL}+")
EVIDENCE_CHARACTERS = 1 << 20  # at the start of a text, where other uses of a word are looked for

# What no comparison of texts sees, joiners and the choice of a glyph among it.
UNSEEN = f"\xad\ufeff{INVISIBLE}{JOINERS}\ufe00-\ufe0f"
ANY_UNSEEN = re.compile(f"[{UNSEEN}]")
CUT = re.compile(rf"(?<=\w)[-\u2010\xad][{UNSEEN}]*\s+(?=\w)")
CUT_AT_LINE_END = re.compile(rf"(?<=\w)[-\u2010\xad][{UNSEEN}]*[^\S\n]*\n\s*(?=\w)")


def _control(match: re.Match[str]) -> str:
    """What Windows means by a byte that was read as Latin-1, as 0x92 for an apostrophe; else nothing."""
    return bytes([ord(match[0])]).decode("cp1252", "ignore") if "\x80" <= match[0] <= "\x9f" else ""


def _rejoined(match: re.Match[str], hyphenated: set[str]) -> str:
    """Nothing, where a word was cut; the hyphen, where it is the word's own; all of it, where the hyphen ends one."""
    text, start, end = match.string, match.start(), match.end()
    if SUSPENDED.match(text, end):
        return match[0]
    before = re.search(rf"{SMALL}*$", text[max(0, start - WORD_CHARACTERS) : start])
    after = re.match(rf"{SMALL}*", text[end : end + WORD_CHARACTERS])
    assert before and after
    is_cut = len(before[0]) > 1 and after[0] and f"{before[0]}-{after[0]}" not in hyphenated
    return "" if is_cut else match[0][0]


# In their order; the names are those of the manifest.
RULES: dict[str, Callable[[str, set[str]], str]] = {
    "line ends": lambda text, _: LINE_END.sub("\n", text),
    "control characters": lambda text, _: CONTROL.sub(_control, text),
    "byte order marks": lambda text, _: BYTE_ORDER_MARK.sub("", text),
    "zero-width characters": lambda text, _: ZERO_WIDTH.sub("", text),
    "soft hyphens": lambda text, _: SOFT_HYPHEN.sub("", text),
    "other spaces": lambda text, _: SPACE.sub(" ", text),
    "ligatures": lambda text, _: LIGATURE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text),
    "hyphens at line ends": lambda text, hyphenated: HYPHEN_AT_LINE_END.sub(lambda m: _rejoined(m, hyphenated), text),
    "composed characters (NFC)": lambda text, _: unicodedata.normalize("NFC", text),
}


def cleaned(text: str) -> tuple[str, set[str]]:
    """A text with its characters as they are read, without white space at its ends; and the rules that changed it."""
    parts: list[str] = []
    used: set[str] = set()
    hyphenated: set[str] | None = None
    record, end = listener(), 0
    for piece in pieces(text):
        end += len(piece)
        if _is_odd(piece):
            if hyphenated is None:
                hyphenated = set(HYPHENATED.findall(text[:EVIDENCE_CHARACTERS]))
            for name, rule in RULES.items():
                if (changed := rule(piece, hyphenated)) != piece:
                    used.add(name)
                    if record:
                        before, after = "".join(parts), text[end:]
                        record.whole(f"{before}{piece}{after}", f"{before}{changed}{after}", name)
                    piece = changed
        parts.append(piece)
    return ("".join(parts).strip(), used) if used else (text, used)


def _is_odd(text: str) -> bool:
    """Whether a rule may change a text; of most texts a few passes in C say that none does."""
    others = text.encode().translate(None, PLAIN).decode()
    return bool(
        (any(line.endswith(HYPHEN_OR_BLANK) for line in text.split("\n")[:-1]) and HYPHENS.search(text))
        or (others and ODD.search(others))
        or (others and max(others) >= MAY_BE_DECOMPOSED and not unicodedata.is_normalized("NFC", text))
    )


def readings(text: str) -> list[str]:
    """The text without what is not seen; and twice more where a hyphen may stand in a word that was cut.

    Which hyphens do is not known of text whose lines were put together: so a comparison looks for what it seeks in the
    text with its hyphens, without those at line ends, and without those before any white space.
    """
    joined = [CUT_AT_LINE_END.sub("", text), CUT.sub("", text)] if CUT.search(text) else []
    return [other if other.isascii() else ANY_UNSEEN.sub("", other) for other in (text, *joined)]

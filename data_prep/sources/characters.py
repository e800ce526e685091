"""Clean the characters of a text: remove or replace characters that are invisible or look like another character.

These rules are used for the text of a corpus and for every comparison of texts. `docs/data.md` gives the reason for
each rule.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from data_prep.sources.changes import listener
from data_prep.sources.document import pieces

PLAIN = bytes([*b"\t\n", *range(0x20, 0x7F)])
# Characters outside PLAIN that a rule may change. From MAY_BE_DECOMPOSED on, a character may make a text differ from
# its NFC form.
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
# Joiners are kept unless one of their neighbours is an ASCII character, so that they stay between letters that they
# join (as in Persian) and between emojis.
JOINERS = "\u200c\u200d"
ASCII = r"[\x00-\x7f]"
# If a space stands before the character, the spaces after it are removed too, so that two spaces do not remain where a
# reader saw one.
ZERO_WIDTH = re.compile(
    rf"(?<=[ \n])[{INVISIBLE}{JOINERS}][{INVISIBLE}{JOINERS} ]*|[{INVISIBLE}]+|(?<={ASCII})[{JOINERS}]+"
    rf"|[{JOINERS}](?={ASCII})"
)
SOFT_HYPHEN = re.compile(r"\xad+(?:[ \t]*(?:\n[ \t]*)?(?=[^\W\d_A-Z]))?")
LIGATURE = re.compile("[\ufb00-\ufb06]")
HYPHEN_OR_BLANK = ("-", "\u2010", " ", "\t")  # last characters of a line that may end in a hyphen
HYPHENS = re.compile(r"[-\u2010][ \t]*\n")
HYPHEN_AT_LINE_END = re.compile(r"(?<=\w)[-\u2010][ \t]*\n[ \t]*(?=\w)")
WORD_CHARACTERS = 40  # longest part of a split word on either side of the line end
SMALL = r"[^\W\d_A-Z]"  # a letter that is not a capital of ASCII
# In `pre- and postoperative`, the hyphen does not split a word.
SUSPENDED = re.compile(r"(?:and|or|to|nor|und|oder|bis|et|ou|y|o|e)\b")
HYPHENATED = re.compile(rf"(?<!{SMALL}){SMALL}+-{SMALL}+")
EVIDENCE_CHARACTERS = 1 << 20  # beginning of a text that is searched for other uses of a hyphenated word
# Characters that comparisons of texts ignore, among them joiners and variation selectors.
UNSEEN = f"\xad\ufeff{INVISIBLE}{JOINERS}\ufe00-\ufe0f"
ANY_UNSEEN = re.compile(f"[{UNSEEN}]")
CUT = re.compile(rf"(?<=\w)[-\u2010\xad][{UNSEEN}]*\s+(?=\w)")
CUT_AT_LINE_END = re.compile(rf"(?<=\w)[-\u2010\xad][{UNSEEN}]*[^\S\n]*\n\s*(?=\w)")


def _control(match: re.Match[str]) -> str:
    """The cp1252 meaning of a byte that was read as Latin-1, such as an apostrophe for 0x92; empty if it has none."""
    return bytes([ord(match[0])]).decode("cp1252", "ignore") if "\x80" <= match[0] <= "\x9f" else ""


def _rejoined(match: re.Match[str], hyphenated: set[str]) -> str:
    """The replacement for a hyphen at a line end.

    It is empty if the hyphen splits a word, the hyphen alone if it belongs to the word, and the whole match if the
    hyphen ends a word, as in `pre- and postoperative`.
    """
    text, start, end = match.string, match.start(), match.end()
    if SUSPENDED.match(text, end):
        return match[0]
    before = re.search(rf"{SMALL}*$", text[max(0, start - WORD_CHARACTERS) : start])
    after = re.match(rf"{SMALL}*", text[end : end + WORD_CHARACTERS])
    assert before and after
    is_cut = len(before[0]) > 1 and after[0] and f"{before[0]}-{after[0]}" not in hyphenated
    return "" if is_cut else match[0][0]


# The rules in the order in which they are applied; manifests contain their names.
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
    """Apply the rules to a text; return the text without white space at its ends, and the rules that changed it."""
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
    """Whether a rule may change a text; a few fast passes in C rule out most texts."""
    others = text.encode().translate(None, PLAIN).decode()
    return bool(
        (any(line.endswith(HYPHEN_OR_BLANK) for line in text.split("\n")[:-1]) and HYPHENS.search(text))
        or (others and ODD.search(others))
        or (others and max(others) >= MAY_BE_DECOMPOSED and not unicodedata.is_normalized("NFC", text))
    )


def readings(text: str) -> list[str]:
    """The forms of a text in which a comparison searches: without invisible characters, and without certain hyphens.

    In a text whose lines were joined, it is unknown which hyphens split a word. If there are such hyphens, a comparison
    therefore searches in three forms: with all hyphens, without hyphens at line ends, and without hyphens before any
    white space.
    """
    joined = [CUT_AT_LINE_END.sub("", text), CUT.sub("", text)] if CUT.search(text) else []
    return [other if other.isascii() else ANY_UNSEEN.sub("", other) for other in (text, *joined)]

"""Words that were glued, split, lost or added on the way from XML to text, each with its place.

It knows nothing of what makes the text: it walks the XML itself, and shares no code with data_prep.

    tree = etree.parse(path, etree.XMLParser(remove_comments=True, remove_pis=True))
    markup = Markup(inline={"i", "b", "sub", "sup"}, lost={"Object": "an object is no text"})
    for fault in faults(pieces(tree.find(".//AbstractText"), markup), text):
        print(fault)  # glued: 'bywhere' for 'by where', line 4, AbstractText/i

At the borders of every element that is not inline there is white space, whether the XML has some or not. `lost` names
the elements that may be missing, with the rule that says why; such an element is missing whole, or there whole. What
must be there otherwise than the XML has it (a formula, a mark that goes with its brackets) is changed in the pieces
before they are compared: they are a list. Pieces of several elements are joined by `BORDER`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

NUMBER = re.compile(r"\s*[+\N{MINUS SIGN}\N{EN DASH}-]?\d")
OPENING = tuple("([{")
CLOSING = ",.;:!?)]}"  # may follow what is missing without the white space before that
LONGEST = 4  # words that are looked for in one, or pieces of a word


@dataclass(frozen=True)
class Piece:
    """Text of one element before, between or after the elements in it.

    Attributes:
        text: as in the XML.
        element: where it stands.
        rule: why it may be missing; None where it may not.
        unit: pieces of one unit are missing together or there together.
        moved: it may stand elsewhere.
    """

    text: str
    element: Any = None
    rule: str | None = None
    unit: int = 0
    moved: bool = False

    @property
    def place(self) -> str:
        """Line, and the path from the root."""
        if self.element is None:
            return "a border"
        path = [local(e) for e in (*reversed([*self.element.iterancestors()]), self.element)]
        return f"line {self.element.sourceline}, {'/'.join(path[-4:])}"


BORDER = Piece(" ")


@dataclass(frozen=True)
class Markup:
    """What the elements of a kind of XML are, by their local names.

    Attributes:
        inline: they have no white space at their borders.
        lost: name -> the rule by which such an element may be missing.
        raised: numbers in them stand above the line; right after a digit they are told from it by `^`.
        lowered: numbers in them stand below the line; a digit right after one, raised or lowered, is told by a space.
        moved: they may stand elsewhere than the XML has them.
        punctuated: they and those in them have white space at their borders only where words would meet.
    """

    inline: Collection[str]
    lost: Mapping[str, str] = field(default_factory=dict)
    raised: Collection[str] = ("sup",)
    lowered: Collection[str] = ("sub",)
    moved: Collection[str] = ()
    punctuated: Collection[str] = ()


@dataclass(frozen=True)
class Fault:
    """One thing wrong: `glued`, `split`, `lost`, `added`, or `moved`."""

    kind: str
    words: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}, {self.place}"


def local(element: Any) -> str:
    """The name of an element without its namespace; nothing for comments, instructions and entities."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def pieces(element: Any, markup: Markup) -> list[Piece]:
    """The text of an element in the XML's order."""
    walk = _Walk(markup)
    walk.enter(element)
    return walk.found


class _Walk:
    def __init__(self, markup: Markup):
        self._markup = markup
        self._moved = self._punctuated = False
        self._before = ""  # the last sign
        self._after_number = False  # the last sign is the end of a raised or lowered number
        self.found: list[Piece] = []

    def enter(self, element: Any) -> None:
        name = local(element)
        script = name in self._markup.raised or name in self._markup.lowered
        text = _text(element) if script or name in self._markup.lost else ""
        outer, self._moved = self._moved, self._moved or name in self._markup.moved
        loose, self._punctuated = self._punctuated, self._punctuated or name in self._markup.punctuated
        self._border(name, element)
        if name in self._markup.lost:
            self.found.append(Piece(text, element, self._markup.lost[name], id(element), self._moved))
        elif name:
            if name in self._markup.raised and self._before.isdecimal() and NUMBER.match(text):
                self._put("^", element)
            self._put(element.text, element)
            for child in element:
                self.enter(child)
                self._put(child.tail, element)
            if script and text:
                self._after_number = self._before.isdecimal()
        self._border(name, element)
        self._punctuated, self._moved = loose, outer
        if name in self._markup.moved:
            self.found.append(Piece("", None, "it stands elsewhere", id(element), outer))
            self._put(" ", None)

    def _border(self, name: str, element: Any) -> None:
        if name not in self._markup.inline and self._punctuated:
            self.found.append(Piece("", None, "a border", id(element), self._moved))
            self._before = ""
        elif name not in self._markup.inline:
            self._put(" ", None)

    def _put(self, text: str | None, element: Any) -> None:
        if text:
            if self._after_number and text[0].isdecimal():
                text = f" {text}"
            self.found.append(Piece(text, element, moved=self._moved))
            self._before, self._after_number = text[-1], False


def _text(element: Any) -> str:
    return "".join(element.itertext()) if local(element) else ""


@dataclass
class _Word:
    text: str
    piece: Piece  # in which it begins
    first: int  # number of that piece, and of the one in which it ends
    last: int


def _words(parts: Sequence[Piece], kept: Collection[int]) -> list[_Word]:
    """The words of the pieces, without those that may be missing but for the units in `kept`."""
    marks: list[tuple[str, int]] = []  # (sign, piece); the sign of what is missing is empty
    for number, piece in enumerate(parts):
        if piece.rule is None or piece.unit in kept:
            marks += ((sign, number) for sign in piece.text)
        else:
            marks.append(("", number))
    signs: list[tuple[str, int]] = []
    position = 0
    while position < len(marks):
        sign, number = marks[position]
        if sign:
            signs.append((sign, number))
            position += 1
            continue
        end = position
        while end < len(marks) and (not marks[end][0] or marks[end][0].isspace()):
            end += 1
        after = marks[end][0] if end < len(marks) else " "
        while signs and signs[-1][0].isspace():
            signs.pop()
            position -= 1
        before = signs[-1][0] if signs else " "
        spaced = any(mark.isspace() for mark, _ in marks[max(0, position) : end])
        if after not in CLOSING and before not in OPENING and (spaced or (before.isalnum() and after.isalnum())):
            signs.append((" ", number))
        position = end
    words = []
    for is_space, group in groupby(signs, key=lambda sign: sign[0].isspace()):
        if not is_space:
            word = list(group)
            words.append(_Word("".join(s for s, _ in word), parts[word[0][1]], word[0][1], word[-1][1]))
    return words


def faults(parts: Sequence[Piece], text: str) -> list[Fault]:
    """What is wrong with a text that was made of the pieces.

    Args:
        parts: of the XML, in its order.
        text: what came out.
    """
    told: list[Fault] = []
    missing: list[_Word] = []
    came = text.split()
    extra = [(word, number) for number, word in enumerate(came)]
    for moved in (False, True):
        chosen = [part for part in parts if part.moved == moved]
        words, gaps = _aligned(chosen, [word for word, _ in extra])
        lost = [word for start, end, _, _ in gaps for word in words[start:end]]
        extra = [word for _, _, first, last in gaps for word in extra[first:last]] if words else extra
        told += _glued(lost, extra)
        both = Counter(word.text for word in lost) & Counter(word for word, _ in extra)
        for word in lost:
            if both[word.text]:
                both[word.text] -= 1
                extra.pop(next(i for i, (other, _) in enumerate(extra) if other == word.text))
                if not moved:
                    told.append(Fault("moved", repr(word.text), word.piece.place))
            else:
                missing.append(word)
    return told + _rest(missing, extra, came)


def _aligned(parts: Sequence[Piece], found: Sequence[str]) -> tuple[list[_Word], list[tuple[int, int, int, int]]]:
    """The words that are expected, and where they and what came out differ, with what is missing chosen to fit."""
    kept, tried = set[int](), set[int]()
    while True:
        expected = _words(parts, kept)
        if [word.text for word in expected] == found:
            return expected, []
        matcher = SequenceMatcher(None, [word.text for word in expected], found, autojunk=False)
        gaps = [code[1:] for code in matcher.get_opcodes() if code[0] != "equal"]
        seen = _kept_units(parts, expected, found, gaps) - tried
        wrong = (
            {  # they only seemed to be there
                parts[number].unit
                for start, end, _, _ in gaps
                for word in expected[start:end]
                for number in range(word.first, word.last + 1)
            }
            & kept
        )
        if not seen and not wrong:
            return expected, gaps
        kept = (kept | seen) - wrong
        tried |= seen


def _kept_units(
    parts: Sequence[Piece], expected: Sequence[_Word], found: Sequence[str], gaps: Iterable[tuple[int, int, int, int]]
) -> set[int]:
    """The units that may be missing and are there: their signs came out where they would stand."""
    kept = set()
    for start, end, first, last in gaps:
        begin = expected[start - 1].first if start else 0
        finish = expected[end].last if end < len(expected) else len(parts) - 1
        came = "".join(found[max(0, first - 1) : last + 1])
        units: dict[int, str] = {}
        for piece in parts[begin : finish + 1]:
            if piece.rule is not None:
                units[piece.unit] = units.get(piece.unit, "") + "".join(piece.text.split())
        kept |= {unit for unit, signs in units.items() if signs and signs in came}
    return kept


def _glued(missing: list[_Word], extra: list[tuple[str, int]]) -> list[Fault]:
    """Missing words that stand in one that came out; they are taken out of both."""
    told: list[Fault] = []
    over = [word for word, _ in extra]
    position = 0
    while position < len(missing):
        for count in range(min(LONGEST, len(missing) - position), 1, -1):
            words = missing[position : position + count]
            glued = "".join(word.text for word in words)
            if glued in over:
                said = " ".join(word.text for word in words)
                told.append(Fault("glued", f"{glued!r} for {said!r}", words[-1].piece.place))
                del extra[over.index(glued)], over[over.index(glued)], missing[position : position + count]
                break
        else:
            position += 1
    return told


def _rest(missing: list[_Word], extra: list[tuple[str, int]], came: Sequence[str]) -> list[Fault]:
    """Missing words that came out in parts; then what is left of both."""
    told: list[Fault] = []
    over = [word for word, _ in extra]
    for word in missing:
        parts = next((p for p in _runs(over) if "".join(over[p]) == word.text), None)
        if parts:
            told.append(Fault("split", f"{' '.join(over[parts])!r} for {word.text!r}", word.piece.place))
            del extra[parts], over[parts]
        else:
            told.append(Fault("lost", repr(word.text), word.piece.place))
    around = (" ".join(came[max(0, number - 2) : number + 3]) for _, number in extra)
    return told + [Fault("added", repr(word), f"in {words!r}") for word, words in zip(over, around, strict=True)]


def _runs(words: Sequence[str]) -> Iterable[slice]:
    return (slice(i, i + n) for i in range(len(words)) for n in range(2, LONGEST + 1) if i + n <= len(words))

"""Words that were glued, split, lost or added between XML and text, each with its place.

This check is independent of the code that makes the text: it walks the XML itself, and imports nothing of data_prep.

    tree = etree.parse(path, etree.XMLParser(remove_comments=True, remove_pis=True))
    markup = Markup(inline={"i", "b", "sub", "sup"}, lost={"Object": "an object is no text"})
    for fault in faults(pieces(tree.find(".//AbstractText"), markup), text):
        print(fault)  # glued: 'bywhere' for 'by where', line 4, AbstractText/i

Every element that is not inline counts as having white space at its borders. `lost` names the elements that may be
missing, each with its rule; such an element must be missing or present as a whole. If a part of the text differs from
the XML by a rule (a formula, a mark and its brackets), the caller changes the list of pieces before the comparison.
`BORDER` joins pieces of several elements.
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
CLOSING = ",.;:!?)]}"  # may follow a missing part without white space before them
LONGEST = 4  # longest run of words that may be glued, or of pieces of a split word


@dataclass(frozen=True)
class Piece:
    """Text of one element before, between or after its child elements.

    Attributes:
        text: as in the XML.
        element: element that contains the text.
        rule: rule by which the text may be missing; None if it must be present.
        unit: pieces of one unit are all missing or all present.
        moved: whether the text may stand elsewhere.
    """

    text: str
    element: Any = None
    rule: str | None = None
    unit: int = 0
    moved: bool = False

    @property
    def place(self) -> str:
        """Line, and path from the root."""
        if self.element is None:
            return "a border"
        path = [local(e) for e in (*reversed([*self.element.iterancestors()]), self.element)]
        return f"line {self.element.sourceline}, {'/'.join(path[-4:])}"


BORDER = Piece(" ")


@dataclass(frozen=True)
class Markup:
    """Roles of the elements in a kind of XML, by their local names.

    Attributes:
        inline: elements without white space at their borders.
        lost: name -> rule by which such an element may be missing.
        raised: elements whose numbers are superscripts; right after a digit they get a `^`.
        lowered: elements whose numbers are subscripts; a space separates a superscript or subscript from a digit after
            it.
        moved: elements that may stand elsewhere than in the XML.
        punctuated: elements that, with their children, have white space at their borders only where words would meet.
    """

    inline: Collection[str]
    lost: Mapping[str, str] = field(default_factory=dict)
    raised: Collection[str] = ("sup",)
    lowered: Collection[str] = ("sub",)
    moved: Collection[str] = ()
    punctuated: Collection[str] = ()


@dataclass(frozen=True)
class Fault:
    """One error: `glued`, `split`, `lost`, `added`, or `moved`."""

    kind: str
    words: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}, {self.place}"


def local(element: Any) -> str:
    """Name of an element without its namespace; empty for comments, instructions and entities."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def pieces(element: Any, markup: Markup) -> list[Piece]:
    """Text of an element, in the order of the XML."""
    walk = _Walk(markup)
    walk.enter(element)
    return walk.pieces


class _Walk:
    def __init__(self, markup: Markup):
        self._markup = markup
        self._moved = self._punctuated = False
        self._before = ""  # the last sign
        self._after_number = False  # whether the last sign ends a superscript or subscript number
        self.pieces: list[Piece] = []

    def enter(self, element: Any) -> None:
        name = local(element)
        script = name in self._markup.raised or name in self._markup.lowered
        text = _text(element) if script or name in self._markup.lost else ""
        outer, self._moved = self._moved, self._moved or name in self._markup.moved
        loose, self._punctuated = self._punctuated, self._punctuated or name in self._markup.punctuated
        self._border(name, element)
        if name in self._markup.lost:
            self.pieces.append(Piece(text, element, self._markup.lost[name], id(element), self._moved))
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
            self.pieces.append(Piece("", None, "it stands elsewhere", id(element), outer))
            self._put(" ", None)

    def _border(self, name: str, element: Any) -> None:
        if name not in self._markup.inline and self._punctuated:
            self.pieces.append(Piece("", None, "a border", id(element), self._moved))
            self._before = ""
        elif name not in self._markup.inline:
            self._put(" ", None)

    def _put(self, text: str | None, element: Any) -> None:
        if text:
            if self._after_number and text[0].isdecimal():
                text = f" {text}"
            self.pieces.append(Piece(text, element, moved=self._moved))
            self._before, self._after_number = text[-1], False


def _text(element: Any) -> str:
    return "".join(element.itertext()) if local(element) else ""


@dataclass
class _Word:
    text: str
    piece: Piece  # the piece in which it begins
    first: int  # numbers of the pieces in which it begins and ends
    last: int


def _words(parts: Sequence[Piece], kept: Collection[int]) -> list[_Word]:
    """The words of the pieces, without parts that may be missing, unless their units are in `kept`."""
    marks: list[tuple[str, int]] = []  # (sign, piece); a missing part has an empty sign
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
    """Differences between the pieces and the text that was made from them.

    Args:
        parts: pieces of the XML, in its order.
        text: the resulting text.
    """
    reported: list[Fault] = []
    missing: list[_Word] = []
    came = text.split()
    extra = [(word, number) for number, word in enumerate(came)]
    for moved in (False, True):
        chosen = [part for part in parts if part.moved == moved]
        words, gaps = _aligned(chosen, [word for word, _ in extra])
        lost = [word for start, end, _, _ in gaps for word in words[start:end]]
        extra = [word for _, _, first, last in gaps for word in extra[first:last]] if words else extra
        reported += _glued(lost, extra)
        both = Counter(word.text for word in lost) & Counter(word for word, _ in extra)
        for word in lost:
            if both[word.text]:
                both[word.text] -= 1
                extra.pop(next(i for i, (other, _) in enumerate(extra) if other == word.text))
                if not moved:
                    reported.append(Fault("moved", repr(word.text), word.piece.place))
            else:
                missing.append(word)
    return reported + _rest(missing, extra, came)


def _aligned(parts: Sequence[Piece], result: Sequence[str]) -> tuple[list[_Word], list[tuple[int, int, int, int]]]:
    """The expected words, and the differences from the resulting words; units that may be missing are chosen to fit."""
    kept, tried = set[int](), set[int]()
    while True:
        expected = _words(parts, kept)
        if [word.text for word in expected] == result:
            return expected, []
        matcher = SequenceMatcher(None, [word.text for word in expected], result, autojunk=False)
        gaps = [code[1:] for code in matcher.get_opcodes() if code[0] != "equal"]
        seen = _kept_units(parts, expected, result, gaps) - tried
        wrong = (
            {  # these units only seemed to be present
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
    parts: Sequence[Piece], expected: Sequence[_Word], result: Sequence[str], gaps: Iterable[tuple[int, int, int, int]]
) -> set[int]:
    """Units that may be missing but are present: their signs are in the result where they would stand."""
    kept = set()
    for start, end, first, last in gaps:
        begin = expected[start - 1].first if start else 0
        finish = expected[end].last if end < len(expected) else len(parts) - 1
        came = "".join(result[max(0, first - 1) : last + 1])
        units: dict[int, str] = {}
        for piece in parts[begin : finish + 1]:
            if piece.rule is not None:
                units[piece.unit] = units.get(piece.unit, "") + "".join(piece.text.split())
        kept |= {unit for unit, signs in units.items() if signs and signs in came}
    return kept


def _glued(missing: list[_Word], extra: list[tuple[str, int]]) -> list[Fault]:
    """Report missing words that stand together in one resulting word, and remove them from both lists."""
    reported: list[Fault] = []
    over = [word for word, _ in extra]
    position = 0
    while position < len(missing):
        for count in range(min(LONGEST, len(missing) - position), 1, -1):
            words = missing[position : position + count]
            glued = "".join(word.text for word in words)
            if glued in over:
                apart = " ".join(word.text for word in words)
                reported.append(Fault("glued", f"{glued!r} for {apart!r}", words[-1].piece.place))
                del extra[over.index(glued)], over[over.index(glued)], missing[position : position + count]
                break
        else:
            position += 1
    return reported


def _rest(missing: list[_Word], extra: list[tuple[str, int]], came: Sequence[str]) -> list[Fault]:
    """Report missing words that were split, then all remaining words of both lists."""
    reported: list[Fault] = []
    over = [word for word, _ in extra]
    for word in missing:
        parts = next((p for p in _runs(over) if "".join(over[p]) == word.text), None)
        if parts:
            reported.append(Fault("split", f"{' '.join(over[parts])!r} for {word.text!r}", word.piece.place))
            del extra[parts], over[parts]
        else:
            reported.append(Fault("lost", repr(word.text), word.piece.place))
    around = (" ".join(came[max(0, number - 2) : number + 3]) for _, number in extra)
    return reported + [Fault("added", repr(word), f"in {words!r}") for word, words in zip(over, around, strict=True)]


def _runs(words: Sequence[str]) -> Iterable[slice]:
    return (slice(i, i + n) for i in range(len(words)) for n in range(2, LONGEST + 1) if i + n <= len(words))

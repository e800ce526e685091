"""Record what the text rules remove and add, piece by piece, so that a user can see it.

While a text is made, each rule reports the text before and after it, but only if a record is listening. Without one, a
line costs only one comparison. Use:

    with listening() as record: for entry in source.read(file, stream): changes = record.take() # changes in this entry
    changes.pieces(entry.text) # [Piece("It grows"), Piece(" [1]", REMOVED, "citation marks"), Piece(".")]

The pieces come from a comparison of the texts before and after each rule, so they always agree with the result: all
pieces except the removed ones give the text, and all pieces except the added ones give the source, up to white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher

KEPT, REMOVED, ADDED = "kept", "removed", "added"
FORMULA, NUMBERS, METADATA = "formulas", "raised numbers", "metadata"  # rules of several sources
JOINED = "joined lines"  # for example the colon between a title and its subtitle; changed white space is not reported
# Control characters that mark places in a line while it is made; XML cannot contain them.
NO_SIGNS = dict.fromkeys(sign for sign in range(1, 0x20) if chr(sign) not in "\t\n\r")
WHITE_SPACE = re.compile(r"\s+")
# Units by which two texts are compared: first lines, then words with the space before them, then characters. With each
# unit is the largest number of pairs that are compared; beyond it, the whole text counts as replaced.
UNITS = (
    (re.compile(r"\n+|[^\n]+"), 4_000_000),
    (re.compile(r"\s*(?:[^\W\d_]+|\d+|[\W_])"), 4_000_000),
    (re.compile(r"(?s)."), 40_000),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text or of its source; `rule` is empty if the part is kept."""

    text: str
    kind: str = KEPT
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A change within a line that was made before the line was complete.

    Attributes:
        place: number of characters of the line before the change, without white space and signs.
        before: text of the source at this place.
        after: text of the line at this place.
        rule: name of the rule that made the change.
    """

    place: int
    before: str
    after: str
    rule: str


@dataclass(slots=True)
class _Strand:
    """A line while it is made: its text in the source, and its text after each rule."""

    text: str
    notes: Sequence[Note] = ()
    steps: list[tuple[str, str]] = field(default_factory=list)  # (rule, text)
    last: str = ""  # current text, with its signs


@dataclass(slots=True)
class Changes:
    """The recorded changes of one entry: its lines, and the changes by rules for the whole text."""

    strands: list[_Strand] = field(default_factory=list)
    whole: list[tuple[str, str, str]] = field(default_factory=list)  # (rule, text before, text after)

    def rules(self) -> set[str]:
        """The rules that changed something."""
        used = {rule for rule, before, after in self.whole if before != after}
        for strand in self.strands:
            used |= {note.rule for note in strand.notes if note.before.split() != note.after.split()}
            text = strand.text
            for rule, after in strand.steps:
                used |= {rule} if after != text else set()
                text = after
        return used

    def pieces(self, text: str) -> list[Piece]:
        """The entry's text in pieces, each change with its rule.

        Args:
            text: final text of the entry.
        """
        pieces: list[Piece] = []
        for strand in self.strands:
            line = _noted(strand)
            for rule, after in strand.steps:
                line = changed(line, after, rule)
            line = [piece for piece in line if piece.text]
            is_text = any(piece.kind != REMOVED for piece in line)
            if pieces and line:
                pieces.append(Piece("\n\n") if is_text else Piece("\n", REMOVED, line[0].rule))
            pieces += line
        if not pieces:
            pieces = [Piece(self.whole[0][1] if self.whole else text)]
        for rule, before, after in self.whole:
            pieces = changed(changed(pieces, before, JOINED), after, rule)
        return _joined(changed(pieces, text, JOINED))


class Record:
    """Records what rules report on the entry that is being read."""

    def __init__(self) -> None:
        self._changes = Changes()

    def line(self, text: str, notes: Sequence[Note] = ()) -> None:
        """Begin a line with its text in the source; signs in the line are not part of the text."""
        self._changes.strands.append(_Strand(plain(text), notes, last=text))

    def verbatim(self, text: str) -> None:
        """Begin a line that keeps its white space."""
        self._changes.strands.append(_Strand(text, last=text))

    def became(self, text: str, rule: str, lines: int = 1) -> None:
        """Report the text of the last line after a rule; for several lines, the text must be empty."""
        for strand in self._changes.strands[-lines:] if lines else ():
            if text != strand.last:
                strand.steps.append((rule, plain(text)))
                strand.last = text

    def left_out(self, text: str, rule: str) -> None:
        """Report a text of the source that a rule removed and that is not a line of the text."""
        if text := plain(text):
            self._changes.strands.append(_Strand(text, (), [(rule, "")]))

    def whole(self, before: str, after: str, rule: str) -> None:
        """Report what a rule made of the whole text."""
        self._changes.whole.append((rule, before, after))

    @property
    def lines(self) -> int:
        """The number of lines so far."""
        return len(self._changes.strands)

    def take(self) -> Changes:
        """Return the changes since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes


_listening: list[Record] = []


def listener() -> Record | None:
    """The record to report to, or None if nothing is recorded."""
    return _listening[-1] if _listening else None


@contextmanager
def listening() -> Iterator[Record]:
    """Record the changes in everything that this process reads within the `with` statement."""
    record = Record()
    _listening.append(record)
    try:
        yield record
    finally:
        _listening.remove(record)


def plain(text: str) -> str:
    """A line without signs and with folded white space."""
    return " ".join(text.translate(NO_SIGNS).split())


def place_in(parts: Iterable[str]) -> int:
    """The place, as in a `Note`, of the next part of a line that begins with these parts."""
    return len("".join("".join(parts).translate(NO_SIGNS).split()))


def changed(pieces: Sequence[Piece], text: str, rule: str) -> list[Piece]:
    """Add the changes of a rule to pieces; for the rule `JOINED`, changes of white space are not reported.

    Args:
        pieces: pieces before the rule.
        text: text after the rule.
        rule: name of the rule.
    """
    before = "".join(piece.text for piece in pieces if piece.kind != REMOVED)
    edits = list(_edits(before, text))
    if not edits:
        return list(pieces)
    result: list[Piece] = []
    at = 0
    edits.append((len(before) + 1, len(before) + 1, ""))
    start, end, new = edits.pop(0)
    for piece in pieces:
        if piece.kind == REMOVED:
            result.append(piece)
            continue
        rest = piece.text
        while rest:
            if at < start:  # before the next edit
                kept, rest = rest[: start - at], rest[start - at :]
                result.append(Piece(kept, piece.kind, piece.rule))
                at += len(kept)
                continue
            gone, rest = rest[: end - at], rest[end - at :]
            silent = rule == JOINED and not gone.strip() and not new.strip()
            if gone and piece.kind == KEPT and not silent:
                result.append(Piece(gone, REMOVED, rule))
            at += len(gone)
            if at == end:
                if new:
                    result.append(Piece(new) if silent else Piece(new, ADDED, rule))
                start, end, new = edits.pop(0)
    if new:  # text that is added at the end
        result.append(Piece(new) if rule == JOINED and not new.strip() else Piece(new, ADDED, rule))
    return result


def _noted(strand: _Strand) -> list[Piece]:
    """The pieces of a line, with the changes from its notes."""
    pieces: list[Piece] = []
    at = place = 0
    text = strand.text
    for note in strand.notes:
        begin, at = at, _after(text, at, note.place - place)
        length = len("".join(note.after.split()))
        if length:  # white space before the change belongs to the line
            at = _after(text, at, 1) - 1
        end = _after(text, at, length)
        pieces.append(Piece(text[begin:at]))
        if note.before.strip():
            pieces += changed([Piece(WHITE_SPACE.sub(" ", note.before))], text[at:end], note.rule)
        at, place = end, note.place + length
    return [*pieces, Piece(text[at:])]


def _after(text: str, start: int, count: int) -> int:
    """The position after `count` more characters, without white space."""
    while count and start < len(text):
        count -= not text[start].isspace()
        start += 1
    return start


def _edits(before: str, after: str, start: int = 0, level: int = 0) -> Iterator[tuple[int, int, str]]:
    """The edits that turn one text into another, in order: (start, end, new text)."""
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    start += head
    unit, most = UNITS[level] if level < len(UNITS) else (UNITS[-1][0], 0)
    one, other = unit.findall(old), unit.findall(new)
    if not old or not new or len(one) * len(other) > most:
        if old or new:
            yield start, start + len(old), new
        return
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        part, length = "".join(other[c:d]), sum(map(len, one[a:b]))
        if kind == "replace":
            yield from _edits("".join(one[a:b]), part, start, level + 1)
        elif kind != "equal":
            yield start, start + length, part
        start += length


def _common(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Merge neighbouring pieces of the same kind and rule."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and (joined[-1].kind, joined[-1].rule) == (piece.kind, piece.rule):
            joined[-1] = Piece(joined[-1].text + piece.text, piece.kind, piece.rule)
        elif piece.text:
            joined.append(piece)
    return joined

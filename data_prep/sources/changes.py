"""What the rules for text take out and put in, piece by piece, for those who want to see it.

Where a text is made, each rule tells what it made of what; but only while someone listens, so that the ordinary way
costs one comparison a line:

    with listening() as record:
        for entry in source.read(file, stream):
            told = record.take()  # of this entry
    told.pieces(entry.text)  # [Piece("It grows"), Piece(" [1]", REMOVED, "citation marks"), Piece(".")]

The pieces follow from comparing the text before a rule with the text after it, so they cannot say what did not happen:
all but the removed ones are the text, and all but the added ones are what the source held, up to white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher

KEPT, REMOVED, ADDED = "kept", "removed", "added"
FORMULA, NUMBERS, METADATA = "formulas", "raised numbers", "metadata"  # rules of several sources
JOINED = "joined lines"  # a title and its subtitle, which get a colon; white space between lines is not told
# Signs that mark places in a line while it is made; XML cannot contain them.
NO_SIGNS = dict.fromkeys(sign for sign in range(1, 0x20) if chr(sign) not in "\t\n\r")
WHITE_SPACE = re.compile(r"\s+")
# By what texts are compared, and at most so many pairs of them; of more, all is said to be another text: lines, then
# words with the space before them, then characters.
UNITS = (
    (re.compile(r"\n+|[^\n]+"), 4_000_000),
    (re.compile(r"\s*(?:[^\W\d_]+|\d+|[\W_])"), 4_000_000),
    (re.compile(r"(?s)."), 40_000),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, or of what it was made of; `rule` is empty where it is kept."""

    text: str
    kind: str = KEPT
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something in a line that was left out, or written otherwise, before the line was whole.

    Attributes:
        place: how many characters of the line stand before it, white space and signs not counted.
        before: what the source has there.
        after: what the line has there.
        rule: by which it was.
    """

    place: int
    before: str
    after: str
    rule: str


@dataclass(slots=True)
class _Strand:
    """A line on its way: what the source has, and what each rule made of it."""

    text: str
    notes: Sequence[Note] = ()
    steps: list[tuple[str, str]] = field(default_factory=list)  # (rule, text)
    last: str = ""  # text, with its signs


@dataclass(slots=True)
class Changes:
    """What was told of one entry: its lines, and what rules for the whole text made of that."""

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
        """The entry's text with what was changed, each with its rule.

        Args:
            text: what became of the entry.
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
    """Takes down what rules tell of the entry that is being read."""

    def __init__(self) -> None:
        self._changes = Changes()

    def line(self, text: str, notes: Sequence[Note] = ()) -> None:
        """Begin a line, as the source has it; signs in it are none of its text."""
        self._changes.strands.append(_Strand(plain(text), notes, last=text))

    def verbatim(self, text: str) -> None:
        """A line that keeps its white space."""
        self._changes.strands.append(_Strand(text, last=text))

    def became(self, text: str, rule: str, lines: int = 1) -> None:
        """What a rule made of the last line; nothing, if of several."""
        for strand in self._changes.strands[-lines:] if lines else ():
            if text != strand.last:
                strand.steps.append((rule, plain(text)))
                strand.last = text

    def left_out(self, text: str, rule: str) -> None:
        """Something that is no line of the text, by a rule."""
        if text := plain(text):
            self._changes.strands.append(_Strand(text, (), [(rule, "")]))

    def whole(self, before: str, after: str, rule: str) -> None:
        """What a rule made of the whole text."""
        self._changes.whole.append((rule, before, after))

    @property
    def lines(self) -> int:
        """How many there are by now."""
        return len(self._changes.strands)

    def take(self) -> Changes:
        """What was told since the last time."""
        changes, self._changes = self._changes, Changes()
        return changes


_listening: list[Record] = []


def listener() -> Record | None:
    """Who is to be told, if anyone."""
    return _listening[-1] if _listening else None


@contextmanager
def listening() -> Iterator[Record]:
    """A record that is told of all that is read meanwhile, in this process."""
    record = Record()
    _listening.append(record)
    try:
        yield record
    finally:
        _listening.remove(record)


def plain(text: str) -> str:
    """A line without signs, its white space folded."""
    return " ".join(text.translate(NO_SIGNS).split())


def place_in(parts: Iterable[str]) -> int:
    """Where in a line that begins with these parts the next one stands, as a `Note` says it."""
    return len("".join("".join(parts).translate(NO_SIGNS).split()))


def changed(pieces: Sequence[Piece], text: str, rule: str) -> list[Piece]:
    """Pieces with what a rule made of their text; of `JOINED`, white space for white space is not told.

    Args:
        pieces: what is known so far.
        text: what the rule made of all that is not removed.
        rule: its name.
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
    if new:  # at the very end
        result.append(Piece(new) if rule == JOINED and not new.strip() else Piece(new, ADDED, rule))
    return result


def _noted(strand: _Strand) -> list[Piece]:
    """A line as pieces, with what its notes say."""
    pieces: list[Piece] = []
    at = place = 0
    text = strand.text
    for note in strand.notes:
        begin, at = at, _after(text, at, note.place - place)
        length = len("".join(note.after.split()))
        if length:  # white space before it is the line's
            at = _after(text, at, 1) - 1
        end = _after(text, at, length)
        pieces.append(Piece(text[begin:at]))
        if note.before.strip():
            pieces += changed([Piece(WHITE_SPACE.sub(" ", note.before))], text[at:end], note.rule)
        at, place = end, note.place + length
    return [*pieces, Piece(text[at:])]


def _after(text: str, start: int, count: int) -> int:
    """Where so many characters have passed, white space not counted."""
    while count and start < len(text):
        count -= not text[start].isspace()
        start += 1
    return start


def _edits(before: str, after: str, start: int = 0, level: int = 0) -> Iterator[tuple[int, int, str]]:
    """Which parts of a text became what: (start, end, new), in their order."""
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
    """How many characters two texts begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind and rule as one."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and (joined[-1].kind, joined[-1].rule) == (piece.kind, piece.rule):
            joined[-1] = Piece(joined[-1].text + piece.text, piece.kind, piece.rule)
        elif piece.text:
            joined.append(piece)
    return joined

"""The rules report each change as pieces, from which both the new text and the source's text can be read."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.files.inputs import reading
from data_prep.sources import medline, sample
from data_prep.sources.changes import ADDED, JOINED, KEPT, REMOVED, Piece, changed, listener, listening
from data_prep.sources.characters import RULES, cleaned
from data_prep.sources.document import Document
from data_prep.sources.medline import KINDS, Medline
from data_prep.sources.pmc import Pmc
from jats_words import INLINE
from words import Markup, pieces

MARKUP = Markup(inline=INLINE, raised=(), lowered=())  # all text, without added signs


def text_of(record: list[Piece]) -> str:
    return "".join(piece.text for piece in record if piece.kind != REMOVED)


def source_of(record: list[Piece]) -> str:
    return "".join(piece.text for piece in record if piece.kind != ADDED)


@pytest.mark.parametrize("path", sample.paths(".nxml"), ids=lambda path: Path(path).stem)
def test_pieces_and_text_of_a_real_article_are_all_its_words(path: str) -> None:
    (file,) = Pmc().find([path])
    with reading(file) as stream, listening() as record:
        (document,) = Pmc().read(file, stream)
        assert isinstance(document, Document)
        text, _ = cleaned(document.text)
    changes = record.take()
    parts = changes.pieces(text)
    assert text_of(parts) == text
    root = etree.parse(path, etree.XMLParser(remove_comments=True, remove_pis=True)).getroot()
    there = Counter("".join(piece.text for piece in pieces(root, MARKUP)).split())
    assert Counter(source_of(parts).split()) == there
    assert {piece.rule for piece in parts} - {"", JOINED} == changes.rules()
    shares = Counter[str]()
    for piece in parts:
        shares[piece.kind] += len(piece.text)
    assert 0.4 < shares[KEPT] / len(source_of(parts)) < 0.95, (
        "some of the text is removed, and not all of the change reported"
    )


def test_pieces_and_text_of_real_citations_are_all_their_words() -> None:
    (file,) = Medline().find(sample.paths(".xml.gz")[1:])
    kind, used = KINDS["PubmedArticle"], Counter[str]()
    with reading(file) as stream, listening() as record:
        for element in islice(medline.citations(stream, file.url), 1_200):
            entry = Medline()._entry(element, kind) if element.tag in KINDS else None
            changes = record.take()
            if not isinstance(entry, Document):
                continue
            changed_text = changes.pieces(entry.text)
            assert text_of(changed_text) == entry.text
            parts = [*kind.titles(element), *kind.sections(element), *kind.others(element), *kind.unread(element)]
            words = Counter(" ".join("".join(part.itertext()) for part in parts).split())
            words.update(f"{part.get('Label')}:" for part in kind.sections(element) if part.get("Label"))
            labels = Counter(word for word in words.elements() if " " in word)
            words = words - labels + Counter(part for label in labels.elements() for part in label.split())
            words.subtract(["UNLABELLED:"] * words["UNLABELLED:"])
            assert Counter(source_of(changed_text).split()) == +words, entry.id
            used.update(changes.rules())
    assert {"section labels", "copyright notices", "headings", "markup escaped twice", "raised numbers"} < used.keys()


def test_nobody_is_told_unless_someone_listens() -> None:
    (file,) = Pmc().find(sample.paths(".nxml")[:1])
    assert listener() is None
    with listening() as record, pytest.raises(ZeroDivisionError), listening():
        raise ZeroDivisionError
    assert listener() is None
    with reading(file) as stream:
        list(Pmc().read(file, stream))
    assert not record.lines


def test_what_becomes_of_pieces_is_text_and_source_in_any_order() -> None:
    """After random edits in sequence, the pieces still give the last text and the first text."""
    draw = random.Random(3)
    alphabet = ["word", " ", "\n\n", "[1]", "10", ".", "ab", "  ", "é"]
    for _ in range(400):
        text = first = "".join(draw.choices(alphabet, k=draw.randint(0, 30)))
        edited = [Piece(first)]
        for rule in "abc":
            parts = list(text)
            for _ in range(draw.randint(0, 3)):
                place = draw.randint(0, len(parts))
                parts[place : place + draw.randint(0, 4)] = draw.choices(alphabet, k=draw.randint(0, 2))
            text = "".join(parts)
            edited = changed(edited, text, rule)
            assert (text_of(edited), source_of(edited)) == (text, first)
            assert {piece.rule for piece in edited if piece.kind == KEPT} <= {""}


def test_each_rule_for_characters_is_told() -> None:
    text = "a\r\nb \x92s \ufeffc z\u200bero soft hy\xadphen nbsp\xa0space \ufb01bre and\nrespi-\nratory e\u0301nd \x00."
    with listening() as record:
        after, used = cleaned(text)
    changes = record.take()
    parts = changes.pieces(after)
    assert (text_of(parts), source_of(parts)) == (after, text)
    assert changes.rules() == used == set(RULES)
    assert Piece("\u200b", REMOVED, "zero-width characters") in parts
    assert Piece("’", ADDED, "control characters") in parts


def test_a_large_change_takes_no_square_of_time() -> None:
    """Texts with nothing in common are reported at once as one replacement."""
    one, other = "a b " * 100_000, "c d " * 100_000
    edited = changed([Piece(one)], other, "r")
    assert (text_of(edited), source_of(edited)) == (other, one)

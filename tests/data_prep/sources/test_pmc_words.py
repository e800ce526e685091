"""No word is glued, split, lost or added between JATS and text, in real and generated articles."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources import pmc_text, sample
from data_prep.sources.changes import ADDED, REMOVED, listening
from data_prep.sources.document import Document
from data_prep.sources.pmc_article import read_articles
from hunting import hunt, hunt_on
from jats_words import article_pieces
from mutations import Draw
from words import faults

NAMESPACES = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"'
# Elements that the code names, and others that occur in the text of PMC's articles.
NAMED = (
    pmc_text.INLINE | pmc_text.BLOCKS | pmc_text.FLOATS | set(pmc_text.DROPPED) | set(pmc_text.DROPPED_INLINE)
    | pmc_text.FORMULAS | pmc_text.LEADING | set(pmc_text.SCRIPTS) | pmc_text.PREFORMATTED | pmc_text.CITATIONS
) - {"body", "ref"}  # fmt: skip
OTHERS = {
    "break", "hr", "question-wrap", "explanation", "date", "name", "surname", "source", "td", "made-up", "list-item",
    "fn", "xref", "tex-math", "mml:math", "disp-formula", "sec", "p", "sup", "sub", "italic", "bold",
}  # fmt: skip
ELEMENTS = tuple(sorted(NAMED | OTHERS))
CITED = ("name", "surname", "source", "year", "italic", "x", "ext-link", "collab", "volume")  # inside a citation
# fmt: off
PAIRED = (
    "p", "sec", "italic", "sup", "xref", "fig", "disp-formula", "inline-formula", "fn", "list", "made-up", "label",
)
# fmt: on
LINKS = ("bibr", "fn", "table-fn", "fig", "table", "disp-formula", "aff", None)
MARKS = ("1", "23", "[2]", "(3)", "4a", "2003", "2003b", "Orr, 2000", "a", "*", "†", "Figure 1", "3-5", "1,2")
JOINTS = (",", ", ", "-", "–", "‐", "−", " and ", "&amp;", "/", "…", "; ", " to ", "")
# fmt: off
AROUND = (
    ("[", "]"), ("(", ")"), ("<sup>", "</sup>"), ("", ""), (" ", ""), (" [", "]"), (" (see ", ")"), (" (e.g., ", ")"),
    (" [", ", p. 23]"), (" (with words; ", ")"), (" (", "; with words)"), (" in ", ""), (" see Refs. ", ""),
    (" (N = 20, [", "])"), (" ([", "])"), ("<sup>[", "]</sup>"),
)
# fmt: on
AFTER = ("", ".", ", ", " ", ". ", "; ", " next ", ") ", ". Then ", " showed ")
SPACES = ("", " ", "\n  ")


class Text:
    """Different words of letters, so that a glued or lost word is noticed."""

    def __init__(self, draw: Draw):
        self._draw, self._number = draw, 0

    def word(self) -> str:
        self._number += 1
        letters = ("bcdfghklmn"[int(digit)] + "aeiou"[int(digit) % 5] for digit in f"{self._number:03d}")
        return "".join(letters)

    def some(self) -> str:
        """Nothing, white space or words, with or without white space at the borders."""
        before, after = (
            self._draw(st.sampled_from(SPACES)),
            self._draw(st.sampled_from((*SPACES, ".", ", ", " 10", "5"))),
        )
        words = " ".join(self.word() for _ in range(self._draw(st.integers(0, 2))))
        return f"{before}{words}{after}" if words else before

    def element(self, depth: int, names: tuple[str, ...] = ELEMENTS) -> str:
        name = self._draw(st.sampled_from(names))
        if name == "xref":
            return self.citation()
        if name == "mml:math":
            return f"<{name}><mml:mi>{self.word()}</mml:mi><mml:mo>=</mml:mo>\n<mml:mn>2</mml:mn></{name}>"
        if name == "tex-math":
            formula = f"${self.word()}  \\alpha$"
            preamble = "\\documentclass{minimal}\n\\begin{document}", "\\end{document}\n"
            begin, end = preamble if self._draw(st.booleans()) else ("", "")
            return f"<{name}>{begin}{formula}{end}</{name}>"
        if name in ("sup", "sub") and self._draw(st.booleans()):
            return f"<{name}>{self._draw(st.sampled_from(('2', '−3', '+', 'a', '10')))}</{name}>"
        inner = self.some()
        for _ in range(self._draw(st.integers(0, 2)) if depth and name not in pmc_text.PREFORMATTED else 0):
            inner += self.element(depth - 1, CITED if name in pmc_text.CITATIONS else names) + self.some()
        return f"<{name}>{inner}</{name}>"

    def citation(self) -> str:
        kind, (begin, end) = self._draw(st.sampled_from(LINKS)), self._draw(st.sampled_from(AROUND))
        attribute = f' ref-type="{kind}"' if kind else ""
        marks = [self._draw(st.sampled_from(MARKS)) for _ in range(self._draw(st.integers(1, 3)))]
        linked = [f"<xref{attribute}>{mark}</xref>" for mark in marks]
        joint = self._draw(st.sampled_from(JOINTS))
        return f"{self.word()}{begin}{joint.join(linked)}{end}{self._draw(st.sampled_from(AFTER))}{self.word()}"


def article(body: str, back: str = "") -> bytes:
    meta = (
        '<article-id pub-id-type="pmc">42</article-id><title-group><article-title>Title</article-title></title-group>'
    )
    return (
        f"<article {NAMESPACES}><front><article-meta>{meta}</article-meta></front><body>{body}</body>"
        f"<back>{back}</back></article>"
    ).encode()


def wrong(content: bytes) -> list[str]:
    """Problems of the text of an article, and of the reported changes."""
    with listening() as record:
        (document,) = read_articles(io.BytesIO(content), "a.nxml", "text")
    assert isinstance(document, Document)
    root = etree.fromstring(content, etree.XMLParser(remove_comments=True, remove_pis=True))
    problems = [str(fault) for fault in faults(article_pieces(root), document.text)]
    changed = record.take().pieces(document.text)
    if "".join(piece.text for piece in changed if piece.kind != REMOVED) != document.text:
        problems.append("the pieces are not the text")
    signs = Counter("".join("".join(piece.text for piece in changed if piece.kind != ADDED).split()))
    if signs != (there := Counter("".join("".join(root.itertext()).split()))):
        problems.append(f"the pieces have {signs - there} too much and lack {there - signs}")
    return [content.decode(), document.text, *problems] if problems else []


def find(draw: Draw) -> list[str]:
    text = Text(draw)
    body = "".join(f"<p>{text.some()}{text.element(2)}{text.some()}</p>" for _ in range(3))
    return wrong(article(body, text.element(1)))


def test_no_word_of_a_generated_article_is_glued_or_lost() -> None:
    hunt(find, examples=60)


@pytest.mark.chaos
def test_no_word_of_a_generated_article_is_glued_or_lost_for_ten_minutes(outcome: Any) -> None:
    outcome("generated articles: words", hunt_on({"articles": find}), "nothing")


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("outer", PAIRED)
def test_pairs_of_elements(outer: str, space: str) -> None:
    """Every element inside and beside another, with and without white space at the borders."""
    parts = []
    for number, inner in enumerate(ELEMENTS):
        mine = f"x{number}x"
        within = f"two{mine}{space}<{inner}>{space}three{mine}{space}</{inner}>{space}four{mine}"
        pair = f"one{mine}{space}<{outer}>{space}{within}</{outer}>{space}five{mine}"
        beside = f"six{mine}{space}<{outer}>seven{mine}</{outer}>{space}<{inner}>eight{mine}</{inner}>{space}nine{mine}"
        parts.append(f"<sec>\n<p>{pair}</p><p>{beside}</p>{pair}</sec>")
    assert wrong(article("".join(parts)))[2:] == []


@pytest.mark.parametrize("path", sample.paths(".nxml"), ids=lambda path: Path(path).stem)
def test_real_articles(path: str) -> None:
    """Every word of the XML is in the text, unless `jats_words` lists a rule that removes it."""
    assert wrong(Path(path).read_bytes()) == []

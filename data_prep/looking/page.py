"""Render the page of documents with removed and added text marked: one HTML file without scripts or other files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.filtering.card import step_of
from data_prep.looking.corpus_parts import Corpus
from data_prep.looking.sampling import Shown
from data_prep.looking.survey import KINDS, PERCENTILES, Survey
from data_prep.sources import characters, medline_text, pmc_text
from data_prep.sources.changes import ADDED, JOINED, KEPT, REMOVED, Piece
from data_prep.sources.document import Document

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("look.html.jinja")
RULES = tuple(dict.fromkeys((*pmc_text.RULES, *medline_text.RULES, *characters.RULES, JOINED)))
FOLDED_CHARACTERS = 200  # removed text that is longer is folded
DOCUMENT_CHARACTERS = 300_000  # characters shown of a document, removed text included; the page counts the rest
MOST_REMOVED = 3  # number of documents in the list "most removed"


@dataclass
class Uses:
    """Counts of what a rule did in the shown documents."""

    documents: int = 0
    places: int = 0
    removed: int = 0
    added: int = 0


@dataclass
class View:
    """A document on the page."""

    shown: Shown
    _named: set[str] = field(default_factory=set)  # rules whose name the page has printed

    @property
    def document(self) -> Document:
        """The document in the corpus."""
        return self.shown.document

    @cached_property
    def pieces(self) -> list[Piece]:
        """The text in pieces, with removed and added pieces if the changes are known."""
        changes, text = self.shown.changes, self.document.text
        return [Piece(text)] if changes is None else changes.pieces(text)

    @property
    def removed_percent(self) -> float:
        """The share of the input's characters that was removed, in percent."""
        sizes = Counter[str]()
        for piece in self.pieces:
            sizes[piece.kind] += len(piece.text)
        return 100 * sizes[REMOVED] / max(1, sizes[KEPT] + sizes[REMOVED])

    @property
    def hidden(self) -> int:
        """The number of characters beyond `DOCUMENT_CHARACTERS`, which are not shown."""
        return max(0, sum(len(piece.text) for piece in self.pieces) - DOCUMENT_CHARACTERS)

    def html(self) -> list[Markup]:
        """The pieces as escaped HTML."""
        self._named.clear()
        left, parts = DOCUMENT_CHARACTERS, []
        for piece in self.pieces:
            if left > 0:
                parts.append(self._html(Piece(piece.text[:left], piece.kind, piece.rule)))
            left -= len(piece.text)
        return parts

    def _html(self, piece: Piece) -> Markup:
        from markupsafe import Markup

        if piece.kind == KEPT:
            return visible(piece.text)
        # A removed piece that was not a line of the text gets a line of its own.
        is_apart = piece.kind == REMOVED and piece.text.startswith("\n") and not piece.text.isspace()
        values = {"hue": hue(piece.rule), "rule": piece.rule, "text": visible(piece.text[is_apart:])}
        if piece.kind == REMOVED and len(piece.text) > FOLDED_CHARACTERS:
            form = (
                '<details class="cut" style="--h:{hue}"><summary><b>{rule}</b> {words:,} words</summary>'
                "<del>{text}</del></details>"
            )
            return Markup(form).format(**values, words=len(piece.text.split()))
        tag = "del" if piece.kind == REMOVED else "ins"
        if piece.kind == ADDED and piece.text.isspace():
            values["text"] = visible(piece.text.replace(" ", "␣"))
        name = "" if piece.rule in self._named else " class=first"
        self._named.add(piece.rule)
        begin = "<br>" if is_apart else ""
        form = f'<{tag} style="--h:{{hue}}" title="{{rule}}"{name}>{begin}<b>{{rule}}</b>{{text}}</{tag}>'
        return Markup(form).format(**values)


def page(corpus: Corpus, shown: Sequence[Shown], looked: Survey, seed: int, chosen: str) -> str:
    """Render the page as HTML.

    Args:
        corpus: corpus that the page is about.
        shown: documents to show.
        looked: survey of one part of each split.
        seed: seed by which documents and parts were chosen.
        chosen: description of how the documents were chosen.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    views = [View(one) for one in shown]
    known = [view for view in views if view.shown.changes is not None]
    manifest = corpus.manifest
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.get_template(TEMPLATE.name).render(
        name=corpus.folder.resolve().name,
        manifest=manifest,
        documents=sum(counts["documents"] for counts in manifest["counts"].values()),
        megabytes=sum(counts["bytes"] for counts in manifest["counts"].values()) / 1e6,
        dropped=dict(sorted(manifest["dropped"].items(), key=lambda item: step_of(item[0]))),
        characters=manifest.get("characters", {}),
        views=views,
        known=len(known),
        removed_most=sorted(known, key=lambda view: -view.removed_percent)[:MOST_REMOVED],
        uses=uses(known),
        hue=hue,
        survey=looked,
        percentiles=PERCENTILES,
        kinds=KINDS,
        seed=seed,
        chosen=chosen,
    )


def uses(views: Sequence[View]) -> dict[str, Uses]:
    """Count what each rule did, in the order of `RULES`."""
    by_rule = {rule: Uses() for rule in RULES}
    for view in views:
        for rule in {piece.rule for piece in view.pieces if piece.rule}:
            by_rule[rule].documents += 1
        for piece in view.pieces:
            if piece.rule:
                use = by_rule[piece.rule]
                use.places += 1
                use.removed += len(piece.text) if piece.kind == REMOVED else 0
                use.added += len(piece.text) if piece.kind == ADDED else 0
    return {rule: use for rule, use in by_rule.items() if use.places}


def hue(rule: str) -> int:
    """The hue of a rule's colour, in degrees."""
    return 137 * RULES.index(rule) % 360


def visible(text: str) -> Markup:
    """A text as escaped HTML, with visible signs for line ends and invisible characters."""
    from markupsafe import Markup, escape

    lines = []
    for line in text.split("\n"):
        parts: list[str] = []
        for is_seen, signs in groupby(line, str.isprintable):
            part = "".join(signs)
            parts += [escape(part)] if is_seen else [f"<u>U+{ord(sign):04X}</u>" for sign in part]
        lines.append(Markup("".join(parts)))
    return Markup("<s>¶</s>\n").join(lines)

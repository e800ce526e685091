"""PubMed Central articles: JATS XML, one article a file.

Text: title, abstracts, body, appendices, and the captions of figures and tables that stand apart, in this order; every
title, paragraph, list item and caption is a line of its own with its white space folded, and an empty line lies
between them. A figure, table, note or box inside a paragraph follows it, so that the sentence around it stays whole; a
label (`2.1`, `Figure 1`) leads the line after it. Left out are the grids of tables, formulas, references, and the
marks that cite them (`[1]-[3]`, `(4, 5)`, a raised 6) with their brackets; `(Orr, 2000)` is words and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, ClassVar

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep import inputs
from data_prep.inputs import Input, Stream
from data_prep.sources import ARTICLES, Document, Dropped, Entry, fold, iso_date
from data_prep.stage import BadInput

# fmt: off
# Elements that start a line. All others are part of the line around them, so an unknown one loses no text.
BLOCKS = {
    "abstract", "app", "app-group", "article-title", "attrib", "body", "caption", "code", "def", "def-item", "def-list",
    "disp-quote", "list", "list-item", "media", "p", "preformat", "sec", "sig-block", "speech", "statement", "subtitle",
    "term", "title", "verse-group", "verse-line",
}
# Elements that wait until the line around them has ended.
FLOATS = {
    "boxed-text", "fig", "fig-group", "fn", "fn-group", "supplementary-material", "table-wrap", "table-wrap-group",
}
DROPPED = {
    "alt-text", "array", "chem-struct", "disp-formula", "disp-formula-group", "graphic", "inline-formula",
    "inline-graphic", "long-desc", "object-id", "permissions", "ref-list", "sec-meta", "table", "table-wrap-foot",
    "tex-math", "{http://www.w3.org/1998/Math/MathML}math",
}
# fmt: on
PARTS = (
    "front/article-meta/title-group/article-title",
    "front/article-meta/abstract",
    "body",
    "back/app-group",
    "back/app",
    "floats-group",
)
BOILERPLATE = "Click here for additional data file."

# In the place of a citation mark until the brackets and commas around it are known; XML cannot contain this character.
MARK = "\0"
MARKS = rf"{MARK}(?:[\s,;–—-]*{MARK})*"
CITATIONS = re.compile(rf"\s*(?:\[\s*{MARKS}\s*\]|\(\s*{MARKS}\s*\)|{MARKS})")
NUMBERS = re.compile(r"[\W\d_]*[a-z]?[\W\d_]*")  # `[1]`, `2–4`, `7a`, `*`; an author's name does not match

ALI = "{http://www.niso.org/schemas/ali/1.0/}license_ref"
HREF = "{http://www.w3.org/1999/xlink}href"
LICENSE_URL = re.compile(
    r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)|publicdomain/(zero|mark))(?:/(\d\.\d))?", re.IGNORECASE
)
LICENSE_WORDS = re.compile(
    r"Creative Commons Attribution([ -]*Non-?Commercial)?(?:[ -]*(No-?Deriv)\w*|[ -]*(Share-?Alike))?", re.IGNORECASE
)


@dataclass(frozen=True)
class Pmc:
    """Articles, one a file."""

    newest_wins: ClassVar[bool] = True

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files, by name."""
        return inputs.find(patterns, (".nxml", ".xml"))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The article of one file."""
        yield read_article(stream, file.url)


def read_article(stream: Stream | IO[bytes], name: str) -> Document | Dropped:
    """The document of one article.

    Args:
        stream: the XML.
        name: what messages call it.

    Raises:
        BadInput: it is not XML, not a JATS article, or has no PMC id.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    try:
        article = etree.parse(stream, parser).getroot()
    except etree.XMLSyntaxError as error:
        raise BadInput(f"{name}, line {error.lineno}: not XML ({error.msg}); download it again") from None
    meta = article.find("front/article-meta")
    if article.tag != "article" or meta is None:
        raise BadInput(f"{name} has the root element <{article.tag}>, not a JATS <article> with <article-meta>")
    found = re.fullmatch(r"(?:PMC)?(\d+)", _id(meta, "pmc", "pmcid"))
    if found is None:
        raise BadInput(f"{name} has no <article-id> with a PMC number")
    pmcid, pmid = f"pmcid:PMC{found.group(1)}", _id(meta, "pmid")
    lines = [line for part in PARTS for element in article.iterfind(part) for line in _lines(element)]
    if not lines:
        return Dropped("without text", pmcid)
    number = int(pmid) if pmid.isdecimal() else None
    return Document(pmcid, "\n\n".join(lines), ARTICLES, _license(meta), _date(meta), number)


def _id(meta: etree._Element, *kinds: str) -> str:
    ids = [element.text or "" for element in meta.iterfind("article-id") if element.get("pub-id-type") in kinds]
    return ids[0].strip() if ids else ""


def _lines(block: etree._Element) -> list[str]:
    """The lines of a block in reading order, then those of the floats that stand inside it."""
    lines, floats = [""], []
    _collect(block, lines, floats)
    lines = [text for line in lines if (text := fold(CITATIONS.sub("", line)))]
    for element in floats:
        lines += _lines(element)
    return [line for line in lines if line != BOILERPLATE]


def _collect(element: etree._Element, lines: list[str], floats: list[etree._Element]) -> None:
    """Append the text of an element to the last line; blocks inside it begin new ones."""
    lines[-1] += element.text or ""
    for child in element:
        if child.tag in FLOATS and lines[-1].strip():
            floats.append(child)
        elif child.tag in BLOCKS or child.tag in FLOATS:
            inner, before = _lines(child), child.getprevious()
            if inner and before is not None and before.tag == "label":
                inner[0] = f"{lines.pop()} {inner[0]}"
            lines += [*inner, ""]
        elif child.tag == "xref" and child.get("ref-type") == "bibr" and NUMBERS.fullmatch("".join(child.itertext())):
            lines[-1] += MARK
        elif child.tag == "break":
            lines[-1] += " "
        elif child.tag not in DROPPED:
            _collect(child, lines, floats)
        lines[-1] += child.tail or ""


def _license(meta: etree._Element) -> str | None:
    """`CC BY 4.0` and its like from a link, `CC BY` from words without one, None where neither is there."""
    notices = list(meta.iter("license", "copyright-statement", ALI))
    links = [element.get(HREF, "") for notice in notices for element in notice.iter("*")]
    words = fold(" ".join("".join(notice.itertext()) for notice in notices))
    if url := LICENSE_URL.search(" ".join([*links, words])):
        terms, public, version = url.groups()
        name = f"CC {terms.upper()}" if terms else "CC0" if public.lower() == "zero" else "CC PDM"
        return f"{name} {version}" if version else name
    if found := LICENSE_WORDS.search(words):
        return "CC BY" + "".join(code for code, term in zip(("-NC", "-ND", "-SA"), found.groups(), strict=True) if term)
    return None


def _date(meta: etree._Element) -> str | None:
    """The earliest day that the article itself appeared; `2011-08-02` goes before a bare `2011` of an issue."""
    dates = [
        iso_date(date.findtext("year"), date.findtext("month"), date.findtext("day"))
        for date in meta.iterfind("pub-date")
        if (date.get("pub-type") or date.get("date-type")) in ("epub", "ppub", "epub-ppub", "collection", "pub")
    ]
    return min(filter(None, dates), key=lambda date: date + "~", default=None)

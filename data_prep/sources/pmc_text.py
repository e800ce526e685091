"""Extract the readable text of a JATS article, line by line; docs/data.md lists the rules in a table.

The order is: title and subtitle, abstracts, body, back matter, floating elements. Every title, paragraph, list item and
caption is a line of its own with folded white space. A figure, table, note or box inside a paragraph is moved after the
paragraph, so that it does not interrupt a sentence. A label (`2.1`, `Figure 1`) begins the line that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources.changes import FORMULA, METADATA, NUMBERS, Note, listener, place_in
from data_prep.sources.document import fold
from data_prep.sources.markup import LOWERED, RAISED, SCRIPT_END, numbers_apart
from data_prep.sources.mathml import MATH, math_text
from data_prep.sources.pmc_citations import HOLE, MARK, MARK_END, MARK_LINKS, signs_of, without_marks

# fmt: off
# Elements within a line, whose borders get no white space. Elements in none of these lists are also read within the
# line, but with white space at their borders, so that an unknown element neither glues nor loses words.
INLINE = {
    "abbrev", "award-id", "bold", "collab", "contract-num", "contract-sponsor", "country", "email", "ext-link", "fax",
    "fixed-case", "funding-source", "inline-media", "inline-supplementary-material", "institution",
    "institution-wrap", "italic", "milestone-end", "milestone-start", "monospace", "named-content", "overline", "phone",
    "private-char", "rb", "roman", "rp", "rt", "ruby", "sans-serif", "sc", "strike", "styled-content", "target",
    "underline", "uri", "x", "year",
}
# Elements that start a line.
BLOCKS = {
    "abstract", "ack", "answer", "app", "app-group", "article-title", "attrib", "bio", "body", "caption", "code", "def",
    "def-item", "def-list", "disp-quote", "floats-group", "floats-wrap", "glossary", "list", "list-item", "media",
    "notes", "p", "question", "sec", "sig-block", "speech", "statement", "subtitle", "term", "title", "verse-group",
    "verse-line",
}
# Elements that are moved after the line around them.
FLOATS = {
    "boxed-text", "chem-struct-wrap", "fig", "fig-group", "fn", "fn-group", "supplementary-material", "table-wrap",
    "table-wrap-group",
}
# Elements that are not read -> name of the rule in reports of changes.
DROPPED = {
    "alt-text": "descriptions of pictures", "array": "table cells", "chem-struct": "displayed formulas",
    "disp-formula": "displayed formulas", "disp-formula-group": "displayed formulas", "graphic": "pictures",
    "index-term": METADATA, "long-desc": "descriptions of pictures", "object-id": METADATA,
    "permissions": METADATA, "ref": "references", "ref-list": "references", "sec-meta": METADATA,
    "table": "table cells", "table-wrap-foot": "table notes",
}
DROPPED_INLINE = {"glyph-data": "pictures", "inline-graphic": "pictures"}
# fmt: on
FORMULAS = {"alternatives", "inline-formula"}
SCRIPTS = {"sup": RAISED, "sub": LOWERED}
LEADING = {"label", "speaker"}
PREFORMATTED = {"code", "preformat"}
# Elements with their own punctuation between their children. A border of a child only keeps words apart.
CITATIONS = {
    "citation",
    "mixed-citation",
    "nlm-citation",
    "product",
    "related-article",
    "related-object",
    "string-name",
}

BACK = {
    "none": (),
    "text": ("ack", "app", "app-group", "glossary", "notes", "sec"),
    "all": ("ack", "app", "app-group", "bio", "fn-group", "glossary", "notes", "sec"),
}
BOILERPLATE = re.compile(
    r"(?=[(cpt])(?:"  # most lines begin otherwise
    r"\(?Click here (?:to view|for (?:(?:additional|supplementa(?:l|ry)|data|figure|table|material) )*files?)\.?\)?"
    r"(?: ?\([^()]{1,40}\))?"
    r"|\((?:[\d.,]+ ?[KM]?B,? )?(?:AVI|CSV|DOCX?|EPS|GIF|HTML?|JPE?G|MOV|MP[34]|MPE?G|PDF|PNG|PPTX?|RTF|TIFF?|TXT|WMV"
    r"|XLSX?|XML|ZIP)(?:,? [\d.,]+ ?[KM]?B)?\)"
    r"|Pre-publication history|The pre-publication history for this paper can be accessed here:?(?: ?https?://\S+)?)",
    re.IGNORECASE,
)
# Names of the rules in reports of changes.
MARKS, LINES, BACK_MATTER, OTHER_TEXTS = "citation marks", "boilerplate", "back matter", "reviews and translations"
RULES = tuple(dict.fromkeys((MARKS, NUMBERS, FORMULA, LINES, *DROPPED.values(), BACK_MATTER, OTHER_TEXTS, METADATA)))
TABLE_MARK = re.compile(r"[a-j]|[*†‡§¶#‖]+")
TEX_DOCUMENT = re.compile(r"\\begin\s*\{document\}(.*)\\end\s*\{document\}", re.DOTALL)


def article_lines(article: etree._Element, back: str) -> list[str]:
    """Extract the lines of an article.

    Args:
        article: root element; its entities must be replaced already.
        back: elements after the body that are read, a key of `BACK`.
    """
    writer = _Writer()
    lines = _title(article)
    blocks = [
        *article.iterfind("front/article-meta/abstract"),
        *article.iterfind("body"),
        *(element for element in article.iterfind("back/*") if element.tag in BACK[back]),
        *article.iterfind("floats-group"),
        *article.iterfind("floats-wrap"),
    ]
    for element in blocks:
        writer.block(element)
    if record := listener():
        for text, rule in _unread(article, {*blocks, *_titles(article)}):
            record.left_out(text, rule)
    return lines + writer.lines


def _titles(article: etree._Element) -> list[etree._Element]:
    group = "front/article-meta/title-group"
    return [element for tag in ("article-title", "subtitle") for element in article.iterfind(f"{group}/{tag}")]


def _unread(element: etree._Element, read: set[etree._Element], inside: str = "") -> Iterator[tuple[str, str]]:
    """The text in an element that is outside all elements that are read, each part with its rule."""
    yield element.text or "", METADATA
    for child in element:
        if child not in read:
            if any(one in read for one in child.iterdescendants()):
                yield from _unread(child, read, child.tag)
            else:
                other = OTHER_TEXTS if child.tag in ("response", "sub-article") else METADATA
                rule = DROPPED.get(child.tag) or (BACK_MATTER if inside == "back" else other)
                yield _all_text(child), rule
        yield child.tail or "", METADATA


def _title(article: etree._Element) -> list[str]:
    """Title and subtitles as one line, `Title: Subtitle`; then lines of floating elements within them."""
    title, others = "", []
    for element in _titles(article):
        writer = _Writer()
        writer.block(element)
        first, *rest = writer.lines or [""]
        colon = ":" if title and first and title[-1] not in ":.?!;,-–—" else ""
        title = f"{title}{colon} {first}".strip()
        others += rest
    return [title, *others] if title else others


def _all_text(element: etree._Element) -> str:
    """All text in an element, with white space at the borders of elements that are not inline."""
    parts = [element.text or ""]
    for child in element:
        border = "" if child.tag in INLINE or child.tag in SCRIPTS or child.tag == "xref" else " "
        parts += border, _all_text(child), border, child.tail or ""
    return "".join(parts)


class _Writer:
    """Collects the lines of an article. The parts of the current line are joined when the line ends."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._parts: list[str] = []
        self._is_start = True  # the current line has no text yet, or a label only
        self._is_label = False  # whether the current line consists of a label only
        self._border = " "  # border of elements that are neither inline nor blocks
        self._math_is_read = True  # False where TeX gives the same formula
        self._waiting: list[etree._Element] = []
        self._record = listener()
        self._notes: list[Note] = []  # notes of the current line

    def block(self, element: etree._Element) -> None:
        """Write an element in lines of its own, and then the elements that were moved out of its lines."""
        if self._is_label:
            self._parts.append(" ")
        else:
            self._end_line()
        outside, self._waiting = self._waiting, []
        self._content(element)
        self._end_line()
        waiting, self._waiting = self._waiting, outside
        for waited in waiting:
            self.block(waited)

    def _content(self, element: etree._Element) -> None:
        parts = self._parts
        if text := element.text:
            parts.append(text)
            if self._is_start:
                self._begin(text)
        if not len(element):  # most elements have no children, and this test is cheaper than the loop
            return
        for child in element:
            tag = child.tag
            if tag in INLINE:
                self._content(child)
            else:
                self._child(child, tag)
            if tail := child.tail:
                parts.append(tail)
                if self._is_start:
                    self._begin(tail)

    def _begin(self, text: str) -> None:
        """The start of a line ends with its first text, or the first after a label."""
        if not text.isspace():
            self._is_start = self._is_label = False

    def _child(self, child: etree._Element, tag: str) -> None:
        if tag == "xref":
            self._link(child)
        elif tag in SCRIPTS:
            begin, end = (MARK, MARK_END) if _is_table_mark(child) else ("", "")
            self._parts.append(SCRIPTS[tag] + begin)
            self._content(child)
            self._parts.append(end + SCRIPT_END)
        elif tag in PREFORMATTED:
            self._preformatted(child)
        elif tag in FLOATS and not self._is_start:
            self._waiting.append(child)
            self._parts.append(f" {HOLE} ")
        elif tag in BLOCKS or tag in FLOATS:
            self.block(child)
        elif tag in DROPPED:
            self._leave_out(child, DROPPED[tag], " ")
        elif tag in DROPPED_INLINE:
            self._leave_out(child, DROPPED_INLINE[tag], "")
        elif tag in FORMULAS:
            self._formula(child)
        elif tag == "tex-math":
            self._put_formula(child, _tex(child))
        elif tag == MATH:
            self._put_formula(child, math_text(child) if self._math_is_read else "")
        else:
            was_start = self._is_start
            outside, self._border = self._border, HOLE if tag in CITATIONS else self._border
            self._parts.append(self._border)
            self._content(child)
            self._parts.append(self._border)
            self._border = outside
            has_text = self._is_label or not self._is_start
            self._is_label = has_text and was_start and tag in LEADING
            self._is_start = self._is_label or not has_text

    def _leave_out(self, element: etree._Element, rule: str, border: str) -> None:
        if self._record:
            self._notes.append(Note(place_in(self._parts), f"{border}{_all_text(element)}{border}", "", rule))
        self._parts.append(f"{border}{HOLE}{border}")

    def _link(self, link: etree._Element) -> None:
        kind = link.get("ref-type")
        if kind not in MARK_LINKS:
            self._content(link)
            return
        is_bare = not len(link)
        text = link.text or "" if is_bare else "".join(link.itertext())
        begin, end = signs_of(text, kind, self._parts)
        if is_bare and text and not self._is_start:  # most are, and need no other look
            self._parts += begin, text, end
            return
        self._parts.append(begin)
        self._content(link)
        self._parts.append(end)

    def _formula(self, formula: etree._Element) -> None:
        """Write a formula within a sentence. If it is given in both TeX and MathML, only the TeX is read."""
        outside = self._math_is_read
        self._math_is_read = outside and next(formula.iter("tex-math"), None) is None
        self._content(formula)
        self._math_is_read = outside

    def _put_formula(self, element: etree._Element, text: str) -> None:
        if self._record:
            self._notes.append(Note(place_in(self._parts), "".join(element.itertext()), text, FORMULA))
        self._parts.append(text or HOLE)
        if text:
            self._begin(text)

    def _preformatted(self, element: etree._Element) -> None:
        self._end_line()
        lines = [line.rstrip() for line in "".join(element.itertext()).expandtabs().split("\n")]
        text = "\n".join(lines).strip("\n")
        if text:
            self.lines.append(text)
            if self._record:
                self._record.verbatim(text)

    def _end_line(self) -> None:
        if not self._parts:
            return
        raw = line = fold("".join(self._parts))
        if not line.isprintable():  # signs are not
            line = numbers_apart(without_marks(line)).strip(" ")
            line = fold(line) if "  " in line else line
        self._parts.clear()
        self._is_start, self._is_label = True, False
        is_text = line and not BOILERPLATE.fullmatch(line)
        if is_text:
            self.lines.append(line)
        if self._record and raw:
            self._record.line(raw, self._notes)
            self._record.became(without_marks(raw), MARKS)
            self._record.became(line, NUMBERS)
            self._record.became(line if is_text else "", LINES)
            self._notes = []


def _is_table_mark(element: etree._Element) -> bool:
    """Whether an element is a superscript mark in a table that refers to a note of the table, but is not a link."""
    is_mark = element.tag == "sup" and not len(element) and TABLE_MARK.fullmatch(element.text or "")
    return bool(is_mark) and next(element.iterancestors("table-wrap"), None) is not None


def _tex(element: etree._Element) -> str:
    """The TeX of a formula, without the LaTeX document that PMC puts around it."""
    text = "".join(element.itertext())
    document = TEX_DOCUMENT.search(text)
    text = fold((document[1] if document else text).strip().strip("$"))
    return f"${text}$" if text else ""

"""The text that a reader sees in a JATS article, as pieces for `words.faults`; no code of data_prep is used.

`LOST` and the marks below list everything that may be missing, each with its rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from words import BORDER, Markup, Piece, local, pieces

MARKS = "marks that cite, with brackets and joints"
BOILERPLATE = "boilerplate of the archive"
PREAMBLE = "what TeX needs around a formula"
LOST = {
    **dict.fromkeys(("table", "array"), "cells of tables"),
    "table-wrap-foot": "notes to cells of tables",
    **dict.fromkeys(("ref-list", "ref"), "references"),
    **dict.fromkeys(("disp-formula", "disp-formula-group", "chem-struct"), "formulas that stand apart"),
    **dict.fromkeys(("graphic", "inline-graphic", "glyph-data"), "pictures"),
    **dict.fromkeys(("alt-text", "long-desc"), "descriptions of pictures for those who do not see them"),
    **dict.fromkeys(("object-id", "permissions", "sec-meta", "index-term"), "metadata"),
}
# fmt: off
INLINE = (  # elements of JATS for emphasis, phrases and links
    "abbrev", "alternatives", "award-id", "bold", "collab", "contract-num", "contract-sponsor", "country", "email",
    "ext-link", "fax", "fixed-case", "funding-source", "glyph-data", "inline-formula", "inline-graphic", "inline-media",
    "inline-supplementary-material", "institution", "institution-wrap", "italic", "math", "milestone-end",
    "milestone-start", "monospace", "named-content", "overline", "phone", "private-char", "rb", "roman", "rp", "rt",
    "ruby", "sans-serif", "sc", "strike", "styled-content", "sub", "sup", "target", "tex-math", "underline", "uri", "x",
    "xref", "year", "annotation", "menclose", "merror", "mfenced", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover",
    "mpadded", "mphantom", "mroot", "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable",
    "mtd", "mtext", "mtr", "munder", "munderover", "semantics",
)
# fmt: on
MARKUP = Markup(
    inline=INLINE,
    lost=LOST,
    moved=(
        "boxed-text",
        "chem-struct-wrap",
        "fig",
        "fig-group",
        "fn",
        "fn-group",
        "supplementary-material",
        "table-wrap",
        "table-wrap-group",
    ),
    punctuated=(
        "citation",
        "mixed-citation",
        "nlm-citation",
        "product",
        "related-article",
        "related-object",
        "string-name",
    ),
)  # fmt: skip
PARTS = ("front/article-meta/abstract", "body", "back/*", "floats-group", "floats-wrap")
BACK = ("ack", "app", "app-group", "glossary", "notes", "sec")
TITLE = "front/article-meta/title-group"

UNITS = count()
BARE, BRACKETED = "\U000f0000", "\U000f0001"  # private signs that replace a mark, and a mark in its own brackets
MARK = f"[{BARE}{BRACKETED}]"
YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")
NUMERIC = re.compile(r"[\W\d_]*(?:\d+[a-z]?[\W_]*)+|[\W_]+|\W*[a-z]\W*")
NOTE = re.compile(r"[\W\d_]*(?:[a-z]|[A-Z]|[ivx]{1,5}|([a-z])\1)?[\W\d_]*")
# Words that may stand beside marks in brackets that are removed whole.
CITING = re.compile(
    r"\b(?:and|or|to|through|see|also|eg|e\.g|cf|ie|i\.e|pp?\. ?\d+(?:\W\d+)?|refs?|references?|therein|reviews?"
    r"|reviewed|in|for|example|by|\d{1,3}[a-z]?)\b"
)
NEEDED = re.compile(r"\b(?:(?:see|in|by|of|from)\s|refs?\.?\s*|references?\s*)$", re.IGNORECASE)
JOINT = r"(?:[^\w\[\](){}\"'“”‘’%<>=.\U000f0000\U000f0001]|\.(?!\s)|\b(?:and|or|to|through)\b)*"
RUN = re.compile(f"{MARK}(?:{JOINT}{MARK})*")
GONE, WORDED = "\0", "\1"  # replace brackets that hold only marks, and brackets that also hold other words
BRACKETS = re.compile(r"[\[(][^\[\]()]*[\])]")
CLICK = re.compile(
    r"Click here (?:for|to view)[^.]*\.?|\([\d., KMB]*(?:DOCX?|PDF|XLSX?|TIFF?|AVI|ZIP|MOV|PPT)\)"
    r"|Pre-publication history|The pre-publication.*here:"
)


def article_pieces(article: Any) -> list[Piece]:
    """Pieces of an article, from its root: title, abstracts, body, back matter and floats."""
    parts: list[Piece] = []
    titles = article.findall(f"{TITLE}/article-title") + article.findall(f"{TITLE}/subtitle")
    for number, title in enumerate(titles):
        before = "".join(piece.text for piece in _cleared(titles[number - 1])).rstrip() if number else ""
        while number and not parts[-1].text.strip() and parts[-1].rule is None:
            parts.pop()
        if before and before[-1] not in ":.?!;,–—-":
            parts[-1] = replace(parts[-1], text=parts[-1].text.rstrip())
            parts.append(Piece(":"))
        parts += [BORDER, *_cleared(title)]
    for part in PARTS:
        for element in article.iterfind(part):
            if part != "back/*" or element.tag in BACK:
                parts += [BORDER, *_cleared(element), BORDER]
    return parts


def _cleared(element: Any) -> list[Piece]:
    return _boilerplate(_marks(_formulas(pieces(element, MARKUP))))


def _top(piece: Piece, is_one: Callable[[Any], bool]) -> Any:
    """The outermost element around a piece for which `is_one` is true."""
    around = [] if piece.element is None else [piece.element, *piece.element.iterancestors()]
    return next((element for element in reversed(around) if is_one(element)), None)


def _formulas(parts: list[Piece]) -> list[Piece]:
    """Replace a formula in a line by its TeX without preamble, or by the text of its MathML if it has no TeX."""
    result: list[Piece] = []
    last = None
    for piece in parts:
        kind = _top(piece, lambda e: local(e) in ("tex-math", "math"))
        formula = _top(piece, lambda e: local(e) in ("inline-formula", "alternatives"))
        if kind is None or piece.rule is not None:
            result.append(piece)
        elif kind is not last and local(kind) == "tex-math":
            text = "".join(kind.itertext())
            inside = re.search(r"\\begin\{document\}(.*)\\end\{document\}", text, re.DOTALL)
            text = " ".join((inside[1] if inside else text).strip("$ \n").split())
            result.append(Piece(f"${text}$" if text else "", kind, moved=piece.moved))
        elif kind is not last and (formula is None or next(formula.iter("tex-math"), None) is None):
            result.append(Piece("".join("".join(kind.itertext()).split()), kind, moved=piece.moved))
        last = kind
    return result


def _is_mark(element: Any) -> bool:
    if local(element) == "sup" and any(local(e) == "table-wrap" for e in element.iterancestors()):
        return bool(re.fullmatch(r"[a-j]|[*†‡§¶#‖]+", "".join(element.itertext())))
    if local(element) != "xref":
        return False
    text, kind = "".join(element.itertext()).strip(), element.get("ref-type")
    before = "".join(element.xpath("preceding::text()[position() <= 3]")[-3:]) if len(text) == 1 else ""
    if YEAR.search(text) or (text.isalpha() and YEAR.search(before[-8:])):
        return False
    pattern = {"bibr": NUMERIC}.get(
        kind, NOTE if kind in ("fn", "table-fn", "aff", "corresp", "author-notes") else None
    )
    return bool(text and pattern and pattern.fullmatch(text))


def _marks(parts: list[Piece]) -> list[Piece]:
    """Make marks units, with the brackets and separators that belong to them."""
    is_mark = [piece.rule is None and bool(piece.text.strip()) and _top(piece, _is_mark) is not None for piece in parts]
    line = "".join(
        "\n" if piece.rule else piece.text if not mark else BRACKETED if piece.text.strip()[0] in "[(" else BARE
        for piece, mark in zip(parts, is_mark, strict=True)
    )
    owner = [
        (number, offset)
        for number, (piece, mark) in enumerate(zip(parts, is_mark, strict=True))
        for offset in range(1 if mark or piece.rule else len(piece.text))
    ]
    spans = _spans(line)
    marked: list[Piece] = []
    unit, last = next(UNITS), None
    for position, (number, offset) in enumerate(owner):
        piece = parts[number]
        if piece.rule is not None:
            marked.append(piece)
            continue
        sign = piece.text if is_mark[number] else piece.text[offset]
        span = next((span for span in spans if span[0] <= position < span[1]), None)
        if span is not last:
            unit, last = next(UNITS), span
        rule = MARKS if span else None
        if marked and marked[-1].element is piece.element and (marked[-1].rule, marked[-1].unit) == (rule, unit):
            marked[-1] = Piece(marked[-1].text + sign, piece.element, rule, unit, piece.moved)
        else:
            marked.append(Piece(sign, piece.element, rule, unit, piece.moved))
    return marked


def _spans(line: str) -> list[tuple[int, int]]:
    """Begin and end of each part that may be missing."""
    spans: list[tuple[int, int]] = []
    masked = line
    while True:  # from the innermost brackets outwards
        match = next((b for b in BRACKETS.finditer(masked) if re.search(MARK, line[b.start() : b.end()])), None)
        if match is None:
            break
        inside = CITING.sub("", re.sub(MARK, "", match[0][1:-1]))
        is_whole = not re.search(rf"[^\W_]|{WORDED}", inside)
        if is_whole:
            spans = [span for span in spans if not match.start() <= span[0] < match.end()] + [match.span()]
        fill = GONE if is_whole else WORDED
        blank = "".join(GONE if sign == GONE else fill for sign in match[0])
        masked = masked[: match.start()] + blank + masked[match.end() :]
    for run in RUN.finditer(line):
        # A number that is a separate word among other words in brackets may belong to these words.
        is_word = (
            run[0][0] == BARE and masked[run.start()] == WORDED and not re.search(r"[\w.)\]]$", line[: run.start()])
        )
        if masked[run.start()] != GONE and not is_word:
            spans.append(run.span())
    spans = [span for span in spans if not NEEDED.search(re.sub(MARK, "", line[max(0, span[0] - 20) : span[0]]))]
    return sorted(_widened(line, spans))


def _widened(line: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join runs of marks, and add separators that would stand beside nothing."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and re.fullmatch(JOINT, line[merged[-1][1] : start]):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    wide = []
    for start, end in merged:
        before, after = re.search(r"[,;:]\s*$", line[:start]), re.match(r"\s*[,;:]", line[end:])
        if before and re.match(r"\s*[\])},;.]", line[end:]):
            start = before.start()
        elif re.search(r"\.\s*$", line[:start]) and re.match(r"\s*\.(?!\.)", line[end:]):
            start = line.rindex(".", 0, start)
        elif after and re.search(r"[\[(]\s*$", line[:start]):
            end += after.end()
        wide.append((start, end))
    return wide


def _boilerplate(parts: list[Piece]) -> list[Piece]:
    return [
        Piece(piece.text, piece.element, BOILERPLATE, next(UNITS), piece.moved)
        if piece.rule is None and CLICK.fullmatch(piece.text.strip())
        else piece
        for piece in parts
    ]

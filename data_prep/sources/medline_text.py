"""Extract the readable text of a title or of an abstract's section from PubMed's XML.

docs/data.md gives the reason for each rule. The rules are: keep superscript and subscript numbers apart from the
numbers beside them; put spaces around bold headings and displayed formulas; undo double escaping of markup; remove a
publisher's copyright notice at the end; remove a placeholder.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources.changes import FORMULA, METADATA, NUMBERS, listener
from data_prep.sources.document import fold
from data_prep.sources.markup import LOWERED, RAISED, SCRIPT_END, numbers_apart
from data_prep.sources.mathml import MATH, math_text

# Names of the rules in reports of changes.
HEADINGS, ESCAPES, NOTICES = "headings", "markup escaped twice", "copyright notices"
PLACEHOLDERS, LABELS, OTHERS = "placeholders", "section labels", "other abstracts"
RULES = (FORMULA, NUMBERS, HEADINGS, ESCAPES, NOTICES, PLACEHOLDERS, LABELS, OTHERS, METADATA)
SCRIPTS = {"sup": RAISED, "sub": LOWERED}
# Signs around bold text and after a displayed formula. They stay in a line until it is complete; XML cannot contain
# them.
BOLD, BOLD_END, FORMULA_END = "\x04", "\x05", "\x06"
SIGNS = re.compile(f"[{BOLD}{BOLD_END}{FORMULA_END}]")
LETTER, CAPITAL = r"[^\W\d_]", r"[^\W\d_a-zß-öø-ÿ]"
# Places where a space is missing: between two bold parts; before a heading that follows a sentence; after a heading
# that ends in a punctuation mark; between a volume in bold and the page number after it; after a formula.
BORDERS = re.compile(
    rf"(?<=[^{BOLD}]{{2}}){BOLD_END}{BOLD}(?=[^{BOLD_END}]{{2}})"
    rf"|(?<=[.:;?!)]){BOLD}(?={CAPITAL}\w)"
    rf"|(?<=\w[.:?!]){BOLD_END}(?={LETTER})"
    rf"|(?<=\d){BOLD_END}(?=\d)"
    rf"|{FORMULA_END}(?=[\w(\[])"
)
# A heading without a punctuation mark, recognised by its place: `<b>Abstract</b>The …`. A space is missing after it
# too.
HEADING = re.compile(
    rf"((?:^|[.:;?!)]\s*|{BOLD_END}\s*){BOLD}[^{BOLD}{BOLD_END}]*{LETTER}{{3}}){BOLD_END}(?={CAPITAL})"
)

ESCAPED = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[Xx][0-9A-Fa-f]{1,6});")
TIMES_ESCAPED = 3  # repetitions of unescaping; real files need fewer
INLINE = "i|b|u|em|strong|italic|bold|small|sc|tt|font|span|a|sup|sub|o:p"
OWN_LINE = "p|div|li|ul|ol|h[1-6]|section|br|title|sec"
# A tag with one of these names, with or without attributes; `P<b and c>d` does not match.
TAG = re.compile(
    rf"""<(?P<end>/)?(?P<name>{INLINE}|{OWN_LINE})(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'))*\s*(?P<empty>/)?>""",
    re.IGNORECASE,
)
OWN_LINES = re.compile(OWN_LINE, re.IGNORECASE)

# One sentence of a copyright notice. A full stop before a capital ends it, but not within `Elsevier B.V.` or after an
# initial.
SENTENCE = r"[^.]*(?:(?:\.(?!\s)|(?<=\s[A-Z])\.(?=\s+[A-Z])|\.(?=\s+[^\sA-Z]))[^.]*)*\.?"
SAYS = (
    r"(?:published\s+by|rights?\s+reserved|copyright|licen[cs]e|creative\s+commons|open[\s-]access|"
    r"supplemental\s+material|see\s+also\s+the)"
)
NOTICE = re.compile(
    rf"""(?:^|\s+)(?:
        this\s+article\s+is\s+protected\s+by\s+copyright\.(?:\s+all\s+rights\s+reserved\.?)?
        |\(?psycinfo\s+database\s+record\s+\(c\)\s+[12]\d\d\d\s+apa,\s+all\s+rights\s+reserved\.?\)?\.?
        |(?<![^.!?)\]"”’'…]\s)(?:copyright\s*(?:©|\(c\)|(?=[12]\d\d\d\b))|©|ⓒ|\(c\)\s*(?=[12]\d\d\d\b))(?-i:{SENTENCE})
            (?:(?<=\.)\s+(?=[^.]*\b{SAYS}\b)(?-i:{SENTENCE}))*
        |all\s+rights\s+reserved\.?
    )\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
NOTICE_CHARACTERS = 400  # characters at the end of a text that are searched for a notice
# Every notice contains one of these. Searching for them takes a hundredth of the time of the pattern.
IN_NOTICES = ("©", "ⓒ", "(c)", "(C)", "opyright", "OPYRIGHT", "eserved", "ESERVED")
WORD = re.compile(r"[^\W_]")
PLACEHOLDER = re.compile(
    r"(?:(?:there is |article has |this article has )?no (?:english )?(?:abstract|summary|title)"
    r"(?: (?:is |was )?(?:available|provided|given|supplied|submitted|present|included|required|text))?"
    r"|(?:(?:the |an )?(?:english )?(?:article )?(?:abstract|summary|title) )?(?:is )?(?:not|un) ?"
    r"(?:available|provided|applicable)"
    r"|n\.?/?a|null|none|nil|tba|abstract|untitled)",
    re.IGNORECASE,
)


def text_of(element: etree._Element) -> str:
    """The text of an element, on one line."""
    is_plain = not len(element)  # an element without children contains none of the signs
    inner = line = element.text or "" if is_plain else _inner(element)
    if "&" in line or "<" in line:
        line, is_plain = unescaped(line), False
    bare = line
    if not is_plain and (BOLD in line or FORMULA_END in line):
        line = SIGNS.sub("", BORDERS.sub(" ", HEADING.sub(r"\1 ", line)))
    text = fold(line if is_plain else numbers_apart(line))
    if record := listener():
        record.line("".join(element.itertext()))
        for became, rule in ((inner, FORMULA), (bare, ESCAPES), (line, HEADINGS), (text, NUMBERS)):
            record.became(became, rule)
    return text


def _inner(element: etree._Element) -> str:
    parts = [element.text or ""]
    for child in element:
        name = child.tag
        if name in SCRIPTS:
            parts += SCRIPTS[name], _inner(child), SCRIPT_END
        elif name == "b":
            parts += BOLD, _inner(child), BOLD_END
        elif name == MATH:
            parts.append(math_text(child))
        elif name == "DispFormula":
            parts += " ", _inner(child).strip(), FORMULA_END
        else:
            parts.append(_inner(child))
        parts.append(child.tail or "")
    return "".join(parts)


def unescaped(line: str) -> str:
    """Undo double escaping of characters and markup.

    A tag counts as markup only together with its closing tag: in `n<b and c>d`, or with a lone `<i>`, nothing is
    removed.
    """
    for _ in range(TIMES_ESCAPED):
        line, replaced = ESCAPED.subn(lambda match: html.unescape(match[0]), line)
        if not replaced:
            break
    tags = list(TAG.finditer(line)) if "<" in line else []
    open_: defaultdict[str, list[int]] = defaultdict(list)
    taken: list[int] = []
    for n, tag in enumerate(tags):
        name = tag["name"].lower()
        if name == "br" or tag["empty"]:
            taken.append(n)
        elif not tag["end"]:
            open_[name].append(n)
        elif open_[name]:
            taken += n, open_[name].pop()
    parts, at = [], 0
    for n in sorted(taken):
        parts += line[at : tags[n].start()], _sign(tags[n])
        at = tags[n].end()
    return "".join([*parts, line[at:]])


def _sign(tag: re.Match[str]) -> str:
    name = tag["name"].lower()
    if name in SCRIPTS and not tag["empty"]:
        return SCRIPT_END if tag["end"] else SCRIPTS[name]
    if name in ("b", "bold", "strong") and not tag["empty"]:
        return BOLD_END if tag["end"] else BOLD
    return " " if OWN_LINES.fullmatch(name) else ""


def without_notice(text: str) -> str:
    """Remove the publisher's copyright notice at the end of a section."""
    end = text[-NOTICE_CHARACTERS:]
    match = NOTICE.search(text, len(text) - len(end)) if any(part in end for part in IN_NOTICES) else None
    return text[: match.start()] if match else text


def says_nothing(text: str) -> bool:
    """Whether a title or abstract has no word or is a placeholder: `[Not Available].`, `No abstract available.`"""
    return not WORD.search(text) or (len(text) < 60 and PLACEHOLDER.fullmatch(text.strip(" .[]()*-")) is not None)

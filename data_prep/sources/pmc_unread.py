"""Cut parts that are never read out of an article's XML before it is parsed.

These parts hold half of the elements of most articles, and building elements is most of the work of parsing. The parsed
tree shows whether the cut was right; if that is not certain, the whole file is parsed. XML errors within the parts go
unnoticed, except missing tags.
"""

from __future__ import annotations

import re
from contextlib import suppress

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources.mathml import MATH
from data_prep.sources.pmc_licenses import NOTICES
from data_prep.sources.pmc_text import PREFORMATTED

UNREAD = ("disp-formula", "ref-list", "table", "table-wrap-foot")  # some of the elements that `pmc_text` does not read
READ_WHOLE = (
    "tex-math",
    "xref",
    MATH,
    *NOTICES,
    *PREFORMATTED,
)  # all text in these is read
ASCII_ENCODINGS = (
    "ascii",
    "us-ascii",
    "utf-8",
    "iso-8859-1",
    "windows-1252",
)  # `<` is no part of a character

# Matches the next unread part, or a comment, CDATA section or instruction, which is skipped as a whole because its text
# may look like a tag. The end of it is searched separately, because one pattern for both would take quadratic time in a
# file with many unclosed comments.
NEXT = re.compile(rb"<(?=[!?drt])(?:(%s)(?=[\s/>])|!--|!\[CDATA\[|\?)" % "|".join(UNREAD).encode())
PASSED_OVER = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}
INSTRUCTION = re.compile(rb"<\?[^<]*?\?>")
NAMED = re.compile(rb"&(?!#|(?:amp|apos|gt|lt|quot);)")  # a named entity; an unknown one is an error anywhere
TEX = b"<tex-math"  # a part that contains it is not cut out


def parse_article(xml: bytes, whole: bool) -> etree._Element:
    """Parse an article or another XML file, and return its root.

    Args:
        xml: content of the file.
        whole: whether to keep the parts that are not read; otherwise they may be empty elements.

    Raises:
        etree.XMLSyntaxError: the file is not XML.
    """
    shorter, count = (xml, 0) if whole else without_unread(xml)
    if count:
        with suppress(etree.XMLSyntaxError):  # parsing the whole file then raises the same error
            root = _parsed(shorter)
            if _is_right(root, count):
                return root
    return _parsed(xml)


def _parsed(xml: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    return etree.fromstring(xml, parser)


def _is_right(root: etree._Element, count: int) -> bool:
    """Whether the root is an article in which exactly `count` elements are empty, and all of these are never read."""
    emptied = [element for element in root.iter(*UNREAD) if not len(element) and not element.text]
    return (
        root.tag == "article"
        and len(emptied) == count
        and not any(next(element.iterancestors(*READ_WHOLE), None) is not None for element in emptied)
        and root.getroottree().docinfo.encoding.lower() in ASCII_ENCODINGS
    )


def without_unread(xml: bytes) -> tuple[bytes, int]:
    """Replace the `UNREAD` parts by empty elements, and return the XML and their number; line numbers do not change.

    In well-formed XML, a part ends at the next closing tag of its name, provided that every `<` inside belongs to a tag
    and no tag has that name. If a part contains anything else, nothing at all is cut out.
    """
    kept: list[bytes] = []
    at = scanned = count = 0  # everything before `at` is either kept or cut out
    while part := NEXT.search(xml, scanned):
        scanned = part.end()
        if closing := PASSED_OVER.get(part[0]):
            if (stop := xml.find(closing, scanned)) < 0:
                return xml, 0
            scanned = stop + len(closing)
        else:
            end = b"</" + part[1] + b">"
            stop = xml.find(end, scanned)
            inside = xml[scanned:stop]
            if stop < 0 or not _holds_tags_alone(inside, part[1]):
                return xml, 0
            scanned = stop + len(end)
            if TEX not in inside and not NAMED.search(inside):
                kept += xml[at : part.start()], b"<" + part[1] + b"/>", b"\n" * inside.count(b"\n")
                at = scanned
                count += 1
    return b"".join([*kept, xml[at:]]), count


def _holds_tags_alone(inside: bytes, name: bytes) -> bool:
    """Whether every `<` begins a tag of another name or a complete instruction, and all tags are closed."""
    if b"?" in inside:  # searching one byte is faster than searching two
        inside = INSTRUCTION.sub(b"", inside)
    return (
        b"<" + name not in inside
        and (b"!" not in inside or b"<!" not in inside)
        and (b"?" not in inside or b"<?" not in inside)
        and inside.count(b"<") == 2 * inside.count(b"</") + inside.count(b"/>")
    )

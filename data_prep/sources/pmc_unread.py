"""Parts of an article's XML without text of ours, cut out of the bytes before they are parsed.

They are half of the elements of most articles, and to build elements is most of the work of parsing. The tree says
whether the cut was right; where it may not be, all is parsed. What is wrong inside the parts goes unseen, unless tags
are missing there.
"""

from __future__ import annotations

import re
from contextlib import suppress

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources.mathml import MATH
from data_prep.sources.pmc_licenses import NOTICES
from data_prep.sources.pmc_text import PREFORMATTED

UNREAD = ("disp-formula", "ref-list", "table", "table-wrap-foot")  # of what `pmc_text` leaves out
READ_WHOLE = ("tex-math", "xref", MATH, *NOTICES, *PREFORMATTED)  # all text in them counts, whatever it is in
ASCII_ENCODINGS = ("ascii", "us-ascii", "utf-8", "iso-8859-1", "windows-1252")  # whose `<` is never part of a character

# The next part; or a comment, a CDATA section or an instruction, which is passed over whole, as it may hold what looks
# like a tag. What ends it is looked for by itself: a pattern would take the square of a file of open comments in time.
NEXT = re.compile(rb"<(?=[!?drt])(?:(%s)(?=[\s/>])|!--|!\[CDATA\[|\?)" % "|".join(UNREAD).encode())
PASSED_OVER = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}
INSTRUCTION = re.compile(rb"<\?[^<]*?\?>")
NAMED = re.compile(rb"&(?!#|(?:amp|apos|gt|lt|quot);)")  # a character by name: an unknown one is an error anywhere
TEX = b"<tex-math"  # looked for in all of what is around it


def parse_article(xml: bytes, whole: bool) -> etree._Element:
    """The root of an article, or of another file.

    Args:
        xml: its bytes.
        whole: with the parts that are not read; else they may be empty.

    Raises:
        etree.XMLSyntaxError: it is not XML.
    """
    shorter, count = (xml, 0) if whole else without_unread(xml)
    if count:
        with suppress(etree.XMLSyntaxError):  # which parsing all of it raises, too
            root = _parsed(shorter)
            if _is_right(root, count):
                return root
    return _parsed(xml)


def _parsed(xml: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    return etree.fromstring(xml, parser)


def _is_right(root: etree._Element, count: int) -> bool:
    """Whether the file is an article, and so many parts that were cut out are elements that nobody reads there."""
    emptied = [element for element in root.iter(*UNREAD) if not len(element) and not element.text]
    return (
        root.tag == "article"
        and len(emptied) == count
        and not any(next(element.iterancestors(*READ_WHOLE), None) is not None for element in emptied)
        and root.getroottree().docinfo.encoding.lower() in ASCII_ENCODINGS
    )


def without_unread(xml: bytes) -> tuple[bytes, int]:
    """The XML with parts that are `UNREAD` as empty elements, lines keeping their numbers; and how many are empty.

    In XML that is well-formed, a part ends where its name ends next if it holds tags alone and none of that name.
    Nothing is cut out where one holds anything else.
    """
    kept: list[bytes] = []
    at = scanned = count = 0  # all before `at` is kept or cut out
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
    """Whether every `<` is of a tag, none of them of that name, or of a whole instruction; and as many end as begin."""
    if b"?" in inside:  # one byte is looked for faster than two
        inside = INSTRUCTION.sub(b"", inside)
    return (
        b"<" + name not in inside
        and (b"!" not in inside or b"<!" not in inside)
        and (b"?" not in inside or b"<?" not in inside)
        and inside.count(b"<") == 2 * inside.count(b"</") + inside.count(b"/>")
    )

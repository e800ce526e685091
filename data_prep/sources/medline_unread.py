"""Cut parts that are never read out of PubMed's XML before it is parsed.

These parts hold four fifths of the elements, and building elements takes most of the time of reading. XML errors within
these parts go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ROOT = b"PubmedArticleSet"
# None of these elements contains another of the same name. Cutting out shorter elements, such as `ISSN`, would take as
# long as parsing them.
UNREAD = (
    b"ArticleDate", b"AuthorList", b"ChemicalList", b"DateCompleted", b"DateRevised", b"GrantList", b"InvestigatorList",
    b"KeywordList", b"MedlineJournalInfo", b"MeshHeadingList", b"Pagination", b"PubmedData",
)  # fmt: skip
BEGIN = re.compile(b"<(?:" + b"|".join(UNREAD) + b")(?=[ >])")
ENDS = {b"<" + name: b"</" + name + b">" for name in UNREAD}
RECORD_END, BOOK_END = b"</PubmedArticle>", b"</PubmedBookArticle>"
# The beginning of a comment, CDATA section or instruction. Complete instructions like `<?pmcsd ?>`, which many
# abstracts contain, do not match.
UNSURE = re.compile(rb"<(?:!|\?(?![^<>]*\?>))")


def without_unread(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Remove the elements `UNREAD` from the XML of a file; line numbers do not change.

    An element is removed if it begins and ends within one block and one record. The few blocks with records of books
    stay unchanged. After the first match of `UNSURE` behind the root's name, everything stays unchanged, because text
    in a comment, a CDATA section or an instruction may look like an element.
    """
    begun, sure, tail = False, True, b""
    for block in blocks:
        # A block is extended to the end of a tag, so that no name or mark is split between two blocks.
        block, end, tail = (tail + block).rpartition(b">")
        block += end
        if not end:
            block, tail, sure = tail, b"", False
        inner = block
        if not begun:
            _, root, inner = block.partition(b"<" + ROOT)
            begun = bool(root)
        sure = sure and not UNSURE.search(inner)
        is_cut = begun and sure and BOOK_END not in block
        yield RECORD_END.join(map(_cut, block.split(RECORD_END))) if is_cut else block
    yield tail


def _cut(record: bytes) -> bytes:
    """Remove the unread elements that begin and end within a record, or within the part of it that is given."""
    kept: list[bytes] = []
    at = 0  # everything before this position is either kept or cut out
    while begin := BEGIN.search(record, at):
        start, end = begin.start(), ENDS[begin[0]]
        stop = record.find(end, start)
        if stop < 0:  # the element does not end here, so the rest is kept
            break
        kept += record[at:start], b"\n" * record.count(b"\n", start, stop)
        at = stop + len(end)
    kept.append(record[at:])
    return b"".join(kept)

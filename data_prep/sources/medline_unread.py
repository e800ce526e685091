"""Parts of PubMed's XML without text of ours, cut out of the bytes before they are parsed.

They are four fifths of the elements, and to build elements takes most of the time of reading. What is wrong in them
goes unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ROOT = b"PubmedArticleSet"
# None is inside one of its own name. Shorter ones, such as `ISSN`, take as long to cut out as to parse.
UNREAD = (
    b"ArticleDate", b"AuthorList", b"ChemicalList", b"DateCompleted", b"DateRevised", b"GrantList", b"InvestigatorList",
    b"KeywordList", b"MedlineJournalInfo", b"MeshHeadingList", b"Pagination", b"PubmedData",
)  # fmt: skip
BEGIN = re.compile(b"<(?:" + b"|".join(UNREAD) + b")(?=[ >])")
ENDS = {b"<" + name: b"</" + name + b">" for name in UNREAD}
RECORD_END, BOOK_END = b"</PubmedArticle>", b"</PubmedBookArticle>"
# All such marks but whole instructions like `<?pmcsd ?>`, which many abstracts hold.
UNSURE = re.compile(rb"<(?:!|\?(?![^<>]*\?>))")


def without_unread(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The XML of a file without what is `UNREAD`, in lines of the same numbers.

    A part is cut out where it begins and ends in one block and one record. In blocks with records of books, which are
    few, all stays. So it does from the first mark on that is `UNSURE`, after the root's name: in a comment, a CDATA
    section or an instruction what looks like an element may be none.
    """
    begun, sure, tail = False, True, b""
    for block in blocks:
        # To the end of a tag, so that neither a name nor a mark is cut in two.
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
    """A record, or what comes before its end, without the parts that end in it too."""
    kept: list[bytes] = []
    at = 0  # all before is kept or cut out
    while begin := BEGIN.search(record, at):
        start, end = begin.start(), ENDS[begin[0]]
        stop = record.find(end, start)
        if stop < 0:  # all that follows stays
            break
        kept += record[at:start], b"\n" * record.count(b"\n", start, stop)
        at = stop + len(end)
    kept.append(record[at:])
    return b"".join(kept)

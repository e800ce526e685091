"""A record of XML is refused at the first mark beyond the limit, in blocks of any size."""

from __future__ import annotations

import pytest

from data_prep.common.bounds import XML_BYTES, XML_MARKS
from data_prep.common.errors import BadInput
from data_prep.sources.xml_size import XmlSize


@pytest.mark.parametrize("mark", [b"<", b"=", b"&"])
@pytest.mark.parametrize("block_bytes", [1000, 1 << 18, XML_MARKS - 1, XML_MARKS, 4 * XML_MARKS])
def test_marks_are_counted_exactly(mark: bytes, block_bytes: int) -> None:
    size = XmlSize("a.xml")
    for text in (b"x" * XML_MARKS, mark * XML_MARKS, b"x" * XML_MARKS):  # exactly the limit
        for start in range(0, len(text), block_bytes):
            size.add(text[start : start + block_bytes])
    with pytest.raises(BadInput, match=r"a\.xml: a record of more than .* 1,500,000 tags"):
        size.add(mark)
    size.reset()
    size.add(b"<" * XML_MARKS)
    with pytest.raises(BadInput):
        size.add(b"=")


def test_bytes_are_counted() -> None:
    size = XmlSize("a.xml")
    for _ in range(64):
        size.add(bytes(XML_BYTES // 64))
    with pytest.raises(BadInput):
        size.add(b"x")

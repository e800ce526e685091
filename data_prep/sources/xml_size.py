"""The size of one record of XML while it is parsed: its tree takes many times as much."""

from __future__ import annotations

import io
from typing import IO

from data_prep.common.bounds import XML_BYTES, XML_MARKS
from data_prep.common.errors import BadInput
from data_prep.sources.entities import with_doctype

BLOCK_BYTES = 1 << 18  # at a time


class XmlSize:
    """Adds up what a parser is given of a record; `name` is what messages call the file."""

    def __init__(self, name: str):
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Begin with the next record."""
        self._bytes = self._marks = self._references = 0
        self._uncounted: list[bytes] = []

    def add(self, block: bytes) -> None:
        """Count what comes next.

        Raises:
            BadInput: the record is too large for memory.
        """
        self._bytes += len(block)
        self._uncounted.append(block)
        if self._bytes > XML_MARKS:  # fewer bytes hold no more marks
            self._marks += sum(block.count(b"<") + block.count(b"=") for block in self._uncounted)
            self._references += sum(block.count(b"&") for block in self._uncounted)
            self._uncounted.clear()
        if self._bytes > XML_BYTES or max(self._marks, self._references) > XML_MARKS:
            raise BadInput(
                f"{self._name}: a record of more than {XML_BYTES:,} bytes of XML, or of {XML_MARKS:,} tags and "
                "attributes, or of entities; leave it out, as with --on-error skip"
            )


def read_xml(file: IO[bytes] | io.RawIOBase, name: str) -> bytes:
    """A file of one record, as far as it may be read, with a DOCTYPE.

    Raises:
        BadInput: as `XmlSize.add`.
    """
    size = XmlSize(name)
    blocks: list[bytes] = []
    while block := file.read(BLOCK_BYTES):
        size.add(block)
        blocks.append(block)
    return with_doctype(b"".join(blocks))

"""Limit the size of one XML record while it is parsed, because its tree takes many times as much memory."""

from __future__ import annotations

import io
from typing import IO

from data_prep.common.bounds import XML_BYTES, XML_MARKS
from data_prep.common.errors import BadInput
from data_prep.sources.entities import with_doctype

BLOCK_BYTES = 1 << 18  # bytes that are read at a time


class XmlSize:
    """Counts the bytes and marks of a record that a parser gets; `name` is the file's name for messages."""

    def __init__(self, name: str):
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Start the counts for the next record."""
        self._bytes = self._marks = self._references = 0
        self._uncounted: list[bytes] = []

    def add(self, block: bytes) -> None:
        """Count the next block.

        Raises:
            BadInput: the record is too large for memory.
        """
        self._bytes += len(block)
        self._uncounted.append(block)
        if self._bytes > XML_MARKS:  # until then, there cannot be too many marks
            self._marks += sum(block.count(b"<") + block.count(b"=") for block in self._uncounted)
            self._references += sum(block.count(b"&") for block in self._uncounted)
            self._uncounted.clear()
        if self._bytes > XML_BYTES or max(self._marks, self._references) > XML_MARKS:
            raise BadInput(
                f"{self._name}: a record of more than {XML_BYTES:,} bytes of XML, or more than {XML_MARKS:,} tags and "
                "attributes, or as many entities; remove it, or skip it with --on-error skip"
            )


def read_xml(file: IO[bytes] | io.RawIOBase, name: str) -> bytes:
    """Read a file with one record, within the size limit, and insert a DOCTYPE if it has none.

    Raises:
        BadInput: as in `XmlSize.add`.
    """
    size = XmlSize(name)
    blocks: list[bytes] = []
    while block := file.read(BLOCK_BYTES):
        size.add(block)
        blocks.append(block)
    return with_doctype(b"".join(blocks))

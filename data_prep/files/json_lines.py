"""Read and write JSON lines: all lists of records between two stages (compressed by zstd), and most input files."""

from __future__ import annotations

import hashlib
import lzma
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import orjson
import zstandard

from data_prep.common.bounds import PACKED_BYTES, RECORD_BYTES, UNPACKED_BYTES, UNPACKED_TIMES, WINDOW_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.json_text import too_full
from data_prep.common.location import without_query

# The level is fixed, and so are the one frame and one thread of `Writer`, because manifests hold hashes of the
# compressed bytes. Level 9 would save an eighth of the disk, but would take longer than parsing the XML.
ZSTD_LEVEL = 3
READ_BYTES = 1 << 18
WRITE_BYTES = 1 << 18  # lines that are collected before they are compressed
# The format is named, because lzma otherwise takes zeros for an empty file in an older format.
UNPACK: dict[str, Callable[[], Any]] = {
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj(),
    ".gz": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, WINDOW_BYTES),
}
# Zeros may follow the compressed data, for example in files from tapes; gzip(1) and xz(1) ignore them too.
PADDED = (".gz", ".xz")
# Commands that compress a file again with a smaller window.
PACK_AGAIN = {".zst": "zstd -dc --long=31 FILE | zstd -o NEW", ".xz": "xz -dc FILE | xz -9 > NEW"}
TOO_WIDE = ("too much memory", "Memory usage limit")  # messages of zstd and liblzma for a window that is too large


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes | None:
        """Read up to `size` bytes; empty at the end."""
        ...


class Writer:
    """A context manager that writes records to one file; keys keep their order.

    The compressor gets many lines per call, because a call takes longer than compressing one line. The bytes are the
    same.
    """

    def __init__(self, path: Path, level: int = ZSTD_LEVEL):
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._stream = compressor.stream_writer(path.open("wb"))
        self._lines: list[bytes] = []
        self._size_bytes = 0

    def write(self, record: dict[str, Any]) -> None:
        """Append one record as a line."""
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        self._lines.append(line)
        self._size_bytes += len(line)
        if self._size_bytes > WRITE_BYTES:
            self._flush()

    def append(self, path: Path) -> None:
        """Append all lines of another file."""
        self._flush()
        with path.open("rb") as file:
            for block in blocks(file, str(path)):
                self._stream.write(block)

    def _flush(self) -> None:
        self._stream.write(b"".join(self._lines))
        self._lines.clear()
        self._size_bytes = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._stream.close()


def read(path: Path, sha256: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the records of one file with their line numbers, from 1. About a megabyte is in memory at a time.

    Args:
        path: file to read.
        sha256: expected hash of the file's bytes; it is checked after the last record.

    Raises:
        BadInput: the file is missing, cut off or damaged, its hash differs, or a line is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            hashed = _Hashed(file)
            number = 0
            for line in lines(hashed, str(path)):
                number += 1  # noqa: SIM113 (enumerate would hold the line)
                record = parse(line)
                del line
                if isinstance(record, str):
                    raise BadInput(f"{path}, line {number}: {record}")
                yield number, record
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if sha256 is not None and hashed.digest.hexdigest() != sha256:
        raise BadInput(f"{path} was altered after it was written; its hash is not the one in the manifest")


def lines(stream: Readable, name: str) -> Iterator[bytes]:
    """The lines of a file without their line feeds. The ending of the file's name decides how it is decompressed.

    A byte order mark at the start is removed.

    Args:
        stream: bytes of the file, which may be several compressed files that were concatenated.
        name: name of the file, for its ending (`.zst`, `.gz`, `.xz`, else plain) and for messages.

    Yields:
        Lines, and a `LongLine` instead of each line of more than `RECORD_BYTES`, because a document must fit in memory.
        This function keeps no reference to a line after it is yielded.

    Raises:
        BadInput: the file is cut off or damaged, or is not compressed as its ending says.
    """
    rest: list[bytes] = []
    rest_bytes = 0
    read = blocks(stream, name)
    for block in chain([next(read, b"").removeprefix(BOM_UTF8)], read):
        first, *others = block.split(b"\n")
        if rest_bytes <= RECORD_BYTES:
            rest.append(first)
        rest_bytes += len(first)
        if others:
            yield _joined(rest, rest_bytes)
            *whole, last = others
            yield from whole
            rest, rest_bytes = [last], len(last)
    if rest_bytes:
        yield _joined(rest, rest_bytes)


def _joined(parts: list[bytes], size_bytes: int) -> bytes:
    line = b"".join(parts) if size_bytes <= RECORD_BYTES else LongLine(parts[0][:40])
    parts.clear()
    return line


def is_blank(line: bytes) -> bool:
    """Whether a line holds no record: it is empty or white space."""
    return not line or line.isspace()


class LongLine(bytes):
    """The first bytes of a line that is too long."""


def parse(line: bytes) -> dict[str, Any] | str:
    """Parse the JSON object of a line; return an error message instead if the line is bad."""
    if isinstance(line, LongLine):
        return f"a line of more than {RECORD_BYTES:,} bytes, {bytes(line)!r} …; cut it into documents"
    if problem := too_full(line):
        return problem
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON ({error})"
    return record if isinstance(record, dict) else f"not a JSON object but {line[:40]!r}"


def blocks(stream: Readable, name: str) -> Iterator[bytes]:
    """The content of a file, decompressed as in `lines`, in blocks of at most `READ_BYTES`.

    Raises:
        BadInput: as in `lines`.
    """
    suffix = without_query(name)[without_query(name).rfind(".") :]
    if suffix not in UNPACK:
        while block := stream.read(READ_BYTES):
            yield block
        return
    start, padding = UNPACK[suffix], b"\0" if suffix in PADDED else b""
    kind = {".zst": "zstd", ".gz": "gzip", ".xz": "xz"}[suffix]
    frame, begun, ended, position, unpacked_bytes = start(), False, False, 0, 0
    try:
        while chunk := stream.read(READ_BYTES):
            for offset in range(0, len(chunk), PACKED_BYTES):
                piece = chunk[offset : offset + PACKED_BYTES]
                while piece := piece.lstrip(padding) if ended and not begun and padding else piece:
                    unpacked = frame.decompress(piece)
                    unpacked_bytes += len(unpacked)
                    packed_bytes = position + offset + len(piece)
                    if unpacked_bytes > UNPACKED_BYTES + UNPACKED_TIMES * packed_bytes:
                        raise BadInput(
                            f"{name} unpacks to more than {UNPACKED_TIMES} times its size ({unpacked_bytes:,} bytes "
                            f"from {packed_bytes:,}); if that is intended, unpack it first"
                        )
                    yield from _cut(unpacked)
                    del unpacked
                    piece, begun = frame.unused_data, not frame.eof
                    if frame.eof:
                        frame, ended = start(), True
            position += len(chunk)
    except (zstandard.ZstdError, zlib.error, lzma.LZMAError) as error:
        place = f"{name}, in the packed bytes from {position:,} on"
        if any(words in str(error) for words in TOO_WIDE):
            raise BadInput(
                f"{place}: unpacking takes a window of more than {WINDOW_BYTES:,} bytes; pack it again, as "
                f"`{PACK_AGAIN[suffix]}`"
            ) from None
        raise BadInput(f"{place}: damaged, or not a {kind} file ({error}); make or download it again") from None
    if begun:
        raise BadInput(f"{name} is cut off; make or download it again")


def _cut(block: bytes) -> Iterator[bytes]:
    return (block[start : start + READ_BYTES] for start in range(0, len(block), READ_BYTES))


class _Hashed:
    """A file that hashes all bytes that are read from it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data

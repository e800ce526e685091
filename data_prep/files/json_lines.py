"""JSON lines: the form of every list of records between two stages (there packed by zstd), and of most input."""

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

# Fixed, as are the one frame and one thread of `Writer`: the level decides the bytes, and manifests hold their hashes.
# 9 saves an eighth of the disk, and takes longer than parsing the XML.
ZSTD_LEVEL = 3
READ_BYTES = 1 << 18
WRITE_BYTES = 1 << 18  # of lines that wait to be packed
# Without its format named, lzma takes zeros for an empty file of an older one.
UNPACK: dict[str, Callable[[], Any]] = {
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj(),
    ".gz": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, WINDOW_BYTES),
}
# Zeros may follow what is packed, as from tapes; gzip(1) and xz(1) pass over them.
PADDED = (".gz", ".xz")
# What packs a file again so that unpacking it takes less.
PACK_AGAIN = {".zst": "zstd -dc --long=31 FILE | zstd -o NEW", ".xz": "xz -dc FILE | xz -9 > NEW"}
TOO_WIDE = ("too much memory", "Memory usage limit")  # as zstd and liblzma say of a window that is too large


class Readable(Protocol):
    """Bytes to read from the start to the end."""

    def read(self, size: int, /) -> bytes | None:
        """Up to so many bytes, none at the end."""
        ...


class Writer:
    """Writes records to one file, each with its keys in the order given; a context manager.

    Lines go to the compressor many at a time: a call for each takes longer than packing it. The bytes are the same.
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
    """The records of one file with their line numbers, from 1, about a megabyte in memory.

    Args:
        path: the file.
        sha256: what its bytes must hash to; known, and checked, when all of it was read.

    Raises:
        BadInput: the file is missing, cut off, damaged, another one, or a line is not a JSON object.
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
    """The lines of a file without their line feeds; it is unpacked as the end of its name says.

    A byte order mark at its start is none of its text.

    Args:
        stream: the file's bytes; several packed files may follow each other in it, as where files were concatenated.
        name: the file's name, for its ending (`.zst`, `.gz`, `.xz`, else plain) and for messages.

    Yields:
        Lines, and a `LongLine` in the place of one of more than `RECORD_BYTES`: a document must fit in memory. Nothing
        here holds a line when it is given away.

    Raises:
        BadInput: it is cut off, damaged, or not packed as its name says.
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
    """Whether a line of a file of others holds no record: it is empty, or white space."""
    return not line or line.isspace()


class LongLine(bytes):
    """The beginning of a line that is too long."""


def parse(line: bytes) -> dict[str, Any] | str:
    """The object that a line holds, or what is wrong with the line."""
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
    """The content of a file, unpacked as for `lines`, in blocks of at most `READ_BYTES`.

    Raises:
        BadInput: as `lines`.
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
                            f"from {packed_bytes:,}); if that is meant to be, unpack it first"
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
    """What passes through is hashed."""

    def __init__(self, file: IO[bytes]):
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data

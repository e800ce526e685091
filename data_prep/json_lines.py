"""JSON lines in a zstd file: the form of every list of records between two stages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import zstandard

from data_prep.stage import BadInput

# Fixed, as are the one frame and one thread of `Writer`: the level decides the bytes, and manifests hold their hashes.
ZSTD_LEVEL = 9
READ_BYTES = 1 << 20


class Writer:
    """Writes records to one file, each with its keys in the order given; a context manager."""

    def __init__(self, path: Path):
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        self._stream = compressor.stream_writer(path.open("wb"))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record as a line."""
        self._stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def read(path: Path, sha256: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of one file with their line numbers, from 1, about a megabyte in memory.

    Args:
        path: the file.
        sha256: what its bytes must hash to; known, and checked, when all of it was read.

    Raises:
        BadInput: the file is missing, cut off, damaged, another one, or a line is not a JSON object.
    """
    for number, line in enumerate(_lines(path, sha256), start=1):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise BadInput(f"{path}, line {number}: not a JSON object but {line[:40]!r}")
        yield number, record


def _lines(path: Path, sha256: str | None) -> Iterator[bytes]:
    frame, begun, rest = zstandard.ZstdDecompressor().decompressobj(), False, b""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
                text = [rest]
                while chunk:  # several frames may follow each other, as where files were concatenated
                    text.append(frame.decompress(chunk))
                    chunk, begun = frame.unused_data, not frame.eof
                    if frame.eof:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                *lines, rest = b"".join(text).split(b"\n")
                yield from lines
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except zstandard.ZstdError as error:
        raise BadInput(f"{path} is damaged, or not a zstd file ({error}); make or download it again") from None
    if begun:
        raise BadInput(f"{path} is cut off; make or download it again")
    if rest:
        yield rest
    if sha256 is not None and digest.hexdigest() != sha256:
        raise BadInput(f"{path} was altered after it was written; its hash is not the one in the manifest")

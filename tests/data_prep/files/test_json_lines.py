"""A small compressed file that unpacks to very much is refused before it takes much time."""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from data_prep.common.bounds import RECORD_BYTES, UNPACKED_BYTES, UNPACKED_TIMES
from data_prep.common.errors import BadInput
from data_prep.files import json_lines

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".zst": zstandard.ZstdCompressor(3).compress,
    ".gz": lambda data: gzip.compress(data, 9),
    ".xz": lambda data: lzma.compress(data, preset=0),
}


def unpacked_bytes(data: bytes, suffix: str) -> int:
    return sum(map(len, json_lines.blocks(io.BytesIO(data), f"a.jsonl{suffix}")))


@pytest.mark.parametrize("suffix", PACK)
def test_line_ends_without_end_are_refused(suffix: str) -> None:
    size = UNPACKED_BYTES * 2
    packed = PACK[suffix](b"\n" * size)
    assert len(packed) * UNPACKED_TIMES < size - UNPACKED_BYTES, "otherwise the test shows nothing"
    with pytest.raises(BadInput, match=rf"a\.jsonl\{suffix} unpacks to more than 250 times its size .*unpack it first"):
        unpacked_bytes(packed, suffix)
    assert unpacked_bytes(b"\n" * 1000, "") == 1000, "an uncompressed file may have any size"


def test_a_long_record_and_files_of_ordinary_lines_are_read() -> None:
    long = PACK[".zst"](b"x" * RECORD_BYTES)
    assert unpacked_bytes(long, ".zst") == RECORD_BYTES
    alike = b"".join(b'{"id": %d, "text": "the same words in each of the lines"}\n' % n for n in range(1 << 20))
    assert unpacked_bytes(PACK[".zst"](alike), ".zst") == len(alike)
    frames = PACK[".zst"](b"\n" * (1 << 20))  # several compressed files, concatenated
    with pytest.raises(BadInput, match="unpacks to more than"):
        unpacked_bytes(frames * 200, ".zst")

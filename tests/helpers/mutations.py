"""Correct files with faults: bytes flipped, cut or repeated, values of other types and sizes."""

from __future__ import annotations

import functools
import gzip
import io
import json
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import zstandard
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

DEEP = 5_000  # nested brackets or tags, deeper than Python's recursion limit
LONG = 200_000  # digits or letters
PACK: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".zst": (zstandard.ZstdCompressor().compress, lambda data: zstandard.ZstdDecompressor().decompress(data)),
    ".gz": (lambda data: gzip.compress(data, mtime=0), gzip.decompress),
    ".xz": (lzma.compress, lzma.decompress),
}
NUMBERS = (-1, 0, 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(2**63), 1.5, 1e308, float("nan"), float("inf"))
TEXTS = (
    "", " ", "\0", "\ud800", "\N{PILE OF POO}", "e\u0301\u202e", "../../up", "/etc/passwd", "C:\\x", "a\nb", "\x1b[2J",
    "-1", "1e999", "9" * 5000,
    "٣", "=cmd()", "2026-02-31", "99999-01-01", "x" * LONG, "null", "{", "<a>", "%s%n", "manifest.json",
)  # fmt: skip
DEEP_LIST, DEEP_OBJECT = "@deep list@", "@deep object@"
VALUES = (None, True, False, [], {}, [None], {"": None}, DEEP_LIST, DEEP_OBJECT, *NUMBERS, *TEXTS)
WORDS = (*(str(number) for number in NUMBERS), *(text for text in TEXTS if text.isprintable()), "9" * LONG)
INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


BOMB_BYTES = 1536 << 20
FILLINGS = (b"\0", b"\n", b"x\n", b"a ", b"[", b'{"a":', b"<a>", b"\xf0\x9f\x98\x80")


@functools.cache
def bomb(filling: bytes, before: bytes = b"", size_bytes: int = BOMB_BYTES) -> bytes:
    """One zstd frame that unpacks to `before` and many repetitions of `filling`."""
    packer = zstandard.ZstdCompressor().compressobj()
    block = filling * ((1 << 20) // len(filling))
    return b"".join(
        (packer.compress(before), *(packer.compress(block) for _ in range(size_bytes >> 20)), packer.flush())
    )


def mutated(draw: Draw, name: str, content: bytes) -> bytes:
    """The content of a file with one to three faults in its bytes or values, according to the ending of its name."""
    for _ in range(draw(st.integers(1, 3))):
        content = _once(draw, name, content)
    return content


def _once(draw: Draw, name: str, content: bytes) -> bytes:
    if draw(st.sampled_from(("bytes", "values", "values"))) == "bytes":
        return of_bytes(draw, content)
    stem, dot, suffix = name.rpartition(".")
    kind = f"{dot}{suffix}"
    try:
        if kind == ".zst" and draw(st.integers(0, 9)) == 9:
            return bomb(draw(st.sampled_from(FILLINGS)))
        if kind in PACK:
            pack, unpack = PACK[kind]
            return pack(_once(draw, stem, unpack(content)))
        return {
            ".json": of_json,
            ".jsonl": of_json_lines,
            ".tar": of_tar,
            ".safetensors": of_safetensors,
            ".xlsx": of_zip,
            ".pt": of_checkpoint,
            ".metadata": of_index,
        }.get(kind, of_words)(draw, content)
    except Exception:  # its content no longer has the format of its name
        return of_bytes(draw, content)


def of_bytes(draw: Draw, content: bytes) -> bytes:
    """Bytes flipped, cut out, inserted, repeated, or overwritten with a number of one to eight bytes."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    length = draw(st.sampled_from((1, 2, 4, 8, 64, 512, len(content))))
    how = draw(st.sampled_from(("flip", "cut", "leave out", "repeat", "number", "bytes", "nothing")))
    before, part, after = content[:place], content[place : place + length], content[place + length :]
    if how == "flip":
        flipped = bytes(byte ^ draw(st.integers(1, 255)) for byte in part[:1])
        return before + flipped + part[1:] + after
    if how == "cut":
        return before
    if how == "leave out":
        return before + after
    if how == "repeat":
        return before + part * draw(st.sampled_from((2, 100, max(2, LONG // max(1, len(part)))))) + after
    if how == "number":
        size, number = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(INTEGERS))
        data = (number % 256**size).to_bytes(size, draw(st.sampled_from(("little", "big"))))
        return before + data + content[place + size :]
    return before + draw(st.binary(max_size=16)) + after if how == "bytes" else b""


def of_json(draw: Draw, content: bytes) -> bytes:
    """A JSON value in which one value or one key is replaced."""
    return to_json(other_value(draw, json.loads(content)))


def of_json_lines(draw: Draw, content: bytes) -> bytes:
    """JSON lines in which one line is changed in this way."""
    lines = content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = of_json(draw, lines[number])
    return b"\n".join(lines) + b"\n"


def other_value(draw: Draw, value: Any) -> Any:
    """A value in which one part, at any depth, is changed, removed, repeated or renamed."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 3)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        how = draw(st.sampled_from(("inside", "inside", "inside", "remove", "rename")))
        changed: Any = dict(value) if isinstance(value, dict) else list(value)
        if how == "inside":
            changed[key] = other_value(draw, value[key])
        elif how == "remove":
            del changed[key]
        elif isinstance(changed, dict):
            changed[str(draw(st.sampled_from(TEXTS)))] = changed.pop(key)
        else:
            changed += changed
        return changed
    return draw(st.sampled_from(VALUES))


def to_json(value: Any) -> bytes:
    """JSON with markers replaced by lists and objects that are nested too deep for a Python value."""
    text = json.dumps(value)
    deep = {DEEP_LIST: "[" * DEEP + "]" * DEEP, DEEP_OBJECT: '{"a":' * DEEP + "1" + "}" * DEEP}
    for name, nested in deep.items():
        text = text.replace(json.dumps(name), nested)
    return text.encode()


def of_words(draw: Draw, content: bytes) -> bytes:
    """A text in which a word, number, tag or piece of it is replaced, removed or repeated many times."""
    matches = list(re.finditer(rb"<[^<>]*>|[\w.+-]+|[^\w\s]", content))
    match = matches[draw(st.integers(0, len(matches) - 1))]
    word = match[0]
    how = draw(st.sampled_from(("other", "other", "many", "deep", "remove")))
    if how == "other":
        word = str(draw(st.sampled_from(WORDS))).encode("utf-8", "surrogatepass")
    elif how == "many":
        word = word * (LONG // len(word))
    elif how == "deep":
        word = word * DEEP
    return content[: match.start()] + (b"" if how == "remove" else word) + content[match.end() :]


def of_tar(draw: Draw, content: bytes) -> bytes:
    """An archive with a member of another name, kind, size or content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=target, mode="w") as new:
        members = old.getmembers()
        chosen = draw(st.integers(0, len(members) - 1))
        for number, member in enumerate(members):
            data = old.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
            if number == chosen:
                how = draw(st.sampled_from(("name", "kind", "header", "content")))
                if how == "name":
                    member.name = draw(st.sampled_from([text for text in TEXTS if "\ud800" not in text]))
                elif how == "kind":
                    member.type = draw(st.sampled_from((b"1", b"2", b"3", b"5", b"L", b"K", b"S", b"x", b"g", b"X")))
                elif how == "header":
                    member.pax_headers = {
                        draw(st.sampled_from(("size", "path", "mtime", "GNU.sparse.map", "GNU.sparse.size"))): str(
                            draw(st.sampled_from(WORDS))
                        )
                    }
                else:
                    data = _once(draw, member.name, data)
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return target.getvalue()


def of_zip(draw: Draw, content: bytes) -> bytes:
    """An archive in which one file is changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        names = sorted(old.namelist())
        chosen = draw(st.sampled_from(names))
        for name in names:
            data = old.read(name)
            new.writestr(name, _once(draw, name, data) if name == chosen else data)
    return target.getvalue()


def of_safetensors(draw: Draw, content: bytes) -> bytes:
    """A file of tensors with another header."""
    (size,) = struct.unpack("<Q", content[:8])
    header = of_json(draw, content[8 : 8 + size])
    header_size = draw(st.sampled_from((len(header), len(header), len(header), *INTEGERS)))
    return struct.pack("<Q", header_size) + header + content[8 + size :]


def of_checkpoint(draw: Draw, content: bytes) -> bytes:
    """A file of `torch.save` that holds another value, or has a pickle with other bytes."""
    import torch

    if draw(st.booleans()):
        value = torch.load(io.BytesIO(content), weights_only=False)  # made by a test
        target = io.BytesIO()
        torch.save(other_value(draw, value), target)
        return target.getvalue()
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, of_bytes(draw, data) if name.endswith("/data.pkl") else data)
    return target.getvalue()


def of_index(draw: Draw, content: bytes) -> bytes:
    """The index of a sharded checkpoint that describes one tensor, or the file that holds it, in another way."""
    index = pickle.loads(content)  # made by a test
    which = draw(st.sampled_from(("storage_data", "storage_data", "state_dict_metadata", "planner_data")))
    entries = getattr(index, which)
    key = draw(st.sampled_from(sorted(entries, key=str)))
    how = draw(st.sampled_from(("inside", "inside", "remove", "other")))
    if how == "remove":
        del entries[key]
    elif how == "other":
        entries[key] = draw(st.sampled_from(VALUES))
    else:
        entry = entries[key]
        fields = sorted(vars(entry)) if hasattr(entry, "__dict__") else []
        if fields:
            object.__setattr__(entry, draw(st.sampled_from(fields)), draw(st.sampled_from(VALUES)))
    return pickle.dumps(index)

"""Input files: found by path, folder, glob or URL, named, read once with a hash taken on the way.

Anything that fsspec opens is an input: local files, `s3://`, `hf://`, `https://`. Nothing but a URL that was given
reaches the network. A file is called by its path below the folder or the fixed part of the glob that led to it, so that
names do not say where a machine keeps its data.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_prep.common.bounds import check_bytes
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.json_text import check_shape
from data_prep.common.location import Location, without_query
from data_prep.files import json_lines

BLOCK_BYTES = 1 << 20
ENDINGS = 8  # of files that are not read, that are printed
MAGIC = re.compile(r"[*?[]")
# What the file systems call the state of a file's content, the first that is there; the size goes with it.
KNOWN = {"url": str, "bytes": int, "stamp": str, "sha256": str}  # a line of what `remember` writes
STATES = ("ETag", "mtime", "LastModified", "last_modified", "blob_id")

Tick = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Input:
    """One file.

    Attributes:
        name: what ids and manifests call it; unique among the inputs of a source.
        url: where it is, a local path or a URL.
        bytes: its size, 0 where the store does not say.
        stamp: changes when the content does, as far as the store says without reading it; empty where it does not.
        split: `train` or `val` where the collection itself has such a split.
        problem: why it cannot be read, where that is known before it is opened.
    """

    name: str
    url: Location
    bytes: int
    stamp: str
    split: str | None = None
    problem: str | None = None


class Stream(io.RawIOBase):
    """A file read from its start to its end, hashed on the way."""

    def __init__(self, url: Location, file: IO[bytes], tick: Tick):
        self._url, self._file, self._tick, self._digest = url, file, tick, hashlib.sha256()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into the buffer; returns how many.

        Raises:
            BadInput: the file cannot be read.
        """
        with _named_errors(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._digest.update(data)
        self._tick(len(data))
        return len(data)

    def sha256(self) -> str:
        """The hash of the whole file; what was not read yet is read now."""
        block = bytearray(BLOCK_BYTES)
        while self.readinto(memoryview(block)):
            pass
        return self._digest.hexdigest()


def find(patterns: Sequence[str], suffixes: Sequence[str], beside: Sequence[str] = ()) -> list[Input]:
    """The files that paths, folders, globs and URLs stand for, in the order of their names, numbers in them as numbers.

    Args:
        patterns: folders are searched through; a glob may match folders.
        suffixes: endings of the names to take from folders and globs; a file named outright must have one. How many
            files of other endings lie there is printed, with a name of each ending.
        beside: endings of files that are not taken, but belong to those that are.

    Raises:
        BadInput: nothing is there, a folder cannot be read, a file has another ending, or two would have one name. A
            file that cannot be read is found with its `problem`.
    """
    inputs: dict[str, Input] = {}
    for pattern in patterns:
        for file in _expand(Location(pattern), tuple(suffixes), tuple(beside)):
            if file.name in inputs and inputs[file.name].url != file.url:
                raise BadInput(
                    f"{inputs[file.name].url} and {file.url} would both be called {file.name}; "
                    "give the folder above them as the input"
                )
            inputs[file.name] = file
    return sorted(inputs.values(), key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which `n999` comes before `n1000`, and `1.xml` before `1a.xml`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def opened(file: Input) -> IO[bytes]:
    """A file that can be read from any place.

    Raises:
        BadInput: it cannot be opened.
    """
    if file.problem:
        raise BadInput(file.problem)
    with _named_errors(file.url):
        fs, path = _file_system(file.url)
        return fs.open(path, "rb")


@contextmanager
def reading(file: Input, tick: Tick = lambda _: None) -> Iterator[Stream]:
    """Open a file as a `Stream`.

    Raises:
        BadInput: it cannot be opened.
    """
    with opened(file) as raw:
        yield Stream(file.url, raw, tick)


def content(url: Location, limit_bytes: int) -> bytes | None:
    """What is in a small file, None where there is none.

    Raises:
        BadInput: it cannot be read, or has more than `limit_bytes`.
    """
    with _named_errors(url):
        fs, path = _file_system(url)
        if not fs.exists(path):
            return None
        with fs.open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    check_bytes(len(data), limit_bytes, url, "it is not what its name says; remove it, or get it again")
    return data


def sha256_of(files: Iterable[Input], known: Path, tick: Tick = lambda _: None) -> Iterator[tuple[Input, str | None]]:
    """Hashes of files, None for one with a `problem`; one whose size and stamp are as `known` says is not read again.

    Args:
        files: the files.
        known: what `remember` wrote, or nothing yet.
        tick: is told the bytes that were read or spared.
    """
    hashes: dict[tuple[str, int, str], str] = {}
    if known.is_file():
        for number, record in json_lines.read(known):
            check_shape(record, KNOWN, f"{known}, line {number}")
            # Earlier versions kept URLs with their credentials.
            hashes[Location(record["url"]), record["bytes"], record["stamp"]] = record["sha256"]
    for file in files:
        if file.stamp and (sha256 := hashes.get((file.url, file.bytes, file.stamp))):
            tick(file.bytes)
        elif file.problem:
            sha256 = None
        else:
            with reading(file, tick) as stream:
                sha256 = stream.sha256()
        yield file, sha256


def remember(known: Path, hashes: Iterable[tuple[Input, str | None]]) -> None:
    """Write down the hashes of files with their sizes and stamps, for `sha256_of`."""
    aside = known.with_name(f".{known.name}")
    with json_lines.Writer(aside) as writer:
        for file, sha256 in hashes:
            if sha256 is not None:
                writer.write({"url": file.url, "bytes": file.bytes, "stamp": file.stamp, "sha256": sha256})
    aside.replace(known)


def digest(hashes: Iterable[tuple[Input, str | None]]) -> JsonDict:
    """What a manifest says of files: how many, their bytes, one hash over their names and hashes."""
    files = size_bytes = 0
    whole = hashlib.sha256()
    for file, sha256 in hashes:
        files += 1
        size_bytes += file.bytes
        whole.update(f"{sha256}  {file.name}\n".encode())
    return {"files": files, "bytes": size_bytes, "sha256": whole.hexdigest()}


def _expand(pattern: Location, suffixes: tuple[str, ...], beside: tuple[str, ...]) -> Iterator[Input]:
    with _named_errors(pattern):
        fs, path = _file_system(pattern)
        fs.invalidate_cache()  # listings outlive what they list
        if (magic := MAGIC.search(path)) and not fs.exists(path):
            root = path[: magic.start()].rpartition("/")[0]
            infos = list(fs.glob(path, detail=True).values())
            infos += [i for folder in infos if folder["type"] == "directory" for i in _files(fs, folder["name"])]
        elif fs.isdir(path):
            root, infos = path, _files(fs, path)
        elif fs.exists(path):
            if not without_query(path).endswith(suffixes):
                raise BadInput(f"{pattern} does not end in {', '.join(suffixes)}")
            root, infos = without_query(path).rpartition("/")[0], [fs.info(path)]
        else:
            if not _is_local(fs):
                fs.info(path)  # raises what `exists` keeps to itself: no network, no permission
            raise BadInput(f"{pattern}: there is no such file or folder")
        members = [(without_query(info["name"]), info) for info in infos if info["type"] == "file"]
    taken = [info for name, info in members if name.endswith(suffixes)]
    others = [name.removeprefix(root).lstrip("/") for name, _ in members if not name.endswith((*suffixes, *beside))]
    if not taken:
        raise BadInput(f"{pattern}: nothing there ends in {', '.join(suffixes)}")
    if others:
        print(f"{_printable(pattern)}: {_by_ending(others)}")
    for info in taken:
        # What is not UTF-8 can neither be printed nor stored; in a name, its bytes stand for it from here on.
        name, problem = _printable(info["name"]), None
        if name != info["name"]:
            problem = f"{name}: its name is not UTF-8; rename it"
        elif _is_local(fs) and not os.access(name, os.R_OK):
            problem = f"{name}: Permission denied"
        state = next((str(info[key]) for key in STATES if info.get(key)), "")
        url = Location(name if _is_local(fs) else fs.unstrip_protocol(name))
        short = without_query(name).removeprefix(_printable(root)).lstrip("/")
        yield Input(short, url, int(info.get("size") or 0), state, problem=problem)


def _printable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _by_ending(names: Sequence[str]) -> str:
    """How many files are not read, by their endings, with the first name of each."""
    by_ending: dict[str, list[str]] = {}
    for name in sorted(names):
        by_ending.setdefault(PurePosixPath(name).suffix or "without an ending", []).append(name)
    kinds = sorted(by_ending.items(), key=lambda kind: -len(kind[1]))
    said = [f"{len(names):,} {ending} ({names[0]!a}{', …' if len(names) > 1 else ''})" for ending, names in kinds]
    shown, more = said[:ENDINGS], [f"{len(said) - ENDINGS} more"] if len(said) > ENDINGS else []
    return f"left out {len(names):,} files of other kinds: {', '.join([*shown, *more])}"


def _files(fs: Any, folder: str) -> list[JsonDict]:
    # An unreadable folder is an error, where fsspec leaves it out without a word.
    entries = fs.find(folder, detail=True, **({"on_error": "raise"} if _is_local(fs) else {}))
    return list(entries.values())


def _file_system(url: Location) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Any, because fsspec's types say less than its documents."""
    from fsspec.core import url_to_fs

    return url_to_fs(url.typed)


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except ImportError as error:
        raise BadInput(f"{url}: {error}") from None
    except OSError as error:
        raise BadInput(f"{url}: {error.strerror or error}") from None
    except Exception as error:
        # The stores' clients have errors of their own, all of them about the URL, the credentials or the network.
        if "://" not in url:
            raise
        raise BadInput(f"{url}: {type(error).__name__}: {error}") from None

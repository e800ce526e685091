"""Find input files by path, folder, glob or URL, name them, and hash them while they are read.

An input is anything that fsspec opens: local files, `s3://`, `hf://`, `https://`. The network is used only for URLs
that the user gave. The name of a file is its path below the given folder, or below the fixed part of the glob, so that
names do not depend on where a machine keeps its data.
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
ENDINGS = 8  # number of endings of ignored files that are printed
MAGIC = re.compile(r"[*?[]")
KNOWN = {"url": str, "bytes": int, "stamp": str, "sha256": str}  # one line of the file that `remember` writes
# The keys under which file systems give the state of a file's content. The first key that exists is used, together
# with the size.
STATES = ("ETag", "mtime", "LastModified", "last_modified", "blob_id")

Tick = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Input:
    """One input file.

    Attributes:
        name: name of the file in ids and manifests, unique among the inputs of a source.
        url: local path or URL of the file.
        bytes: size of the file, 0 if the store does not give it.
        stamp: a text from the store (such as an ETag) that changes with the content; empty if the store gives none.
        split: `train` or `val` if the collection itself assigns the file to a split.
        problem: why the file cannot be read, if that is known before it is opened.
    """

    name: str
    url: Location
    bytes: int
    stamp: str
    split: str | None = None
    problem: str | None = None


class Stream(io.RawIOBase):
    """A file that is read from start to end and hashed meanwhile."""

    def __init__(self, url: Location, file: IO[bytes], tick: Tick):
        self._url, self._file, self._tick, self._digest = url, file, tick, hashlib.sha256()

    def readable(self) -> bool:
        """A stream can always be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into the buffer and return their number.

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
        """Read what has not been read yet, and return the SHA-256 of the whole file."""
        block = bytearray(BLOCK_BYTES)
        while self.readinto(memoryview(block)):
            pass
        return self._digest.hexdigest()


def find(patterns: Sequence[str], suffixes: Sequence[str], beside: Sequence[str] = ()) -> list[Input]:
    """Find the files that paths, folders, globs and URLs stand for, sorted by name, with numbers in numeric order.

    Args:
        patterns: paths, folders, globs and URLs. Folders are searched with all their subfolders; a glob may match
            folders.
        suffixes: allowed endings of file names. Files in folders and globs with other endings are ignored, and their
            number is printed, with one example for each ending. A file given by its path must have an allowed ending.
        beside: endings of files that are ignored without a message, because they belong to the input files.

    Raises:
        BadInput: no file was found, a folder cannot be read, a named file has another ending, or two files have the
            same name. A file that cannot be read is returned with its `problem`.
    """
    inputs: dict[str, Input] = {}
    for pattern in patterns:
        for file in _expand(Location(pattern), tuple(suffixes), tuple(beside)):
            if file.name in inputs and inputs[file.name].url != file.url:
                raise BadInput(
                    f"{inputs[file.name].url} and {file.url} would both have the name {file.name}; "
                    "give the folder above them as the input"
                )
            inputs[file.name] = file
    return sorted(inputs.values(), key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `n999` before `n1000`, and `1.xml` before `1a.xml`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def opened(file: Input) -> IO[bytes]:
    """Open a file for reading at any position.

    Raises:
        BadInput: the file cannot be opened.
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
    """The content of a small file, or None if there is no such file.

    Raises:
        BadInput: the file cannot be read, or has more than `limit_bytes`.
    """
    with _named_errors(url):
        fs, path = _file_system(url)
        if not fs.exists(path):
            return None
        with fs.open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    check_bytes(len(data), limit_bytes, url, "it is not what its name says; remove it, or download it again")
    return data


def sha256_of(files: Iterable[Input], known: Path, tick: Tick = lambda _: None) -> Iterator[tuple[Input, str | None]]:
    """Hash files. A file with the size and stamp that `known` records is not read again.

    Args:
        files: files to hash.
        known: file that `remember` wrote; it need not exist.
        tick: called with the number of bytes that were read or skipped.
    Yields:
        Each file with its hash, or with None if it has a `problem`.
    """
    hashes: dict[tuple[str, int, str], str] = {}
    if known.is_file():
        for number, record in json_lines.read(known):
            check_shape(record, KNOWN, f"{known}, line {number}")
            # Earlier versions stored URLs with their credentials.
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
    """Store the hashes of files, with their sizes and stamps, for `sha256_of`."""
    aside = known.with_name(f".{known.name}")
    with json_lines.Writer(aside) as writer:
        for file, sha256 in hashes:
            if sha256 is not None:
                writer.write({"url": file.url, "bytes": file.bytes, "stamp": file.stamp, "sha256": sha256})
    aside.replace(known)


def digest(hashes: Iterable[tuple[Input, str | None]]) -> JsonDict:
    """The entry for input files in a manifest: their number, their bytes, and one hash over all names and hashes."""
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
        fs.invalidate_cache()  # fsspec caches listings, and files may have changed since
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
                fs.info(path)  # raises errors that `exists` hides: no network, no permission
            raise BadInput(f"{pattern}: there is no such file or folder")
        members = [(without_query(info["name"]), info) for info in infos if info["type"] == "file"]
    taken = [info for name, info in members if name.endswith(suffixes)]
    others = [name.removeprefix(root).lstrip("/") for name, _ in members if not name.endswith((*suffixes, *beside))]
    if not taken:
        raise BadInput(f"{pattern}: nothing there ends in {', '.join(suffixes)}")
    if others:
        print(f"{_printable(pattern)}: {_by_ending(others)}")
    for info in taken:
        # A name that is not UTF-8 can neither be printed nor stored; its bytes are escaped.
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
    """Describe the ignored files: their number per ending, with one name each."""
    by_ending: dict[str, list[str]] = {}
    for name in sorted(names):
        by_ending.setdefault(PurePosixPath(name).suffix or "without an ending", []).append(name)
    kinds = sorted(by_ending.items(), key=lambda kind: -len(kind[1]))
    parts = [f"{len(names):,} {ending} ({names[0]!a}{', …' if len(names) > 1 else ''})" for ending, names in kinds]
    shown, more = parts[:ENDINGS], [f"{len(parts) - ENDINGS} more"] if len(parts) > ENDINGS else []
    return f"ignored {len(names):,} files of other kinds: {', '.join([*shown, *more])}"


def _files(fs: Any, folder: str) -> list[JsonDict]:
    # By default, fsspec skips an unreadable folder without a message.
    entries = fs.find(folder, detail=True, **({"on_error": "raise"} if _is_local(fs) else {}))
    return list(entries.values())


def _file_system(url: Location) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. The type is Any, because fsspec's types are incomplete."""
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
        # Clients of object stores raise their own errors, all about the URL, the credentials or the network.
        if "://" not in url:
            raise
        raise BadInput(f"{url}: {type(error).__name__}: {error}") from None

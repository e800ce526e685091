"""A file that is what it must be, byte for byte: read, or made from a good source, by one process of a node."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from streaming.base.storage import CloudDownloader

from data_prep.common.errors import BadInput
from data_prep.common.location import Location

FETCH_ATTEMPTS = 3
RETRY_WAIT_S = 1.0  # before the second attempt to fetch; doubled before each further one
DOWNLOAD_TIMEOUT_S = 60.0

Check = Callable[[bytes], str]  # what is wrong with a file's content, empty if nothing is
Source = tuple[str, Callable[[], bytes]]  # its name for messages, and where the content comes from

log = logging.getLogger(__name__)


def obtain(path: Path, check: Check, sources: Sequence[Source], way_out: str, wait: bool = True) -> bytes | None:
    """A file's content if it is good; otherwise the first good one of `sources`, which then replaces the file.

    The file is written aside and renamed, so that nobody reads a part of it. One process of a node makes it, the
    others wait; nodes that share the folder may make it twice, of the same bytes.

    Args:
        path: the file, which may be missing.
        check: what a content must pass.
        sources: tried in order.
        way_out: what the user can do, for the message.
        wait: for another process that makes the file; if not, the result is None.

    Raises:
        BadInput: the file is bad and so are all sources, or the folder cannot be written.
    """
    data, problem = _read(path, check)
    if not problem:
        return data
    with _alone(path, wait) as alone:
        if not alone:
            return None
        data, problem = _read(path, check)
        if not problem:
            return data
        problems = [f"{path}: {problem}"]
        for name, source in sources:
            try:
                data = source()
                problem = check(data)
            except Exception as error:  # the clients of object stores raise what they like
                problem = f"{type(error).__name__}: {error}"
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            damaged = path.exists()
            _replace(path, data)
            if damaged:
                log.warning("%s; replaced it from %s", problems[0], name)
            return data
    raise BadInput("\n  ".join([f"{path} cannot be read as it was written:", *problems]) + f"\n{way_out}")


def _read(path: Path, check: Check) -> tuple[bytes, str]:
    """A file's content and what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", error.strerror or str(error)
    return data, check(data)


def _aside(path: Path) -> Path:
    """Where a node writes a file before it is whole. What a killed process leaves there, the next one overwrites."""
    return path.with_name(f".{path.name}.{platform.node()}")


def _replace(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _aside(path).write_bytes(data)
        _aside(path).replace(path)
    except OSError as error:
        _aside(path).unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


def fetches(remote: str | None, name: str, path: Path) -> list[Source]:
    """The attempts to fetch the file `name` of `remote`; none without a remote."""
    if remote is None:
        return []
    url = Location(remote) / name
    return [(f"{url} (attempt {n + 1})", partial(_fetch, url, _aside(path), n)) for n in range(FETCH_ATTEMPTS)]


def _fetch(url: Location, aside: Path, attempt: int) -> bytes:
    if attempt:
        time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
    try:
        aside.unlink(missing_ok=True)  # streaming takes a file that is there for the one to be fetched
        CloudDownloader.direct_download(url.typed, str(aside), DOWNLOAD_TIMEOUT_S)
        return aside.read_bytes()
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the only lock of this node on the making of a file; False if another holds it and `wait` is not set.

    The lock is a file of the node's own, because not every shared file system has locks. It dies with its holder.
    """
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"token-shard-{os.getuid()}-{name}.lock"
    while True:
        file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if lock.exists() and os.path.samestat(os.fstat(file), lock.stat()):
                break
        except BlockingIOError:
            os.close(file)
            yield False
            return
        except FileNotFoundError:
            pass
        os.close(file)  # its holder removed it meanwhile, so it locks nothing
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)

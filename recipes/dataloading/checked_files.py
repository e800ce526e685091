"""Read a file and check its contents; if they are wrong, one process of each node restores it from a good source."""

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
RETRY_WAIT_S = 1.0  # wait before the second attempt to fetch a file; doubled before each further attempt
DOWNLOAD_TIMEOUT_S = 60.0

Check = Callable[[bytes], str]  # returns what is wrong with the contents of a file; empty if nothing is
Source = tuple[str, Callable[[], bytes]]  # name for messages, and a function that returns the contents

log = logging.getLogger(__name__)


def obtain(path: Path, check: Check, sources: Sequence[Source], way_out: str, wait: bool = True) -> bytes | None:
    """Return the contents of a file. If they are not valid, the first valid source replaces the file.

    The file is written under a temporary name and renamed, so that no process reads an incomplete file. One process of
    each node writes it while the others wait. Nodes that share the folder may both write it, with the same bytes.

    Args:
        path: file to read, which may be missing.
        check: check that the contents must pass.
        sources: sources of the contents, which are tried in order.
        way_out: what the user can do, for the message.
        wait: whether to wait if another process is writing the file; if not, the result is then None.

    Raises:
        BadInput: the file and all sources are invalid, or the folder cannot be written.
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
            except Exception as error:  # clients of object stores raise many types of errors
                problem = f"{type(error).__name__}: {error}"
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            damaged = path.exists()
            _replace(path, data)
            if damaged:
                log.warning("%s; replaced it from %s", problems[0], name)
            return data
    raise BadInput("\n  ".join([f"{path} is missing or damaged:", *problems]) + f"\n{way_out}")


def _read(path: Path, check: Check) -> tuple[bytes, str]:
    """Read a file. Return its contents, and what is wrong with them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", error.strerror or str(error)
    return data, check(data)


def _aside(path: Path) -> Path:
    """Temporary name under which a node writes a file. A later process overwrites what a killed one left there."""
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
    """Sources that fetch the file `name` from `remote`, one for each attempt; none if there is no remote."""
    if remote is None:
        return []
    url = Location(remote) / name
    return [(f"{url} (attempt {n + 1})", partial(_fetch, url, _aside(path), n)) for n in range(FETCH_ATTEMPTS)]


def _fetch(url: Location, aside: Path, attempt: int) -> bytes:
    if attempt:
        time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
    try:
        aside.unlink(missing_ok=True)  # if a file exists, streaming does not fetch it
        CloudDownloader.direct_download(url.typed, str(aside), DOWNLOAD_TIMEOUT_S)
        return aside.read_bytes()
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path, wait: bool) -> Iterator[bool]:
    """Hold this node's lock for writing a file. Yields False if another process holds it and `wait` is False.

    The lock is a local file of the node, because some shared file systems have no locks. It ends with the process that
    holds it.
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
        os.close(file)  # its holder has removed the file meanwhile, so this lock is worthless
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)

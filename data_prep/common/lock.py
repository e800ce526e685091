"""A lock by which only one process at a time writes an output.

The lock file `.NAME.lock` lies beside the output, so that it is neither published nor removed with the output. The file
names the process that holds the lock, and that process removes it at the end. The lock itself is a record lock of the
kernel, which ends with its process: a lock file that a killed process leaves behind blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.redaction import redacted

INSIDE = ".lock"  # lock file inside a folder whose parent is not writable, such as a mount point
TRIES, WAIT_S = 3, 0.1  # the holder may be about to write its name or to remove its lock
COMMAND_CHARACTERS = 500
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_HELD_BY_OTHERS = (errno.EACCES, errno.EAGAIN)

_held: dict[Path, int] = {}  # the lock files of this process and their descriptors


@contextmanager
def hold(output: Path, way_out: str = "give another --out") -> Iterator[None]:
    """Hold the lock of an output, so that no other process, on any host with the same disk, writes it meanwhile.

    The lock is a record lock and not flock(2), because the data loaders' workers would inherit the latter and keep it
    after their rank was killed. A record lock is lost when its process closes any descriptor of the file, so no other
    code may open the lock file.

    Args:
        output: folder or file, which need not exist; links and relative paths to it count as the same output. Missing
            parent folders are made, and removed again if they stay empty.
        way_out: what the user can do other than wait, for the message.

    Raises:
        BadInput: another process (named in the message) or another thread of this process holds the lock, or the lock
            file cannot be written.
    """
    place = Path(os.path.realpath(output))
    made = [folder for folder in place.parents if not os.path.exists(folder)]  # noqa: PTH110 (raises where not allowed)
    lock: Path | None = None
    try:
        lock = _take(place, output, way_out)
        yield
    finally:
        if lock:
            _give_back(lock)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:
                break  # the folder is not empty


def check_held(output: Path) -> None:
    """Refuse to publish an output if its lock file was removed, because another process may have written the output.

    Raises:
        BadInput: this process locked the output, but the lock file is missing or belongs to another process.
    """
    for lock in _places(Path(os.path.realpath(output))):
        if lock in _held and not _is_there(lock, _held[lock]):
            raise BadInput(
                f"{lock} was removed while this command ran, so that another command may have written into {output}: "
                "nothing is published. See that no other command writes it, and type the same command"
            )


def _places(place: Path) -> list[Path]:
    beside = [place.with_name(f".{place.name}.lock")] if place.name else []
    return [*beside, place / INSIDE]


def _take(place: Path, output: Path, way_out: str) -> Path:
    """Lock the lock file of an output and return its path."""
    lock, *others = _places(place)
    tries = 0
    while True:
        if lock in _held:
            raise BadInput(f"this process is writing {output} already; {way_out}")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno == errno.ENOENT and (tries := tries + 1) < TRIES:
                continue  # another command has just ended and removed the empty folder
            if error.errno in _NOT_WRITABLE and place.is_dir() and others and not lock.exists():
                lock, *others = others
                continue
            # FileExistsError means that one of the parents is a file.
            why = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
            raise BadInput(f"{output} cannot be locked, because {lock} cannot be written: {why}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 2 * COMMAND_CHARACTERS, 0).decode(errors="replace").strip()
            if error.errno not in _HELD_BY_OTHERS:
                print(f"warning: {output} cannot be locked ({error.strerror}): write it with one command at a time")
                _held[lock] = descriptor
                return lock
            os.close(descriptor)
            tries += 1
            if tries >= TRIES:
                raise BadInput(
                    f"another process is writing {output} ({holder or 'which did not say its name'}); wait until it "
                    f"ends, or end it, or {way_out}"
                ) from None
            time.sleep(WAIT_S)
            continue
        if _is_there(lock, descriptor):
            _held[lock] = descriptor
            with suppress(OSError):  # the disk may be full; the lock is held all the same, without a name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _who().encode(), 0)
            return lock
        os.close(descriptor)  # the previous holder removed this lock file meanwhile


def _is_there(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _give_back(lock: Path) -> None:
    descriptor = _held.pop(lock)
    if _is_there(lock, descriptor):
        lock.unlink(missing_ok=True)
    os.close(descriptor)


def _who() -> str:
    since = datetime.now(timezone.utc).isoformat(" ", "seconds")
    command = redacted(shlex.join([Path(sys.executable).name, *sys.argv]))
    shown = command if len(command) <= COMMAND_CHARACTERS else f"{command[:COMMAND_CHARACTERS]} …"
    return f"pid {os.getpid()} on host {socket.gethostname()} since {since}: {shown}\n"

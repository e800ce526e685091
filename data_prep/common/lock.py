"""One process at a time writes an output.

The lock is a file beside the output, `.NAME.lock`, so that it is neither in what is published nor removed with it. It
says who holds it, and is gone when they are done. The lock itself is the kernel's and ends with its process, however
that ends: what a killed one leaves there holds nobody up.
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

INSIDE = ".lock"  # of a folder beside which nothing can be written, such as a mount point
TRIES, WAIT_S = 3, 0.1  # a holder may just be writing its name, or removing its lock
COMMAND_CHARACTERS = 500
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_HELD_BY_OTHERS = (errno.EACCES, errno.EAGAIN)

_held: dict[Path, int] = {}  # the lock files of this process and their descriptors


@contextmanager
def hold(output: Path, way_out: str = "give another --out") -> Iterator[None]:
    """Keep every other process, on any host that sees the disk, from writing an output meanwhile.

    A record lock, and not flock(2), which the loaders' workers would inherit and keep after their rank was killed. It
    is lost if this process closes any descriptor of the file, so nothing else opens it.

    Args:
        output: a folder or file, there or not; links and relative paths to it are the same output. Folders above it
            that are missing are made, and removed if nothing came into them.
        way_out: what to do beside waiting, for the message.

    Raises:
        BadInput: another process, which it names, or another thread of this one writes it; or it cannot be written.
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
                break  # something came into it


def check_held(output: Path) -> None:
    """Refuse to publish what another process may have written into, as someone has removed the lock meanwhile.

    Raises:
        BadInput: this process had locked the output, and the lock file is gone or another's.
    """
    for lock in _places(Path(os.path.realpath(output))):
        if lock in _held and not _is_there(lock, _held[lock]):
            raise BadInput(
                f"{lock} was removed while this command ran, so that another may have written into {output}: nothing "
                "is published. See that no other command writes it, and type the same command"
            )


def _places(place: Path) -> list[Path]:
    beside = [place.with_name(f".{place.name}.lock")] if place.name else []
    return [*beside, place / INSIDE]


def _take(place: Path, output: Path, way_out: str) -> Path:
    """The lock file, locked."""
    lock, *others = _places(place)
    tries = 0
    while True:
        if lock in _held:
            raise BadInput(f"this very process is writing {output} already; {way_out}")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno == errno.ENOENT and (tries := tries + 1) < TRIES:
                continue  # another command that is done has just removed the folder, as nothing had come into it
            if error.errno in _NOT_WRITABLE and place.is_dir() and others and not lock.exists():
                lock, *others = others
                continue
            why = (
                os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
            )  # a file above it
            raise BadInput(f"{output} cannot be locked, as {lock} cannot be written: {why}") from None
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
            with suppress(OSError):  # of a full disk: it is held, without a name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _who().encode(), 0)
            return lock
        os.close(descriptor)  # its holder was just removing it


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

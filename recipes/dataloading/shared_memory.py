"""One run of a machine at a time claims its names in Streaming's shared memory."""

from __future__ import annotations

import atexit
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import streaming.base.shared.prefix as shared_names
from composer.utils import dist
from streaming import StreamingDataset
from streaming.base.shared import SharedMemory

from data_prep.common.errors import BadInput

MACHINE_MEMORY = Path("/dev/shm")  # where there is none, the folder for temporary files


@contextmanager
def registering() -> Iterator[None]:
    """Let one run of a machine at a time claim its names in shared memory.

    StreamingDataset looks for a free name and takes it a moment later: of two runs that start together on one machine,
    one would end with FileExistsError.

    In its search it opens the names of others, and those that killed runs left, twelve files for each, and keeps them
    open to the process' end: after some forty kills more than the 1,024 that a process may open by default. Here it
    lets go of them (mosaicml-streaming 0.13.0, base/shared/memory.py: the handler at exit holds them).

    All machines of a run are claimed or none: of two runs on the same two machines, each would wait for the other's.
    """
    shared_names.SharedMemory = _let_go_when_looked_at
    while not all(dist.all_gather_object((lock := _claim_machine()) is not None)):
        if lock is not None:
            os.close(lock)
        time.sleep(random.SystemRandom().uniform(0.1, 1))  # not the generator that the run has seeded
    try:
        yield
    finally:
        shared_names.SharedMemory = SharedMemory
        os.close(cast(int, lock))


def remove_locks_at_exit(dataset: StreamingDataset) -> None:
    """Let the machine's first rank remove the lock files of a dataset when it ends.

    StreamingDataset removes its shared memory and leaves those. It then takes their names for taken, and asks for each
    of them at each start: for seconds, on a machine that has had 4,000 runs.
    """
    if dist.get_local_rank() == 0:
        barrier, cache = dataset._shared_barrier.filelock_path, dataset._cache_filelock_path
        for path in (barrier, cache):
            atexit.register(Path(path).unlink, missing_ok=True)


def _claim_machine() -> int | None:
    """A descriptor of the lock of this machine's shared memory, held by its first rank; None: another run's.

    Raises:
        BadInput: the lock is a file that another user does not let this one read.
    """
    path = (MACHINE_MEMORY if MACHINE_MEMORY.is_dir() else Path(tempfile.gettempdir())) / "token-shards.lock"
    lock = _open_for_all_users(path)
    try:
        if dist.get_local_rank() == 0:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _open_for_all_users(path: Path) -> int:
    """Open a file that any user of this machine may have made, and all may read, whatever the maker's umask."""
    if not path.exists():
        made, aside = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        os.fchmod(made, 0o644)
        os.close(made)
        with suppress(FileExistsError):
            os.link(aside, path)  # it has its name once all may read it
        Path(aside).unlink()
    try:
        return os.open(path, os.O_RDONLY)  # with O_CREAT the kernel refuses the file of another user here
    except PermissionError:
        raise BadInput(
            f"{path}, by which the runs of this machine take turns, belongs to another user (id {path.stat().st_uid}), "
            "who alone may read it; have it removed, or its mode changed to 644"
        ) from None


def _let_go_when_looked_at(name: str, create: bool, size: int = 0) -> SharedMemory:
    return SharedMemory(name, create, size, auto_cleanup=create)

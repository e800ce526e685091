"""Let the runs on one machine register their names in StreamingDataset's shared memory one after another."""

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

MACHINE_MEMORY = Path("/dev/shm")  # if it does not exist, the folder for temporary files is used


@contextmanager
def registering() -> Iterator[None]:
    """Let the runs on one machine register their names in shared memory one after another.

    StreamingDataset searches for a free name and takes it a moment later. If two runs start at the same time on one
    machine, one of them could end with FileExistsError.

    During the search it opens the names of other runs, also of killed ones, twelve files for each, and keeps them open
    until the process ends (mosaicml-streaming 0.13.0, base/shared/memory.py: the handler at exit keeps them). After
    about forty killed runs, that is more than the 1,024 files that a process may open by default. Here those files are
    closed again.

    A run locks either all of its machines or none. Otherwise two runs on the same two machines could each lock one and
    wait for the other.
    """
    shared_names.SharedMemory = _let_go_when_looked_at
    while not all(dist.all_gather_object((lock := _claim_machine()) is not None)):
        if lock is not None:
            os.close(lock)
        time.sleep(random.SystemRandom().uniform(0.1, 1))  # the run's own generator must not be advanced
    try:
        yield
    finally:
        shared_names.SharedMemory = SharedMemory
        os.close(cast(int, lock))


def remove_locks_at_exit(dataset: StreamingDataset) -> None:
    """Make the first rank of a machine remove the lock files of a dataset when it ends.

    StreamingDataset removes its shared memory, but leaves its lock files. At each later start it would test each of
    their names, which takes seconds on a machine that has had 4,000 runs.
    """
    if dist.get_local_rank() == 0:
        barrier, cache = dataset._shared_barrier.filelock_path, dataset._cache_filelock_path
        for path in (barrier, cache):
            atexit.register(Path(path).unlink, missing_ok=True)


def _claim_machine() -> int | None:
    """Let the first rank of a machine lock its shared memory. Return the file descriptor; None if another run holds it.

    Raises:
        BadInput: the lock file belongs to another user, and this user may not read it.
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
    """Open the lock file, which any user may have made. It is made readable for all users, whatever the umask is."""
    if not path.exists():
        made, aside = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        os.fchmod(made, 0o644)
        os.close(made)
        with suppress(FileExistsError):
            os.link(aside, path)  # the file gets its name after all users may read it
        Path(aside).unlink()
    try:
        return os.open(path, os.O_RDONLY)  # with O_CREAT, the kernel would refuse another user's file in this folder
    except PermissionError:
        raise BadInput(
            f"{path}, the lock file for runs on this machine, belongs to another user (id {path.stat().st_uid}), and "
            "only that user may read it; ask that user to remove it, or to change its mode to 644"
        ) from None


def _let_go_when_looked_at(name: str, create: bool, size: int = 0) -> SharedMemory:
    return SharedMemory(name, create, size, auto_cleanup=create)

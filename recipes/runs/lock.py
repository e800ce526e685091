"""One process at a time runs a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.common.errors import BadInput
from recipes.runs.names import LOCK


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other process from running it. The lock ends with this process, however it ends.

    A record lock, and not flock(2), which the loaders' workers would inherit and keep after their rank was killed. It
    is lost if this process closes any descriptor of the file, so nothing else opens it.

    Raises:
        BadInput: another process runs it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise BadInput(f"run_dir = {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise BadInput(
                    f"another process ({file.read().strip()}) is running {folder}; let it end or end it, or give this "
                    "run a name of its own (run_name=…)"
                ) from None
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): start this run only once at a time", flush=True
            )
        else:
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
            file.flush()
        yield


@contextmanager
def held_by_rank_zero(folder: Path) -> Iterator[None]:
    """`hold`, by rank 0. All ranks must enter it.

    Raises:
        BadInput: as `hold`, on all ranks.
    """
    from recipes.distributed.rank_zero import on_rank_zero

    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(hold(folder)))
        yield

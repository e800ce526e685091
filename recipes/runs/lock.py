"""The lock of a run folder: only one process at a time may run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.lock import hold


@contextmanager
def running(folder: Path, way_out: str = "give this run a name of its own (run_name=…)") -> Iterator[None]:
    """Make the folder of a run or of several runs, and keep every other process from running it.

    Args:
        folder: folder to make and lock.
        way_out: what the user can do instead of waiting, for the message.

    Raises:
        BadInput: another process runs the folder, or the folder cannot be made.
    """
    with hold(folder, way_out):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cannot make {folder}: {error.strerror}") from None
        yield


@contextmanager
def held_by_rank_zero(folder: Path) -> Iterator[None]:
    """Let rank 0 enter `running`. All ranks must call it.

    Raises:
        BadInput: on all ranks, as in `running`.
    """
    from recipes.distributed.rank_zero import on_rank_zero

    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(running(folder)))
        yield

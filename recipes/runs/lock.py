"""One process at a time runs a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.lock import hold


@contextmanager
def running(folder: Path, way_out: str = "give this run a name of its own (run_name=…)") -> Iterator[None]:
    """Make the folder of a run, or of several, and keep every other process from running it.

    Args:
        folder: the folder.
        way_out: what to do beside waiting, for the message.

    Raises:
        BadInput: another process runs it, or the folder cannot be made.
    """
    with hold(folder, way_out):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cannot make {folder}: {error.strerror}") from None
        yield


@contextmanager
def held_by_rank_zero(folder: Path) -> Iterator[None]:
    """`running`, by rank 0. All ranks must enter it.

    Raises:
        BadInput: as `running`, on all ranks.
    """
    from recipes.distributed.rank_zero import on_rank_zero

    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(running(folder)))
        yield

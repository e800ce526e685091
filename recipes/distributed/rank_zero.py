"""What rank 0 does for all ranks, however long it takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from composer.utils import dist

from recipes.distributed import hang_detector

# Ranks that wait hear from rank 0 this often: one collective that waited for gigabytes from afar would run into the
# time limit of the process group, and a signal is answered between two of them.
POLL_S = 5.0

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on all ranks. All ranks must call it.

    Raises:
        Exception: what the action raised, on all ranks.
    """
    if dist.get_global_rank() != 0:
        return outcome_of(None, hang_detector.alive)
    with ThreadPoolExecutor(1) as pool:
        return outcome_of(pool.submit(action), hang_detector.alive)


def outcome_of(future: Future[Any] | None, still_working: Callable[[str], None] = lambda what: None) -> Any:
    """The outcome of rank 0's future on all ranks, None if there is none. All ranks must call it.

    Args:
        future: what rank 0 waits for; of the other ranks it is not looked at.
        still_working: called each time that all ranks have heard that it is not done yet.

    Raises:
        Exception: what the future raised, on all ranks.
    """
    while True:
        shared: list[Any] = [None]  # not done yet, or the result and what was raised
        if dist.get_global_rank() == 0:
            if future is None:
                shared = [(None, None)]
            elif wait([future], POLL_S).done:
                error = future.exception()
                shared = [(None if error else future.result(), error)]
        dist.broadcast_object_list(shared)
        still_working("rank 0 did something for all")
        if shared[0] is not None:
            result, error = shared[0]
            if error is not None:
                raise error
            return result

"""Run an action on rank 0 for all ranks, however long it takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from composer.utils import dist

from recipes.distributed import hang_detector

# Rank 0 sends a message to the waiting ranks this often. A single collective that waited for a long download would
# exceed the timeout of the process group. Between two messages, signals can be handled.
POLL_S = 5.0

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on all ranks. All ranks must call it.

    Raises:
        Exception: on all ranks: the exception that the action raised.
    """
    if dist.get_global_rank() != 0:
        return outcome_of(None, hang_detector.alive)
    with ThreadPoolExecutor(1) as pool:
        return outcome_of(pool.submit(action), hang_detector.alive)


def outcome_of(future: Future[Any] | None, still_working: Callable[[str], None] = lambda what: None) -> Any:
    """Return the result of rank 0's future on all ranks; None if there is no future. All ranks must call it.

    Args:
        future: future that rank 0 waits for; the other ranks ignore this argument.
        still_working: function that is called on all ranks after each message from rank 0.

    Raises:
        Exception: on all ranks: the exception that the future raised.
    """
    while True:
        shared: list[Any] = [None]  # None: not done yet; otherwise the result and the exception
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

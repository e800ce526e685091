"""Examples drawn by hypothesis: a few that are always the same in `make test`, others for minutes in `make chaos`."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mutations import Draw

Find = Callable[[Draw], list[str]]  # draws an example and says what is wrong with what came of it
CHAOS_S = 600.0  # for each reader


def hunt(find: Find, examples: int) -> None:
    """Fail at the first of so many examples that has a problem; they are the same each time."""
    _given(find, examples, derandomize=True)()


def hunt_on(find: Find, seconds: float = CHAOS_S, batch: int = 50) -> str:
    """Examples of ever new seeds for so long; fails at the end with all problems, each with its seed.

    Returns:
        How many examples, and of which seeds.
    """
    begin_s, failures, examples, number = time.monotonic(), [], 0, 0

    def counted(draw: Draw) -> list[str]:
        nonlocal examples
        examples += 1
        return find(draw)

    while time.monotonic() - begin_s < seconds:
        try:
            seed(number)(_given(counted, batch, derandomize=False))()
        except AssertionError as error:
            failures.append(f"seed {number}, of {batch} examples: {error}")
        number += 1
    said = f"{examples} examples of the seeds 0 to {number - 1}, {len(failures)} failures"
    print(said, *failures, sep="\n")
    assert not failures, said
    return said


def _given(find: Find, examples: int, derandomize: bool) -> Callable[[], None]:
    @settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType] (an enumeration)
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        found = find(data.draw)
        assert not found, "\n".join(found)

    return one

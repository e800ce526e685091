"""Examples drawn by hypothesis: a few that are always the same in `make test`, others for minutes in `make chaos`."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mutations import Draw

Find = Callable[[Draw], list[str]]  # draws an example and says what is wrong with what came of it
CHAOS_S = 600.0  # for each reader, whatever the number of its forms
BATCH = 10  # examples of one seed
AGAIN = "HUNT_AGAIN"  # FORM=SEED, as a failure says it: only that is tried


def hunt(find: Find, examples: int) -> None:
    """Fail at the first of so many examples that has a problem; they are the same each time."""
    _given(find, examples, derandomize=True)()


def hunt_on(forms: Mapping[str, Find], seconds: float = CHAOS_S, batch: int = BATCH) -> str:
    """Examples of ever new seeds for so long, of each form in turn; fails at the end with all problems.

    Each is named by its form and seed, and the variable HUNT_AGAIN tries that alone.

    Args:
        forms: what is read, such as a kind of file -> its examples; each has its turn once at the least.
        seconds: for all of them together.
        batch: examples of a form before it is the turn of the next.

    Returns:
        How many examples of which form, and of which seeds.
    """
    begin_s, failures, turns, turn = time.monotonic(), [], itertools.count(), 0
    examples = Counter[str]()
    form, _, number = os.environ.get(AGAIN, "").rpartition("=")
    if form in forms:
        begin_s, forms, turns = 0.0, {form: forms[form]}, itertools.count(int(number))
    for turn in turns:
        form = list(forms)[turn % len(forms)]

        def counted(draw: Draw, form: str = form) -> list[str]:
            examples[form] += 1
            return forms[form](draw)

        try:
            seed(turn)(_given(counted, batch, derandomize=False))()
        except AssertionError as error:
            failures.append(f"{AGAIN}='{form}={turn}' tries it again, of {batch} examples: {error}")
        if time.monotonic() - begin_s >= seconds and len(examples) == len(forms):
            break
    counts = ", ".join(f"{form} {count}" for form, count in sorted(examples.items()))
    said = f"{examples.total()} examples ({counts}) of the seeds 0 to {turn}, {len(failures)} failures"
    print(said, *failures, sep="\n")
    assert not failures, "\n".join([said, *failures])
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

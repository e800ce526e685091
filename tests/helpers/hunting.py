"""Examples drawn by hypothesis: a few fixed ones in `make test`, and new ones for minutes in `make chaos`."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mutations import Draw

Find = Callable[[Draw], list[str]]  # draws an example, and returns the problems that it causes
CHAOS_S = 600.0  # for each reader, for any number of its forms
BATCH = 10  # examples of one seed
AGAIN = "HUNT_AGAIN"  # FORM=SEED, as printed for a failure: only this seed is tried


def hunt(find: Find, examples: int) -> None:
    """Fail at the first of a number of examples that has a problem; the examples are always the same."""
    _given(find, examples, derandomize=True)()


def hunt_on(forms: Mapping[str, Find], seconds: float = CHAOS_S, batch: int = BATCH) -> str:
    """Try examples of new seeds for some time, of each form in turn; at the end, fail with all problems.

    Each problem is named by its form and seed; with the variable HUNT_AGAIN only that example is tried.

    Args:
        forms: form, such as a kind of file -> function that draws its examples; each form has at least one turn.
        seconds: for all forms together.
        batch: examples of one form before the next form has its turn.

    Returns:
        Number of examples of each form, and the seeds.
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
    summary = f"{examples.total()} examples ({counts}) of the seeds 0 to {turn}, {len(failures)} failures"
    print(summary, *failures, sep="\n")
    assert not failures, "\n".join([summary, *failures])
    return summary


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
        problems = find(data.draw)
        assert not problems, "\n".join(problems)

    return one

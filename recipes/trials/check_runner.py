"""Run checks on all ranks, and print the result of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.world import world


class Checks:
    """Runs checks on all ranks, prints a line for each on rank 0, and counts those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.rank = world().rank

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Run one check. All ranks must call it. `check` returns its result as text, or raises an error.

        Returns:
            Whether it passed on all ranks.
        """
        start_s = time.monotonic()
        try:
            result, problem = check(), ""
        except (BadInput, Unavailable) as error:
            result, problem = "", str(error)
        problems = {text: rank for rank, text in reversed(list(enumerate(gathered(problem)))) if text}
        if self.rank == 0:
            took = f"({time.monotonic() - start_s:.1f} s)"
            print(f"{name:<14} {'FAILED' if problems else 'ok'}{'' if problems else f'  {result}'} {took}", flush=True)
            for text, rank in problems.items():
                print("\n".join(f"  rank {rank}: {line}" for line in text.splitlines()), flush=True)
        if problems:
            self.failed.append(name)
        return not problems


def gathered(value: Any) -> list[Any]:
    """The values of all ranks; before the ranks are connected, only the value of this rank."""
    if world().size == 1:
        return [value]
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    from composer.utils import dist

    return dist.all_gather_object(value)

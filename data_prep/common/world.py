"""The ranks that a launcher has started, as it tells each of them in its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """This process among the ranks; without a launcher, the only one.

    Attributes:
        size: ranks.
        rank: number of this process, from 0.
        local_size: ranks on this node.
        local_rank: number of this process among these, from 0.
        launched: whether a launcher has started it.
    """

    size: int
    rank: int
    local_size: int
    local_rank: int
    launched: bool


def world() -> World:
    """What the environment says now."""

    def number(name: str, alone: int) -> int:
        return int(os.environ.get(name, alone))

    return World(
        size=number("WORLD_SIZE", 1),
        rank=number("RANK", 0),
        local_size=number("LOCAL_WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        launched="WORLD_SIZE" in os.environ,
    )

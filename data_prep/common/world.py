"""The ranks of a run, read from the environment variables that the launcher sets for each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks. Without a launcher, this process is the only rank.

    Attributes:
        size: number of ranks.
        rank: number of this process among all ranks, from 0.
        local_size: number of ranks on this node.
        local_rank: number of this process among the ranks of its node, from 0.
        launched: whether a launcher started this process.
    """

    size: int
    rank: int
    local_size: int
    local_rank: int
    launched: bool


def world() -> World:
    """Read the environment variables of the launcher as they are now."""

    def number(name: str, alone: int) -> int:
        return int(os.environ.get(name, alone))

    return World(
        size=number("WORLD_SIZE", 1),
        rank=number("RANK", 0),
        local_size=number("LOCAL_WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        launched="WORLD_SIZE" in os.environ,
    )

"""How long the tests wait: what a start of a training process takes here is measured once, and is the unit.

A bound on a hang is many such starts, so a slow or busy machine reaches none. A timeout of the code under test that has
to fire is a few of them, so that it does not fire elsewhere before it is due.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

NAME = "TEST_START_S"  # hands the measurement to workers of pytest and to what tests start; set by hand, it is believed
OF_A_RUN = (  # what it imports
    "recipes.training.trainer", "recipes.checkpointing.resume", "recipes.distributed.fsdp",
    "recipes.finetuning.heads",
)  # fmt: skip
COLD_S = 8.0  # a start that takes longer may have compiled Python, or read a cold disk
FASTEST_S = 2.0  # as if a machine were no faster than that: a start is not all that a test waits for


@functools.cache
def start_s() -> float:
    """Seconds that Python takes to start and to import what a training run imports."""
    if NAME not in os.environ:
        found_s = measured_s()
        if found_s > COLD_S:
            found_s = min(found_s, measured_s())
        os.environ[NAME] = f"{max(FASTEST_S, found_s):.2f}"
    return float(os.environ[NAME])


def measured_s() -> float:
    begin_s = time.monotonic()
    command = [sys.executable, "-c", f"import {', '.join(OF_A_RUN)}"]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    return time.monotonic() - begin_s


def patience_s(starts: float = 10) -> float:
    """Seconds after which something hangs that takes about as long as so many starts: ten times that."""
    return 10 * starts * start_s()

"""How long the tests wait: the unit is the time that a training process takes to start, measured once.

A limit against hangs is many such starts, so that a slow or busy machine does not reach it. A timeout of the tested
code that must pass is a few starts, so that it does not pass too early elsewhere.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

# Passes the measurement to pytest's workers and to processes of the tests; a value that a user sets is used.
NAME = "TEST_START_S"
OF_A_RUN = (  # what a training process imports
    "recipes.training.trainer", "recipes.checkpointing.resume", "recipes.distributed.fsdp",
    "recipes.finetuning.heads",
)  # fmt: skip
COLD_S = 8.0  # a longer start may have compiled Python or read a cold disk
FASTEST_S = 2.0  # lower limit of the unit, because a test waits for more than a start


@functools.cache
def start_s() -> float:
    """Seconds that Python takes to start and to import the modules of a training run."""
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
    """Time limit in seconds for work that takes about as long as `starts` starts: ten times that."""
    return 10 * starts * start_s()

"""A process that hangs between the meeting of the ranks and its first batch writes its stack and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import warm
from data_prep.common.exit_codes import STALLED
from project import ROOT

SCRIPT = """
import sys, time
from pathlib import Path
from recipes.distributed import hang_detector

folder, what = Path(sys.argv[1]), sys.argv[2]
with hang_detector.watching_the_start(folder, 0.2, 0.4 if what != "patient" else 600):
    if what == "working":
        for _ in range(20):
            time.sleep(0.1)
            hang_detector.alive("rank 0 did something for all")
    elif what == "patient":
        time.sleep(2)
    else:
        time.sleep(600)
time.sleep(1)  # nobody watches any more
"""


def run(folder: Path, scenario: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), scenario]
    return warm.run(command, ROOT)


def test_a_start_that_hangs_ends_with_its_stacks(tmp_path: Path) -> None:
    done = run(tmp_path, "hangs")
    assert done.returncode == STALLED and "since the ranks met; stacks in" in done.stderr
    text = (tmp_path / "stall-rank0.txt").read_text()
    assert "nothing for" in text and "in <module>" in text, "where it stands"


def test_a_run_folder_that_is_not_there_is_no_reason_to_say_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "absent", "hangs")
    assert done.returncode == STALLED and "in <module>" in done.stderr


@pytest.mark.parametrize("scenario", ["working", "patient"])
def test_who_waits_for_rank_0_is_alive(tmp_path: Path, scenario: str) -> None:
    """Rank 0 reports progress, because ranks may wait for each other longer than a batch takes."""
    assert (done := run(tmp_path, scenario)).returncode == 0, done.stderr

"""A process that shows no sign of life for too long says where it stands, and ends.

One detector a process, as it ends the process: from the moment when the ranks have met to the end of training.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.common.exit_codes import RESUMES, STALLED
from data_prep.common.world import world

_detector: _Detector | None = None


class _Detector(threading.Thread):
    """Looks at the time of the last sign of life until it is told to stop."""

    def __init__(self, folder: Path, timeout_s: float, what: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.timeout_s = folder, timeout_s
        self.rank = world().rank
        self.stopped = threading.Event()
        self.alive(what)

    def alive(self, what: str) -> None:
        self.last, self.last_s = what, time.monotonic()

    def run(self) -> None:
        while not self.stopped.wait(min(1.0, self.timeout_s / 4)):
            idle_s = time.monotonic() - self.last_s
            if idle_s > self.timeout_s and not self.stopped.is_set():
                self._end(idle_s)

    def _end(self, idle_s: float) -> None:
        path = self.folder / f"stall-rank{self.rank}.txt"
        message = (
            f"error: rank {self.rank} on {socket.gethostname()}: nothing for {idle_s:.0f} s since {self.last}; stacks "
            f"in {path}. A rank, a disk or the network stands still; {RESUMES}"
        )
        print(message, file=sys.stderr, flush=True)
        try:
            with path.open("w", encoding="utf-8") as file:
                print(message, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:  # the run's folder is not there yet, or is what does not answer
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(STALLED)


def start(folder: Path, timeout_s: float, what: str) -> None:
    """From now on, end the process when nothing is heard for `timeout_s`; in the place of what was watched before.

    Args:
        folder: the run folder, which gets `stall-rank0.txt`.
        timeout_s: the longest between two signs of life.
        what: has just happened.
    """
    global _detector
    stop()
    _detector = _Detector(folder, timeout_s, what)
    _detector.start()


def alive(what: str) -> None:
    """A sign of life, if somebody watches."""
    if _detector:
        _detector.alive(what)


def stop() -> None:
    """No longer watch."""
    global _detector
    if _detector:
        _detector.stopped.set()
    _detector = None


@contextmanager
def watching_the_start(folder: Path, stall_timeout_s: float | None, connect_timeout_s: float) -> Iterator[None]:
    """Watch from here to the first batch, from which on callbacks.HangDetector does; whoever waits for rank 0 is alive.

    Args:
        folder: the run folder.
        stall_timeout_s: the longest that a batch may take; None: nothing is watched.
        connect_timeout_s: ranks may wait as long for each other here, too: one draws the weights of all.
    """
    if stall_timeout_s:
        start(folder, max(stall_timeout_s, connect_timeout_s), "the ranks met")
    try:
        yield
    finally:
        stop()

"""Hang detector: a process without a sign of life for too long writes the stacks of its threads and ends.

Each process has at most one detector, from the moment when the ranks are connected to the end of training.
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
    """Thread that checks the time of the last sign of life until it is stopped."""

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
        except OSError:  # the run folder does not exist yet, or its disk causes the hang
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(STALLED)


def start(folder: Path, timeout_s: float, what: str) -> None:
    """Start a detector that ends the process after `timeout_s` without a sign of life. It replaces an earlier one.

    Args:
        folder: the run folder, into which a file such as `stall-rank0.txt` is written.
        timeout_s: longest time between two signs of life, in seconds.
        what: event that has just happened, for the message.
    """
    global _detector
    stop()
    _detector = _Detector(folder, timeout_s, what)
    _detector.start()


def alive(what: str) -> None:
    """Give a sign of life. Does nothing if there is no detector."""
    if _detector:
        _detector.alive(what)


def stop() -> None:
    """Stop the detector."""
    global _detector
    if _detector:
        _detector.stopped.set()
    _detector = None


@contextmanager
def watching_the_start(folder: Path, stall_timeout_s: float | None, connect_timeout_s: float) -> Iterator[None]:
    """Context with a detector for the time before the first batch. Later, callbacks.HangDetector takes over.

    A rank that waits for rank 0 gives signs of life.

    Args:
        folder: the run folder.
        stall_timeout_s: longest time of a batch, in seconds; None: no detector.
        connect_timeout_s: a further lower bound of the timeout, since ranks may also wait here while one rank draws the
            weights of all.
    """
    if stall_timeout_s:
        start(folder, max(stall_timeout_s, connect_timeout_s), "the ranks met")
    try:
        yield
    finally:
        stop()

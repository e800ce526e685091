"""A run that stands still says where, and ends."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from composer import Callback, Event, Logger, State
from composer.utils import dist

from recipes.exit_codes import GO_ON, STALLED


class StallWatch(Callback):
    """Ends the process when nothing has happened for too long, with the stacks of all its threads.

    Each rank watches itself. A loader that delivers nothing, or one rank that hangs and the others that wait for it,
    stop all ranks' events, so each writes its own `stall-rank0.txt` into the run folder.

    Args:
        folder: the run folder.
        timeout_s: the longest that a batch, an evaluation batch or a save may take.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.folder = folder
        self.timeout_s = timeout_s
        self._last_event, self._last_event_s = "start", time.monotonic()
        self._watching = threading.Event()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Any event is a sign of life; between fit's start and end their absence is not."""
        self._last_event, self._last_event_s = f"{event.value} of batch {int(state.timestamp.batch)}", time.monotonic()
        if event == Event.FIT_START:
            self._watching.set()
            threading.Thread(target=self._watch, args=(dist.get_global_rank(),), daemon=True).start()
        elif event == Event.FIT_END:
            self._watching.clear()

    def close(self, state: State, logger: Logger) -> None:
        """No longer watch."""
        self._watching.clear()

    def _watch(self, rank: int) -> None:
        while self._watching.is_set():
            time.sleep(min(1.0, self.timeout_s / 4))
            idle_s = time.monotonic() - self._last_event_s
            if idle_s > self.timeout_s and self._watching.is_set():
                path = self.folder / f"stall-rank{rank}.txt"
                message = (
                    f"error: rank {rank} on {socket.gethostname()}: nothing for {idle_s:.0f} s since "
                    f"{self._last_event}; stacks in {path}. A rank, a disk or the network stands still; {GO_ON}"
                )
                print(message, file=sys.stderr, flush=True)
                with path.open("w", encoding="utf-8") as file:
                    print(message, file=file, flush=True)
                    faulthandler.dump_traceback(file, all_threads=True)
                os._exit(STALLED)

"""Hang detector: a run without a batch for `stall_timeout_s` writes the stacks of its threads, and ends."""

from __future__ import annotations

from pathlib import Path

from composer import Callback, Event, Logger, State

from recipes.distributed import hang_detector


class HangDetector(Callback):
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

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Any event is a sign of life; between the first batch and fit's end their absence is not."""
        what = f"{event.value} of batch {int(state.timestamp.batch)}"
        if event == Event.FIT_START:
            hang_detector.start(self.folder, self.timeout_s, what)
        elif event == Event.FIT_END:
            hang_detector.stop()
        else:
            hang_detector.alive(what)

    def close(self, state: State, logger: Logger) -> None:
        """No longer watch."""
        hang_detector.stop()

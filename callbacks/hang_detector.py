"""Hang detector: if a run makes no progress for `stall_timeout_s`, it writes the stacks of its threads and ends."""

from __future__ import annotations

from pathlib import Path

from composer import Callback, Event, Logger, State

from recipes.distributed import hang_detector


class HangDetector(Callback):
    """Ends the process when no event of the Trainer has come for too long, and writes the stacks of all threads.

    Each rank watches itself. If a loader delivers nothing, or if one rank hangs and the others wait for it, the events
    stop on all ranks, and each rank writes a file of its own, such as `stall-rank0.txt`, into the run folder.

    Args:
        folder: the run folder.
        timeout_s: longest time, in seconds, that a batch, an evaluation batch or a save may take.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.folder = folder
        self.timeout_s = timeout_s

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Take any event as a sign of life. The watch lasts from the start to the end of training."""
        step = f"{event.value} of batch {int(state.timestamp.batch)}"
        if event == Event.FIT_START:
            hang_detector.start(self.folder, self.timeout_s, step)
        elif event == Event.FIT_END:
            hang_detector.stop()
        else:
            hang_detector.alive(step)

    def close(self, state: State, logger: Logger) -> None:
        """Stop the watch."""
        hang_detector.stop()

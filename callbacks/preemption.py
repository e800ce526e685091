"""A run that is told to leave: all ranks agree, save, and say that they want to come back."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from types import FrameType

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from callbacks.checkpoint_writer import CheckpointWriter
from data_prep.common.exit_codes import INTERRUPTED
from data_prep.common.world import world
from recipes.runs.signals import STOP_SIGNALS, Stopped, answer_stop_signals

# A launcher forwards what Slurm has sent to its ranks already, and answers Ctrl-C, which reaches them too, with
# SIGTERM: signals this close together are one. Of Ctrl-C, which nobody repeats but the user, only a bounce is.
SAME_SIGNAL_S = 3.0
SAME_INTERRUPT_S = 0.5

INTERRUPTED_NOW = """
interrupted: this batch is finished and saved; Ctrl-C again leaves at once, with what came after the last save lost
"""


class Preemption(Callback):
    """Answers SIGTERM, SIGUSR1 and SIGINT (Ctrl-C), whichever rank gets them.

    The ranks ask each other after each batch, of training and of evaluation, so the answer takes one batch and one
    save; a save that is under way is finished first. A second signal leaves at once, with 128 + its number.

    Args:
        writer: saves the checkpoint.
    """

    def __init__(self, writer: CheckpointWriter) -> None:
        self.writer = writer
        self._code = 0  # to leave with; 0: nobody told
        self._first_s = math.inf  # when the first signal came
        self._interrupted = False
        self._process, self._parent = os.getpid(), os.getppid()

    def fit_start(self, state: State, logger: Logger) -> None:
        """From here on there is something to save."""
        answer_stop_signals(self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader worker, forked with this handler: its rank decides
            return
        now, parent = time.monotonic(), os.getppid()
        orphaned, self._parent = parent != self._parent, parent  # the launcher died: not a user who insists
        again = number == signal.SIGINT and self._interrupted
        if now - self._first_s > (SAME_INTERRUPT_S if again else SAME_SIGNAL_S) and not orphaned:
            os._exit(128 + number)
        if number == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            if world().rank == 0:  # not print, within which the signal may have come
                os.write(sys.stderr.fileno(), INTERRUPTED_NOW.encode())
        self._first_s = min(self._first_s, now)
        self._code = max(self._code, STOP_SIGNALS[signal.Signals(number)])

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After the batch's evaluation and its regular checkpoint."""
        self._leave_if_told(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """An evaluation is left unfinished, and made by the next start: the training state does not change in it."""
        self._leave_if_told(state)

    def _leave_if_told(self, state: State) -> None:
        codes = state.device.tensor_to_device(torch.tensor([self._code]))
        dist.all_reduce(codes, reduce_operation="MAX")  # Ctrl-C, if anyone got it, over the SIGTERM of its launcher
        code = int(codes.item())
        if not code:
            return
        self.writer.save(state)
        self.writer.wait_for_upload()
        answer_stop_signals(signal.SIG_IGN)  # the launcher signals the others as soon as one has gone
        if dist.get_global_rank() == 0:
            print(
                f"{'interrupted' if code == INTERRUPTED else 'preempted'} after batch {int(state.timestamp.batch)}: "
                f"saved, exit code {code}; the same command resumes from here",
                flush=True,
            )
        dist.barrier()
        raise Stopped(code)

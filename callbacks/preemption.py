"""Preemption and Ctrl-C: all ranks agree, save a checkpoint, and exit with a code that asks for a restart."""

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

# Ranks may get one signal twice: Slurm signals launcher and ranks, and the launcher forwards the signal to the ranks; a
# terminal sends Ctrl-C to both, and the launcher answers it with SIGTERM. Signals this close together count as one. A
# second Ctrl-C always comes from the user; only one within half a second is taken for a bouncing key.
SAME_SIGNAL_S = 3.0
SAME_INTERRUPT_S = 0.5

INTERRUPTED_NOW = """
interrupted: the run finishes this batch, saves and ends; Ctrl-C again ends it at once and loses all since the last save
"""


class Preemption(Callback):
    """Saves and ends the run when any rank gets SIGTERM, SIGUSR1 or SIGINT (Ctrl-C).

    The ranks exchange their signals after each batch of training and evaluation, so the reaction takes one batch and
    one save; a save that has begun is finished first. A second signal ends the process at once, with exit code
    128 + its number.

    Args:
        writer: saves the checkpoint.
    """

    def __init__(self, writer: CheckpointWriter) -> None:
        self.writer = writer
        self._code = 0  # exit code; 0: no signal came
        self._first_s = math.inf  # time of the first signal
        self._interrupted = False
        self._process, self._parent = os.getpid(), os.getppid()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Install the signal handlers: from here on there is something to save."""
        answer_stop_signals(self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker inherited this handler; its rank decides
            return
        now, parent = time.monotonic(), os.getppid()
        # Another parent: this signal means that the launcher died, and not that the user repeated it.
        orphaned, self._parent = parent != self._parent, parent
        again = number == signal.SIGINT and self._interrupted
        if now - self._first_s > (SAME_INTERRUPT_S if again else SAME_SIGNAL_S) and not orphaned:
            os._exit(128 + number)
        if number == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            if world().rank == 0:  # os.write, because the signal may have come in the middle of a print
                os.write(sys.stderr.fileno(), INTERRUPTED_NOW.encode())
        self._first_s = min(self._first_s, now)
        self._code = max(self._code, STOP_SIGNALS[signal.Signals(number)])

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """If a signal came, leave now: the batch has been evaluated, and its regular checkpoint is saved."""
        self._leave_if_told(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Leave if a signal came. The next start repeats the unfinished evaluation, which changed no weights."""
        self._leave_if_told(state)

    def _leave_if_told(self, state: State) -> None:
        codes = state.device.tensor_to_device(torch.tensor([self._code]))
        dist.all_reduce(codes, reduce_operation="MAX")  # a Ctrl-C on any rank outranks the SIGTERM of its launcher
        code = int(codes.item())
        if not code:
            return
        self.writer.save(state)
        self.writer.wait_for_upload()
        answer_stop_signals(signal.SIG_IGN)  # the launcher signals the other ranks as soon as one has ended
        if dist.get_global_rank() == 0:
            print(
                f"{'interrupted' if code == INTERRUPTED else 'preempted'} after batch {int(state.timestamp.batch)}: "
                f"saved, exit code {code}; the same command resumes from here",
                flush=True,
            )
        dist.barrier()
        raise Stopped(code)

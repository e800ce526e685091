"""A run that is told to leave: all ranks agree, save, and say that they want to come back."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from callbacks.checkpoint_writer import CheckpointWriter
from data_prep.common.exit_codes import PREEMPTED
from recipes.runs.signals import PREEMPTION_SIGNALS

# A launcher forwards what Slurm has sent to its ranks already: signals this close together are one.
SAME_SIGNAL_S = 3.0


class Preempted(SystemExit):
    """Raised on every rank once the checkpoint is written; ends the process with PREEMPTED."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Preemption(Callback):
    """Answers SIGTERM and SIGUSR1, whichever rank gets them.

    The ranks ask each other after each batch, of training and of evaluation, so the answer takes one batch and one
    save; a save that is under way is finished first. A second signal leaves at once, with 128 + its number.

    Args:
        writer: saves the checkpoint.
    """

    def __init__(self, writer: CheckpointWriter) -> None:
        self.writer = writer
        self._signalled_s: float | None = None
        self._process, self._parent = os.getpid(), os.getppid()

    def fit_start(self, state: State, logger: Logger) -> None:
        """From here on there is something to save."""
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader worker, forked with this handler: its rank decides
            return
        now, parent = time.monotonic(), os.getppid()
        orphaned, self._parent = parent != self._parent, parent  # the launcher died: not a user who insists
        if self._signalled_s is not None and now - self._signalled_s > SAME_SIGNAL_S and not orphaned:
            os._exit(128 + number)
        self._signalled_s = self._signalled_s or now

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After the batch's evaluation and its regular checkpoint."""
        self._leave_if_told(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """An evaluation is left unfinished: the training state does not change in it."""
        self._leave_if_told(state)

    def _leave_if_told(self, state: State) -> None:
        told = state.device.tensor_to_device(torch.tensor([int(self._signalled_s is not None)]))
        dist.all_reduce(told, reduce_operation="MAX")
        if not told.item():
            return
        self.writer.save(state)
        self.writer.wait_for_upload()
        for number in PREEMPTION_SIGNALS:  # the launcher signals the others as soon as one has gone
            signal.signal(number, signal.SIG_IGN)
        if dist.get_global_rank() == 0:
            print(
                f"preempted after batch {int(state.timestamp.batch)}: saved, exit code {PREEMPTED}; "
                "the same command goes on from here",
                flush=True,
            )
        dist.barrier()
        raise Preempted

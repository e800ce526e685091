"""What the exit code of a run means; docs/operations.md says what to do after each."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing import resource_tracker

BAD_INPUT = 2  # data_prep.stage.run: the configuration, data or folder cannot be used; nothing was changed
BAD_NUMBERS = 3  # NaN or Inf in too many batches in a row
STALLED = 4  # no batch for stall_timeout_s
REMOTE_UNAVAILABLE = 69  # data_prep.stage.run: the store could not be asked whether it holds checkpoints
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, and to be started again

GO_ON = "the same command goes on from the newest checkpoint"
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def leave_at_once_when_preempted() -> None:
    """Until there is something to save, answer a preemption signal with PREEMPTED.

    To be called again after `import composer`, which installs a handler of its own. Python's resource tracker starts
    here, so that it ignores USR1, which Slurm sends to all processes of a step: dead, it leaves shared memory behind.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    resource_tracker.ensure_running()
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda *_: os._exit(PREEMPTED))


def leave_with_the_launcher() -> None:
    """Have a rank that a launcher started get SIGTERM when the launcher dies: nobody else would end an orphan.

    Linux only. A process that was started without a launcher goes on without its parent, a shell for one.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    follow(os.getppid())


def follow(parent: int) -> None:
    """Get SIGTERM when the parent, of this process id, dies; on Linux, elsewhere nothing."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died meanwhile
        os.kill(os.getpid(), signal.SIGTERM)

"""How a process answers the signals of a scheduler, and that it ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing import resource_tracker

from data_prep.common.exit_codes import PREEMPTED
from data_prep.common.world import world

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
    if not world().launched:
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

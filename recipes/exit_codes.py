"""What the exit code of a run means; docs/operations.md says what to do after each."""

from __future__ import annotations

import os
import signal

BAD_INPUT = 2  # data_prep.stage.run: the configuration, data or folder cannot be used; nothing was changed
BAD_NUMBERS = 3  # NaN or Inf in too many batches in a row
STALLED = 4  # no batch for stall_timeout_s
REMOTE_UNAVAILABLE = 69  # data_prep.stage.run: the store could not be asked whether it holds checkpoints
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, and to be started again

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def leave_at_once_when_preempted() -> None:
    """Until there is something to save, answer a preemption signal with PREEMPTED.

    To be called again after `import composer`, which installs a handler of its own.
    """
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda *_: os._exit(PREEMPTED))

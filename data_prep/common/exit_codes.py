"""What the exit code of a command means; docs/operations.md says what to do after each."""

from __future__ import annotations

BAD_INPUT = 2  # the configuration, data or folder cannot be used; nothing was changed
BAD_NUMBERS = 3  # NaN or Inf in too many batches in a row
STALLED = 4  # no batch for stall_timeout_s
UNAVAILABLE = 69  # the store could not be asked whether it holds checkpoints
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, and to be started again
INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C; a run that trains has saved
GO_ON = "the same command goes on from the newest checkpoint"

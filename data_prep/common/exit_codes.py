"""The exit codes of the commands; docs/operations.md says what to do after each of them."""

from __future__ import annotations

import signal

BAD_INPUT = 2  # the configuration, data or folder cannot be used; nothing was changed
BAD_NUMBERS = 3  # NaN or Inf in too many batches in a row
STALLED = 4  # no batch finished within stall_timeout_s
UNAVAILABLE = 69  # the store could not be asked whether it holds checkpoints
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the run has saved a checkpoint and must be started again
INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C; a training run has saved a checkpoint
BROKEN_PIPE = 141  # 128 + SIGPIPE: the program that read the output has ended
RESUMES = "the same command resumes from the newest checkpoint"
# Exit code of a command -> the beginning of its line in docs/operations.md.
MEANINGS = {
    0: "finished",
    1: "crashed",
    BAD_INPUT: "bad input",
    BAD_NUMBERS: "NaN or Inf",
    STALLED: "nothing happened for `stall_timeout_s`",
    UNAVAILABLE: "the remote of the checkpoints does not answer",
    PREEMPTED: "preempted",
    INTERRUPTED: "Ctrl-C",
    BROKEN_PIPE: "whoever read the output",
    128 + signal.SIGTERM: "left at once on a second signal",
    128 + signal.SIGUSR1: "left at once on a second signal",
    128 + signal.SIGABRT: "NCCL gave up",
    250: "NCCL gave up",
    128 + signal.SIGKILL: "killed from outside",
}

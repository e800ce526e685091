"""How a process reacts to the signals of a scheduler and to Ctrl-C, and how it ends when its parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import cache
from multiprocessing import resource_tracker
from types import FrameType

from data_prep.common.errors import say_interrupted
from data_prep.common.exit_codes import INTERRUPTED, PREEMPTED
from data_prep.common.world import world

# If a script starts a command in the background, the shell makes the command ignore Ctrl-C.
_IN_BACKGROUND = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
STOP_SIGNALS = {signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED}  # -> exit code once everything is saved
if not _IN_BACKGROUND:
    STOP_SIGNALS[signal.SIGINT] = INTERRUPTED


BLOCKED_S = 10.0  # below the 30 s after which the launcher kills a process that has not ended
_kept: list[socket.socket] = []  # so that the sockets live as long as the process


class Stopped(SystemExit):
    """Raised after everything was saved and a message printed; ends the process with the stop signal's exit code."""


def leave_at_once_when_told() -> None:
    """Exit at once on a stop signal, with that signal's exit code, as long as there is nothing to save.

    If the main thread waits in torch for another rank, Python would call a signal handler only after that wait.
    Therefore a thread watches for signals: Ctrl-C ends the process at once, other signals after `BLOCKED_S`. If one
    rank finds a fault, the launcher sends SIGTERM to the others; the delay lets them find the fault themselves, and end
    with its exit code.

    Call this again after `import composer`, which installs a handler of its own. Python's resource tracker is started
    here, so that it ignores SIGUSR1, which Slurm sends to all processes of a step. Without a tracker, shared memory
    would not be freed.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    resource_tracker.ensure_running()
    answer_stop_signals(_leave_at_once)
    _watch()


@cache
def _watch() -> None:
    """Start a thread that gets each signal as it comes, and ends the process if nothing has to be saved."""
    heard, wakened = socket.socketpair()
    wakened.setblocking(False)
    signal.set_wakeup_fd(wakened.fileno(), warn_on_full_buffer=False)
    # A forked process, such as a loader's worker, would report its own signals to this process.
    os.register_at_fork(after_in_child=_watch_no_more)

    def leave(number: int) -> None:
        if signal.getsignal(number) is _leave_at_once:
            _leave_at_once(number, None)

    def listen() -> None:
        while numbers := heard.recv(64):
            for number in numbers:
                if signal.getsignal(number) is _leave_at_once:  # a run that has something to save has its own handler
                    later = threading.Timer(0 if number == signal.SIGINT else BLOCKED_S, leave, (number,))
                    later.daemon = True
                    later.start()

    _kept.append(wakened)
    threading.Thread(target=listen, name="stop signals", daemon=True).start()


def _watch_no_more() -> None:
    signal.set_wakeup_fd(-1)
    _watch.cache_clear()


def answer_stop_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Install a handler for all stop signals. A process in the background ignores Ctrl-C."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)
    if _IN_BACKGROUND:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave_at_once(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        say_interrupted()
    os._exit(STOP_SIGNALS[signal.Signals(number)])


def leave_with_the_launcher() -> None:
    """Make Linux send SIGTERM to a rank when its launcher dies; otherwise the rank would run on alone.

    Linux only. A process that was started without a launcher outlives its parent, such as a shell.
    """
    if not world().launched:
        return
    follow(os.getppid())


def follow(parent: int) -> None:
    """Make Linux send SIGTERM to this process when its parent dies. Does nothing on other systems.

    Args:
        parent: process id of the parent.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # the parent died before prctl took effect
        os.kill(os.getpid(), signal.SIGTERM)

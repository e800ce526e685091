"""How a process answers the signals of a scheduler and Ctrl-C, and that it ends with its parent."""

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

# A shell that starts a command in the background of a script has it ignore Ctrl-C, which is meant for the foreground.
_IN_BACKGROUND = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
STOP_SIGNALS = {signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED}  # -> exit code once everything is saved
if not _IN_BACKGROUND:
    STOP_SIGNALS[signal.SIGINT] = INTERRUPTED


BLOCKED_S = 10.0  # the launcher kills what has not ended after 30 s
_kept: list[socket.socket] = []  # as long as the process lives


class Stopped(SystemExit):
    """Raised once everything is saved, and the user told; ends the process with the code of the stop signal."""


def leave_at_once_when_told() -> None:
    """Until there is something to save, exit at once on a stop signal, with that signal's exit code.

    Also where the main thread waits in torch for another rank, though Python calls its handler after that wait alone:
    Ctrl-C is then answered at once, others after `BLOCKED_S`. The launcher sends SIGTERM where one rank has found a
    fault; meanwhile the others come to find it, and end with its code.

    To be called again after `import composer`, which installs a handler of its own. Python's resource tracker starts
    here, so that it ignores USR1, which Slurm sends to all processes of a step: dead, it leaves shared memory behind.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    resource_tracker.ensure_running()
    answer_stop_signals(_leave_at_once)
    _watch()


@cache
def _watch() -> None:
    """Have a thread hear of signals as they come, and leave if that is what is to be done now."""
    heard, wakened = socket.socketpair()
    wakened.setblocking(False)
    signal.set_wakeup_fd(wakened.fileno(), warn_on_full_buffer=False)
    # What is forked off, such as a loader's worker, would tell this process of its own signals.
    os.register_at_fork(after_in_child=_watch_no_more)

    def leave(number: int) -> None:
        if signal.getsignal(number) is _leave_at_once:
            _leave_at_once(number, None)

    def listen() -> None:
        while numbers := heard.recv(64):
            for number in numbers:
                if signal.getsignal(number) is _leave_at_once:  # and not the answer of a run with something to save
                    later = threading.Timer(0 if number == signal.SIGINT else BLOCKED_S, leave, (number,))
                    later.daemon = True
                    later.start()

    _kept.append(wakened)
    threading.Thread(target=listen, name="stop signals", daemon=True).start()


def _watch_no_more() -> None:
    signal.set_wakeup_fd(-1)
    _watch.cache_clear()


def answer_stop_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Have all stop signals answered by that handler; Ctrl-C, in the background, is ignored."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)
    if _IN_BACKGROUND:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave_at_once(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        say_interrupted()
    os._exit(STOP_SIGNALS[signal.Signals(number)])


def leave_with_the_launcher() -> None:
    """Have a rank that a launcher started get SIGTERM when the launcher dies: nobody else would end an orphan.

    Linux only. A process that was started without a launcher outlives its parent, a shell for one.
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

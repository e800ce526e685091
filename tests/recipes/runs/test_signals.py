"""Stop signals are handled even where Python cannot handle them, because the main thread waits in a library."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from data_prep.common.exit_codes import INTERRUPTED, PREEMPTED
from patience import patience_s
from project import ROOT

BLOCKED = """
import ctypes, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from recipes.runs import signals
signals.BLOCKED_S = 0.1
signals.leave_at_once_when_told()
print("waits", flush=True)
libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(lock)
libc.pthread_mutex_lock(lock)  # for ever, whatever signals come
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, PREEMPTED)])
def test_a_wait_in_a_library_is_left(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", BLOCKED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "waits\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=patience_s())
    assert process.returncode == code
    assert ("interrupted" in errors) == (number == signal.SIGINT) and "Traceback" not in errors

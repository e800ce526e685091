"""Starts scripts in seconds less: each is a fork of a process that has imported what a training run imports.

`run([sys.executable, SCRIPT, …])` and `run([COMPOSER, "-n", "2", SCRIPT, …])` are `subprocess.run` with captured text:
own arguments, environment, folder, output and exit code, own process, own session. The ranks are forks of the launcher
and its children, as ever. What is read when Python starts or imports is that of the tests' start, so a command that is
about this, about its imports, or about its memory is started as users start it, and so is one that a test signals.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

from patience import OF_A_RUN, patience_s

COMPOSER = str(Path(sys.executable).with_name("composer"))
MESSAGE_BYTES = 1 << 20


class Started:
    """A command that was started: what is used of `subprocess.Popen`."""

    def __init__(
        self, command: Sequence[object], cwd: Path, env: Mapping[str, str] | None, out: IO, errors: IO
    ) -> None:
        arguments = [str(part) for part in command]
        assert arguments[0] in (COMPOSER, sys.executable), arguments[0]
        argv = arguments if arguments[0] == COMPOSER else arguments[1:]
        self._tells, there = socket.socketpair()
        with there:
            own = dict(os.environ if env is None else env)
            request = {"argv": argv, "cwd": str(cwd), "env": own}
            fds = [out.fileno(), errors.fileno(), there.fileno()]
            socket.send_fds(server(own.get("LD_PRELOAD")), [json.dumps(request).encode()], fds)
        self._told = self._tells.makefile()
        self.args, self.pid = arguments, int(self._told.readline())

    def wait(self) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time; its session was killed.
        """
        self._tells.settimeout(patience_s())
        try:
            with self._tells, self._told:
                return int(self._told.readline())
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, patience_s()) from None


def run(command: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, which begins with this Python or with `COMPOSER`, to its end.

    Raises:
        subprocess.TimeoutExpired: it has not ended in time; its session was killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = Started(command, cwd, env, out, errors)
        code = started.wait()
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess(started.args, code, out.read(), errors.read())


@functools.cache
def server(preload: str | None) -> socket.socket:
    """The socket of the process that forks, with a library before all others or none; it ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with there:
        subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())], pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**env, "LD_PRELOAD": preload} if preload else env,
        )  # fmt: skip
    return here


def serve(requests: socket.socket) -> None:
    """Fork for each request until there is nobody to ask."""
    for name in (*OF_A_RUN, "composer.cli.launcher"):
        importlib.import_module(name)
    from composer.utils.collect_env import get_cpu_model

    get_cpu_model()  # half a second, which Composer then remembers
    assert threading.active_count() == 1, "a fork would miss a thread"
    gc.freeze()  # a collection in a fork need not go through all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, *_ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            watch(json.loads(message), *fds)
        for fd in fds:
            os.close(fd)


def watch(request: dict[str, Any], out: int, errors: int, tell: int) -> None:
    """Say the id of the process that does what is asked, and its exit code when it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None  # to be asked for anew
        perform(request["argv"], out, errors)
    os.write(tell, f"{pid}\n".encode())
    os.close(out)
    os.close(errors)
    _, status = os.waitpid(pid, 0)
    os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def perform(argv: Sequence[str], out: int, errors: int) -> NoReturn:
    """Be the script in a process that was just forked, to the end of the process."""
    os.dup2(out, 1)
    os.dup2(errors, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=bool(os.environ.get("PYTHONUNBUFFERED")))  # pyright: ignore
    script, code_given = argv[0], argv[0] == "-c"
    sys.argv = ["-c", *argv[2:]] if code_given else list(argv)
    more = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = ["" if code_given else str(Path(script).resolve().parent), *more]
    if script == COMPOSER:
        launcher = sys.modules["composer.cli.launcher"]
        own = SimpleNamespace(Popen=Rank, STDOUT=subprocess.STDOUT, CalledProcessError=subprocess.CalledProcessError)
        setattr(launcher, "subprocess", own)  # noqa: B010
    main = {"__name__": "__main__"}
    leave(ended(lambda: exec(argv[1], main) if code_given else runpy.run_path(script, run_name="__main__")))


def leave(code: int) -> NoReturn:
    """End this process as Python would, but for taking all that was imported apart, which takes a second or two."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(function: Callable[[], object]) -> int:
    """The exit code of a main program."""
    try:
        function()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class Rank:
    """What Composer's launcher uses of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], text: bool, stdout: Any = None, stderr: Any = None) -> None:
        self.args, self.returncode, self.stdout, self.stderr = command, None, stdout, stderr
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            weakref.finalize._registry.clear()  # pyright: ignore[reportAttributeAccessIssue] (the launcher's folder)
            logging.root.handlers.clear()
            out = 1 if stdout is None else stdout.fileno()
            perform(command[1:], out, out if stderr is subprocess.STDOUT else 2 if stderr is None else stderr.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

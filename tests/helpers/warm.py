"""Starts scripts faster: each is a fork of a process that has already imported the modules of a training run.

`run([sys.executable, SCRIPT, …])` and `run([COMPOSER, "-n", "2", SCRIPT, …])` work like `subprocess.run` with captured
text: each command has its own arguments, environment, folder, output, exit code, process and session. The ranks are
forks of the launcher and its children, as usual. Everything that Python reads at its start or while importing dates
from the start of the tests. So a test starts a command in the usual way if it is about that, about imports or memory,
or if it sends signals.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import logging
import os
import resource
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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

from patience import OF_A_RUN, patience_s

COMPOSER = str(Path(sys.executable).with_name("composer"))
MESSAGE_BYTES = 1 << 20


IMPORTED = (*OF_A_RUN, "composer.cli.launcher")


@dataclass
class Ended(subprocess.CompletedProcess[str]):
    """A command that has ended.

    Attributes:
        grown_bytes: peak memory of the process, minus its memory at the beginning.
    """

    args: Any
    returncode: int
    stdout: str
    stderr: str
    grown_bytes: int


class Started:
    """A running command, with the methods of `subprocess.Popen` that tests use.

    Attributes:
        grown_bytes: as in `Ended`, after `wait`.
    """

    def __init__(
        self,
        command: Sequence[object],
        cwd: Path,
        env: Mapping[str, str] | None,
        out: IO,
        errors: IO,
        imported: tuple[str, ...] = IMPORTED,
        memory_bytes: int = 0,
    ) -> None:
        arguments = [str(part) for part in command]
        assert arguments[0] in (COMPOSER, sys.executable), arguments[0]
        argv = arguments if arguments[0] == COMPOSER else arguments[1:]
        self._tells, there = socket.socketpair()
        with there:
            own = dict(os.environ if env is None else env)
            own.pop("WANDB_SERVICE", None)  # of a run in this process: variables of W&B with another folder
            request = {"argv": argv, "cwd": str(cwd), "env": own, "memory_bytes": memory_bytes}
            fds = [out.fileno(), errors.fileno(), there.fileno()]
            socket.send_fds(server(own.get("LD_PRELOAD"), imported), [json.dumps(request).encode()], fds)
        self._told = self._tells.makefile()
        self.args, self.pid = arguments, int(self._told.readline())

    def wait(self, starts: float = 10) -> int:
        """Wait for the command; its exit code.

        Args:
            starts: time limit, in the unit of `patience_s`.

        Raises:
            subprocess.TimeoutExpired: it did not end in time; its session was killed.
        """
        self._tells.settimeout(patience_s(starts))
        try:
            with self._tells, self._told:
                code, self.grown_bytes = map(int, self._told.readline().split())
                return code
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, patience_s(starts)) from None


def run(
    command: Sequence[object],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    imported: tuple[str, ...] = IMPORTED,
    memory_bytes: int = 0,
    starts: float = 10,
) -> Ended:
    """Run a command that begins with this Python or with `COMPOSER`, until it ends.

    Args:
        command: its words.
        cwd: its folder.
        env: its environment; None for that of the tests.
        imported: modules that are imported before it begins.
        memory_bytes: memory that it may take beyond that at its beginning; 0 for no limit.
        starts: time limit, in the unit of `patience_s`.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; its session was killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = Started(command, cwd, env, out, errors, imported, memory_bytes)
        code = started.wait(starts)
        for file in (out, errors):
            file.seek(0)
        return Ended(started.args, code, out.read(), errors.read(), started.grown_bytes)


@functools.cache
def server(preload: str | None, imported: tuple[str, ...]) -> socket.socket:
    """The socket of a process that has imported these modules and forks commands; it ends with this process.

    Args:
        preload: a library that is loaded before all others, or none.
        imported: the modules.
    """
    parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with child_end:
        subprocess.Popen(
            [sys.executable, __file__, str(child_end.fileno()), *imported], pass_fds=[child_end.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**env, "LD_PRELOAD": preload} if preload else env,
        )  # fmt: skip
    return parent_end


def serve(requests: socket.socket, imported: Sequence[str]) -> None:
    """Fork for each request until the socket is closed."""
    for name in imported:
        importlib.import_module(name)
    if "composer.cli.launcher" in imported:
        from composer.utils.collect_env import get_cpu_model

        get_cpu_model()  # takes half a second; Composer then remembers it
    assert threading.active_count() == 1, "a fork would lack this thread"
    gc.freeze()  # a garbage collection in a fork then skips the imported objects
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
    """Send the id of the process that runs the command, and after its end its exit code and memory growth."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    resident_pages, data_pages = (int(Path("/proc/self/statm").read_text().split()[field]) for field in (1, 5))
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    pid = os.fork()
    if pid == 0:
        if request["memory_bytes"]:
            limit = data_pages * page_bytes + request["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        os.close(tell)
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None  # so that it is computed again
        perform(request["argv"], out, errors)
    os.write(tell, f"{pid}\n".encode())
    os.close(out)
    os.close(errors)
    _, status, used = os.wait4(pid, 0)
    grown_bytes = used.ru_maxrss * 1024 - resident_pages * page_bytes
    os.write(tell, f"{os.waitstatus_to_exitcode(status)} {grown_bytes}\n".encode())
    os._exit(0)


def perform(argv: Sequence[str], out: int, errors: int) -> NoReturn:
    """Run the script in a process that was just forked, until the process ends."""
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
    """End this process like Python, but without tearing down the imported modules, which takes a second or two."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(function: Callable[[], object]) -> int:
    """Exit code of a main program."""
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
    """The part of `subprocess.Popen` that Composer's launcher uses."""

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
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])

"""Launch runs as child processes, one after another. They end with this process, and save when it is preempted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from recipes.runs.signals import STOP_SIGNALS, Stopped, answer_stop_signals, follow, leave_at_once_when_told

ROOT = Path(__file__).parents[2]


class Named(Protocol):
    """A run that is launched."""

    @property
    def name(self) -> str:
        """Name of the run, for messages."""
        ...


Run = TypeVar("Run", bound=Named)


def command_of(script: str, yaml: Path, world_size: int) -> list[str]:
    """The command that runs a configuration, without its overrides."""
    launcher = [sys.executable]
    if world_size > 1:
        launcher = [str(Path(sys.executable).with_name("composer")), "-n", str(world_size)]
    return [*launcher, str(ROOT / "recipes" / script), str(yaml.absolute())]


def last_line(log: Path) -> str:
    """The last line of a run's log; empty if there is no log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return "".join(lines[-1:])


def start(command: Sequence[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run as a process that ends with this one. Its output is appended to its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            preexec_fn=partial(follow, os.getpid()),
        )  # fmt: skip


def execute(command: Sequence[str], log: Path, folder: Path) -> int:
    """Start a run, wait for its end, and return its exit code."""
    return start(command, log, folder).wait()


def run_here(commands: Iterable[tuple[Run, list[str], Path]]) -> Iterator[tuple[Run, int]]:
    """Run commands one after another, and yield each run with its exit code.

    A stop signal is forwarded to the current run, which saves and ends.

    Args:
        commands: runs, each with its command and its log.

    Raises:
        Stopped: a stop signal came; the exit code is that of the signal.
    """
    received: list[int] = []
    for run, command, log in commands:
        child = start(command, log, Path.cwd())

        def forward(number: int, _: Any, child: subprocess.Popen[bytes] = child) -> None:
            received.append(STOP_SIGNALS[signal.Signals(number)])
            # A terminal sends Ctrl-C to both processes. Forwarded as SIGINT, it would be the run's second Ctrl-C, which
            # ends it without saving.
            child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

        answer_stop_signals(forward)
        code = child.wait()
        leave_at_once_when_told()  # between two runs there is nothing to save
        if received or code in STOP_SIGNALS.values():
            print(f"stopped in {run.name}: type the same command to resume", flush=True)
            raise Stopped(received[0] if received else code)
        yield run, code

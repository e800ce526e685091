"""Launch: runs as processes of their own, one after another, that end with this one and save when it is preempted."""

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
    """What is run."""

    @property
    def name(self) -> str:
        """Of the run, for messages."""
        ...


Run = TypeVar("Run", bound=Named)


def command_of(script: str, yaml: Path, world_size: int) -> list[str]:
    """What one would type to run a configuration, up to its overrides."""
    launcher = [sys.executable]
    if world_size > 1:
        launcher = [str(Path(sys.executable).with_name("composer")), "-n", str(world_size)]
    return [*launcher, str(ROOT / "recipes" / script), str(yaml.absolute())]


def last_line(log: Path) -> str:
    """The last line of a run's log, empty if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return "".join(lines[-1:])


def start(command: Sequence[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A run as a process that ends with this one; what it says goes to the end of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            preexec_fn=partial(follow, os.getpid()),
        )  # fmt: skip


def execute(command: Sequence[str], log: Path, folder: Path) -> int:
    """`start`, to its end; the exit code."""
    return start(command, log, folder).wait()


def run_here(commands: Iterable[tuple[Run, list[str], Path]]) -> Iterator[tuple[Run, int]]:
    """One after another; each with its exit code as it ends. A stop signal is passed on to the run, which saves.

    Args:
        commands: each run, what is to be typed for it, and its log.

    Raises:
        Stopped: told to stop, with the code of that signal.
    """
    received: list[int] = []
    for run, command, log in commands:
        child = start(command, log, Path.cwd())

        def forward(number: int, _: Any, child: subprocess.Popen[bytes] = child) -> None:
            received.append(STOP_SIGNALS[signal.Signals(number)])
            # A terminal sends Ctrl-C to both: passed on as such, it would be the second, which leaves without saving.
            child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

        answer_stop_signals(forward)
        code = child.wait()
        leave_at_once_when_told()  # until there is a run again that has something to save
        if received or code in STOP_SIGNALS.values():
            print(f"stopped in {run.name}: type the same command to resume", flush=True)
            raise Stopped(received[0] if received else code)
        yield run, code

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

from data_prep.common.exit_codes import PREEMPTED
from recipes.runs.signals import PREEMPTION_SIGNALS, follow, leave_at_once_when_preempted

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
    """One after another; each with its exit code as it ends. A preemption signal goes on to the run, which saves.

    Args:
        commands: each run, what is to be typed for it, and its log.

    Raises:
        SystemExit: preempted.
    """
    preempted = False
    for run, command, log in commands:
        child = start(command, log, Path.cwd())

        def forward(number: int, _: Any, child: subprocess.Popen[bytes] = child) -> None:
            nonlocal preempted
            preempted = True
            child.send_signal(number)

        for number in PREEMPTION_SIGNALS:
            signal.signal(number, forward)
        code = child.wait()
        leave_at_once_when_preempted()  # until there is a run again that has something to save
        if preempted or code == PREEMPTED:
            print(f"preempted in {run.name}: type the same command to go on", flush=True)
            raise SystemExit(PREEMPTED)
        yield run, code

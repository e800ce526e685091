"""Run a command on some of the cores, and measure the time and memory of it and its child processes."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data_prep.common.errors import BadInput

POLL_S = 0.1
RESULT = "measured: "  # beginning of the line with a result


@dataclass
class Run:
    """Time and memory of one or more commands; `peak_bytes` is the largest total of all processes at one moment."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    largest_process_bytes: int = 0
    output: str = ""

    def then(self, other: Run) -> Run:
        """The measurements of this command followed by another one."""
        return Run(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
            max(self.largest_process_bytes, other.largest_process_bytes),
            other.output,
        )


def measured(command: Sequence[str | Path], cores: int, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end on a number of cores, and watch its processes.

    Raises:
        BadInput: the command failed, or there are fewer cores.
    """
    free = sorted(os.sched_getaffinity(0))
    if cores > len(free):
        raise BadInput(f"the measurement needs {cores} cores, but there are {len(free)}")
    threads = {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
    }  # all measured commands use several processes, not threads
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    run = Run()
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, free[:cores]),
        )
        cpu_s: dict[int, float] = {}  # process id -> its CPU time when it was last seen
        while process.poll() is None:
            sizes = []
            for pid, size_bytes, seconds in _seen(process):
                sizes.append(size_bytes)
                cpu_s[pid] = seconds
            run.peak_bytes = max(run.peak_bytes, sum(sizes))
            run.largest_process_bytes = max(run.largest_process_bytes, *sizes, 0)
            with suppress(psutil.TimeoutExpired):
                process.wait(POLL_S)
        run.wall_s = time.perf_counter() - start_s
        output.seek(0)
        run.output = output.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The kernel adds the time of a process to its parent's children only if the parent waits for it; some parents do
    # not.
    waited_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    run.cpu_s = max(waited_s, sum(cpu_s.values()))
    if process.returncode != 0:
        raise BadInput(f"exit code {process.returncode}: {' '.join(map(str, command))}\n{run.output[-2000:]}")
    return run


def _seen(process: psutil.Process) -> Iterator[tuple[int, int, float]]:
    """Id, resident memory and CPU time of a process and all its descendants; shared pages count for each process."""
    with suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess), member.oneshot():
                times = member.cpu_times()
                yield member.pid, member.memory_info().rss, times.user + times.system


class Phases:
    """Seconds that functions took in one thread, by name. Time in a nested timed function counts only for that one."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time is added under a name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begin_s, before_s = time.perf_counter(), sum(self.spent_s.values())
            try:
                return function(*args, **kwargs)
            finally:
                inside_s = sum(self.spent_s.values()) - before_s
                self.spent_s[name] = self.spent_s.get(name, 0.0) + time.perf_counter() - begin_s - inside_s

        return call


class Enough(Exception):
    """Raised to end a run when everything has been measured."""


def launched(ranks: int) -> list[str]:
    """The first words of a command that runs on a number of ranks."""
    return [str(Path(sys.executable).with_name("composer")), "-n", str(ranks)] if ranks > 1 else [sys.executable]


def say_result(result: dict[str, Any]) -> None:
    """Print the measurements of this process, for `result_of` in the process that started it."""
    print(RESULT + json.dumps(result), flush=True)


def result_of(taken: Run) -> dict[str, Any]:
    """Find the measurements that a process printed with `say_result` in its output."""
    line = next(line for line in reversed(taken.output.splitlines()) if line.startswith(RESULT))
    return json.loads(line.removeprefix(RESULT))


def machine() -> str:
    """Describe this machine: processor, cores, memory, system and load."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory_gb = psutil.virtual_memory().total / 1e9
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory_gb:.0f} GB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start"
    )

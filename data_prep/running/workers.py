"""Run tasks in processes on this machine or on a Ray cluster, with the same functions and the same results.

A task reads and writes files. Each output is written under another name and then renamed, so that a task can be killed
at any point and run again, also on another machine. On a cluster, all nodes must see the same folders, as for training,
and must have the same versions of the libraries that decide the output bytes. An error names any node with other
folders or versions.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any
from uuid import uuid4

from data_prep.common.command_line import Allowed
from data_prep.common.errors import BadInput
from data_prep.common.files import give_name, write_text
from data_prep.common.limits import Whole
from data_prep.common.manifest import difference, library_versions
from data_prep.running.progress import Done, Progress

PROCESSES = Whole(1, 10_000)
CLUSTERS = ("local", "ray")
LIBRARIES = ("gigatoken", "lxml", "numpy", "orjson", "pyarrow", "rensa", "tokenizers", "xxhash", "zstandard")
MARK = ".cluster"  # file in the output folder; a node that finds it sees the same folder
RETRIES = 16  # retries of a task whose node or process dies; nodes come and go, and a task takes minutes at most
LOOK_S = 0.5
HEAD_LOOK_S = 2.0  # between two checks of a cluster's head, and the timeout of one check
HEAD_DEAD_S = 15.0  # time without an answer; Ray itself ends this process after 60 s
CONNECT_TIMEOUT_S = 10.0

Tick = Callable[..., object]  # tick(bytes=…, documents=…, tokens=…): work that a task has done since the last call


@dataclass(frozen=True)
class Task:
    """A call `function(*arguments, tick)`.

    Attributes:
        name: name of the task in messages.
        arguments: arguments of the function; they must be picklable.
    """

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Workers:
    """The processes or the cluster that tasks run on.

    Attributes:
        processes: number of processes on this machine; a cluster uses all of its cores.
        cluster: `local` for processes of this machine, `ray` for a Ray cluster.
    """

    processes: int = 1
    cluster: str = "local"

    def __post_init__(self) -> None:
        PROCESSES.check("--workers", self.processes)
        if self.cluster not in CLUSTERS:
            raise BadInput(f"--cluster {self.cluster} is not one of {', '.join(CLUSTERS)}")

    def run(self, function: Callable[..., None], tasks: Iterable[Task], folder: Path, progress: Progress) -> None:
        """Run all tasks, in any order.

        Args:
            function: function at the top level of a module, so that other processes find it by name.
            tasks: tasks to run; the next one is taken when a process is free.
            folder: folder that the tasks write to.
            progress: progress that is updated meanwhile.

        Raises:
            BadInput: a task raised it, the cluster cannot be reached, or a node sees other files or has other versions.
        """
        todo = iter(tasks)
        first = list(islice(todo, 2))
        todo = chain(first, todo)
        if not first:
            return
        if self.cluster == "ray":
            _run_on_ray(function, todo, folder, progress)
        elif self.processes > 1 and len(first) > 1:
            _run_in_processes(function, todo, self.processes, progress)
        else:
            for task in todo:
                with progress.under_way(task.name):
                    function(*task.arguments, progress.tick)


HERE = Workers()  # this process alone


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the options `--workers` and `--cluster` to a command whose tasks `Workers` runs."""
    parser.add_argument(
        "--workers",
        type=Allowed(PROCESSES),
        default=os.cpu_count() or 1,
        help="number of processes (default: all cores)",
    )
    parser.add_argument(
        "--cluster",
        choices=CLUSTERS,
        default=CLUSTERS[0],
        help="ray: run on the Ray cluster at RAY_ADDRESS, started by `ray start --head`; every node must see the "
        "folders (default local: processes of this machine)",
    )


def _run_in_processes(function: Callable[..., None], todo: Iterator[Task], processes: int, progress: Progress) -> None:
    # "spawn", because a fork of a process with threads may hang.
    context = get_context("spawn")
    counters = context.Array("q", len(progress.done))
    begun = tuple(progress.done)
    with _Pool(processes, context, _start_process, (counters,)) as pool:
        pending: dict[Future[None], str] = {}
        try:
            while True:
                # Tasks are submitted one by one, so that the names shown are of tasks that a process works on.
                while len(pending) < processes + 1 and (task := next(todo, None)):
                    with _interrupts_held():
                        pending[pool.submit(_call, function, task.arguments)] = task.name
                if not pending:
                    return
                progress.waiting_for = list(pending.values())[:processes]
                finished, _ = wait(pending, LOOK_S, FIRST_COMPLETED)
                with counters.get_lock():
                    progress.set(*(a + b for a, b in zip(begun, counters[:], strict=True)))
                for future in finished:
                    del pending[future]
                    future.result()
        except BrokenProcessPool:
            raise BadInput(
                f"a worker process was killed from outside while it worked on {', '.join(progress.waiting_for)}, "
                "most likely because memory ran out; type the same command to resume, with fewer --workers"
            ) from None


class _Pool(ProcessPoolExecutor):
    """A process pool that kills its processes at once on Ctrl-C, also while it waits for them to end.

    Otherwise a process that lives longer, for example one that is still starting, would not find the objects that it
    shares with this process, and would print a traceback.
    """

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not KeyboardInterrupt:
                self.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            kind = KeyboardInterrupt
            raise
        finally:
            if kind is KeyboardInterrupt:
                for process in active_children():  # a task can be killed at any point
                    process.kill()
                self.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C. A process that is started meanwhile never gets Ctrl-C, because it inherits the blocked signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    # The signal is blocked only in this thread. If another thread receives it, Python still calls the handler in this
    # one.
    handler = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if came and callable(handler):
        handler(*came[0])


def _start_process(counters: Any) -> None:
    global _counters
    _counters = counters
    follow_parent()


def _call(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    def tick(bytes: int = 0, documents: int = 0, tokens: int = 0) -> None:
        with _counters.get_lock():
            for place, value in enumerate((bytes, documents, tokens)):
                _counters[place] += value

    function(*arguments, tick)


def _run_on_ray(function: Callable[..., None], todo: Iterator[Task], folder: Path, progress: Progress) -> None:
    mark = uuid4().hex
    write_text(folder / MARK, mark)
    driver = _Node(folder.absolute(), mark, library_versions(*LIBRARIES))
    with connected() as ray:
        from ray.exceptions import RayError, RayTaskError

        call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call_on_ray)
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        head = _Head(ray.get_runtime_context().gcs_address)
        pending: dict[Any, str] = {}
        while True:
            while len(pending) < 2 * slots and (task := next(todo, None)):
                pending[call.remote(driver, function, task.arguments)] = task.name
            if not pending:
                return
            progress.waiting_for = list(pending.values())[:slots]
            head.check()
            finished, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_S)
            for reference in finished:
                name = pending.pop(reference)
                try:
                    progress.tick(*ray.get(reference))
                except RayTaskError as error:
                    if isinstance(error.cause, BadInput):
                        raise BadInput(str(error.cause)) from None
                    raise
                except RayError as error:
                    raise _lost(name, error) from None


def _lost(name: str, error: Exception) -> BadInput:
    """The error for a task that Ray gave up. Ray's own text is not shown: it fills a page and quotes its logs."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, WorkerCrashedError

    kind, again = type(error).__name__, "then type the same command to resume"
    if isinstance(error, LocalRayletDiedError):  # Ray does not retry this, because its process on this machine is gone
        return BadInput(
            f"Ray on this machine ended while {name} was under way ({kind}); start it again (`ray start --head`, or "
            f"`ray start --address=HOST:6379` where the head is another machine), {again}"
        )
    if isinstance(error, (NodeDiedError, WorkerCrashedError)):
        return BadInput(
            f"{name} was started {RETRIES + 1} times, and each time its node or process was lost ({kind}), most likely "
            f"because memory ran out; look at the cluster with `ray status`, {again}"
        )
    return BadInput(
        f"Ray could not run {name} ({kind}: {str(error).strip().splitlines()[0][:200]}); look at the cluster with "
        f"`ray status`, {again}"
    )


class _Head:
    """A check of the cluster's head while tasks run, because Ray waits a minute for a dead head without a message.

    Args:
        address: `host:port` of the head.
    """

    def __init__(self, address: str) -> None:
        self._address, self._answered_s, self._looked_s = address, time.monotonic(), 0.0

    def check(self) -> None:
        """Print a message if the head does not answer; raise BadInput if it has not answered for `HEAD_DEAD_S`."""
        now_s = time.monotonic()
        if now_s - self._looked_s < HEAD_LOOK_S:
            return
        first, self._looked_s = self._answered_s >= self._looked_s, now_s
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), HEAD_LOOK_S).close()
        except OSError as error:
            silent_s = time.monotonic() - self._answered_s
            why = error.strerror or str(error)
            if silent_s > HEAD_DEAD_S:
                raise BadInput(
                    f"the head of the Ray cluster at {self._address} has not answered for {silent_s:.0f} s ({why}): it "
                    "died or cannot be reached; start the cluster again (`ray start --head` there, `ray start "
                    "--address=HOST:6379` on the others), then type the same command to resume"
                ) from None
            if first:
                print(f"the head of the Ray cluster at {self._address} does not answer ({why})", file=sys.stderr)
        else:
            self._answered_s = time.monotonic()


@dataclass(frozen=True)
class _Node:
    """The folder and library versions that each node must share with the machine that submits the tasks."""

    folder: Path
    mark: str
    versions: dict[str, str]

    def check(self) -> None:
        """Raise BadInput if this node sees another disk or has other library versions, so its output would differ."""
        path, name = self.folder / MARK, platform.node()
        if not path.is_file() or path.read_text() != self.mark:
            raise BadInput(f"node {name} does not see {path}; put the folders where all nodes of a cluster see them")
        if lines := difference(self.versions, library_versions(*LIBRARIES)):
            raise BadInput(f"node {name} has other libraries: {', '.join(lines)}; install requirements.txt there")


def _call_on_ray(driver: _Node, function: Callable[..., None], arguments: tuple[Any, ...]) -> Done:
    """Run one task on a node and return how much work it did."""
    driver.check()
    total = Done()

    def tick(bytes: int = 0, documents: int = 0, tokens: int = 0) -> None:
        nonlocal total
        total = Done(total.bytes + bytes, total.documents + documents, total.tokens + tokens)

    function(*arguments, tick)
    return total


@contextmanager
def connected(or_begin: bool = False) -> Iterator[Any]:
    """Connect to the Ray cluster at RAY_ADDRESS, or to the one that `ray start` started on this machine; yield `ray`.

    Args:
        or_begin: start a cluster of this machine alone if there is no other.

    Raises:
        BadInput: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # When a node dies, Ray would print the last page of the node's log here; `_lost` says in one line what it means.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Raylet is terminated|has been marked dead")
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or Path(token).is_file():
        # `ray start --head` requires a token if it finds one, but a client that connects to an address does not look
        # for the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError:
        raise BadInput("a Ray cluster needs ray, on each machine: make .venv/development brings it") from None
    if ray.is_initialized():  # the caller has connected already and keeps the connection
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):  # Ray itself would try for many minutes
            socket.create_connection((match[1], int(match[2])), CONNECT_TIMEOUT_S).close()
        if or_begin and address == "auto":
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); start one with `ray start --head`, add nodes "
            "with `ray start --address=HOST:6379`, name it by RAY_ADDRESS=HOST:6379 (a cluster with a token also needs "
            "RAY_AUTH_TOKEN, which `ray get-auth-token` prints), or omit --cluster"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends; otherwise a worker would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file; on success, flush the file to disk and rename it to `path`, else remove it.

    Each attempt has its own temporary path, because a node that seemed dead may still write while another node repeats
    its task.
    """
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield aside
        give_name(aside, path)
    finally:
        aside.unlink(missing_ok=True)

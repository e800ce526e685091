"""Tasks on this machine's processes or on a Ray cluster: the same functions, the same results.

A task reads files and writes files, each aside and renamed, so it can be cut short anywhere and run again, on another
machine too. On a cluster the folders must be the same ones on every node, as they must be for training, and so must be
the libraries that decide the bytes; a node where they are not is named.
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
MARK = ".cluster"  # a file of the folder that tasks write to, by which a node shows that it sees the same one
RETRIES = 16  # of a task whose node or process dies: nodes come and go, and a task is minutes at most
LOOK_S = 0.5
HEAD_LOOK_S = 2.0  # between two looks at the head of a cluster, and the longest that one takes
HEAD_DEAD_S = 15.0  # without an answer; Ray ends this process after 60
CONNECT_TIMEOUT_S = 10.0

Tick = Callable[..., object]  # tick(bytes=…, documents=…, tokens=…): what a task has done since the last call


@dataclass(frozen=True)
class Task:
    """A call `function(*arguments, tick)`.

    Attributes:
        name: what messages call it.
        arguments: must be picklable.
    """

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Workers:
    """Where tasks run.

    Attributes:
        processes: number of processes on this machine; a cluster uses all of its cores.
        cluster: one of `CLUSTERS`.
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
            function: of a module, so that other processes find it by name.
            tasks: its calls, taken as there is room for them.
            folder: where they write.
            progress: is kept up to date.

        Raises:
            BadInput: a task raised it, the cluster cannot be reached, or a node of it sees other files or versions.
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


HERE = Workers()  # one process, this one


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The switches of a command whose tasks are run by `Workers`."""
    parser.add_argument(
        "--workers", type=Allowed(PROCESSES), default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--cluster",
        choices=CLUSTERS,
        default=CLUSTERS[0],
        help="ray: on the Ray cluster at RAY_ADDRESS, begun by `ray start --head`; every node must see the folders "
        "(default local: processes of this machine)",
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
                # Not all at once: a name is under way only when a process has it.
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
                f"a worker process was ended from outside while it had {', '.join(progress.waiting_for)}, most likely "
                "for want of memory; type the same command to resume, with fewer --workers"
            ) from None


class _Pool(ProcessPoolExecutor):
    """Ends its processes at once on Ctrl-C, also while it waits for them to end.

    One that lived on, above all one that is still starting, would find what it shares with this process gone.
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
                for process in active_children():  # tasks can be cut short anywhere
                    process.kill()
                self.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits meanwhile. A process that is begun here never sees one: it inherits what is blocked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    # Blocked in this thread alone: another one may take the signal, and Python calls the handler here.
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
    """What it means that Ray gave a task back undone. Ray's own text is a page, and quotes its logs."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, WorkerCrashedError

    kind, again = type(error).__name__, "then type the same command to resume"
    if isinstance(error, LocalRayletDiedError):  # which Ray does not try again: there is nobody to ask
        return BadInput(
            f"Ray on this machine ended while {name} was under way ({kind}); start it again (`ray start --head`, or "
            f"`ray start --address=HOST:6379` where the head is another machine), {again}"
        )
    if isinstance(error, (NodeDiedError, WorkerCrashedError)):
        return BadInput(
            f"{name} was begun {RETRIES + 1} times, and each time its node or process was lost ({kind}), most likely "
            f"for want of memory; look at the cluster with `ray status`, {again}"
        )
    return BadInput(
        f"Ray could not run {name} ({kind}: {str(error).strip().splitlines()[0][:200]}); look at the cluster with "
        f"`ray status`, {again}"
    )


class _Head:
    """The head of a cluster, looked at while tasks run: Ray itself waits for a dead one for a minute, without a word.

    Args:
        address: `host:port` at which it answers.
    """

    def __init__(self, address: str) -> None:
        self._address, self._answered_s, self._looked_s = address, time.monotonic(), 0.0

    def check(self) -> None:
        """Say that it does not answer, and raise BadInput when it has not for so long that it is dead."""
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
    """What a node must share with the one that tasks come from."""

    folder: Path
    mark: str
    versions: dict[str, str]

    def check(self) -> None:
        """Raises BadInput on another disk, or with other libraries: such a node would write elsewhere, or otherwise."""
        path, name = self.folder / MARK, platform.node()
        if not path.is_file() or path.read_text() != self.mark:
            raise BadInput(f"node {name} does not see {path}; put the folders where all nodes of a cluster see them")
        if lines := difference(self.versions, library_versions(*LIBRARIES)):
            raise BadInput(f"node {name} has other libraries: {', '.join(lines)}; install requirements.txt there")


def _call_on_ray(driver: _Node, function: Callable[..., None], arguments: tuple[Any, ...]) -> Done:
    """What the task did comes back when it ends."""
    driver.check()
    total = Done()

    def tick(bytes: int = 0, documents: int = 0, tokens: int = 0) -> None:
        nonlocal total
        total = Done(total.bytes + bytes, total.documents + documents, total.tokens + tokens)

    function(*arguments, tick)
    return total


@contextmanager
def connected(or_begin: bool = False) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at RAY_ADDRESS, or to the one that `ray start` began on this machine.

    Args:
        or_begin: where there is neither, begin one of this machine alone.

    Raises:
        BadInput: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Of a node that dies Ray prints the last page of its log here; what it means for a task is said in a line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Raylet is terminated|has been marked dead")
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or Path(token).is_file():
        # `ray start --head` asks for a token where it finds one, but a connection to an address does not look for it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError:
        raise BadInput("a Ray cluster needs ray, on each machine: make .venv/development brings it") from None
    if ray.is_initialized():  # the caller's own
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):  # Ray itself looks for it for many minutes
            socket.create_connection((match[1], int(match[2])), CONNECT_TIMEOUT_S).close()
        if or_begin and address == "auto":
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); begin one with `ray start --head`, add nodes "
            "with `ray start --address=HOST:6379`, name it by RAY_ADDRESS=HOST:6379 (one that asks for a token wants "
            "RAY_AUTH_TOKEN, as `ray get-auth-token` prints it), or leave --cluster out"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def follow_parent() -> None:
    """Leave Ctrl-C to the parent to answer, and end when it ends: a worker of a killed parent would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name to write a file under; flushed to disk and renamed to `path` when all went well, removed otherwise.

    The name is this attempt's own: a node that was taken for dead may still write while another repeats its task.
    """
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield aside
        give_name(aside, path)
    finally:
        aside.unlink(missing_ok=True)

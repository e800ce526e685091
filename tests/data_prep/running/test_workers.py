"""Tasks on processes and on a real Ray cluster give the same results, and every way to fail is named."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from data_prep.common.errors import BadInput
from data_prep.filtering import spool
from data_prep.filtering.build_corpus import build_corpus
from data_prep.running import progress, workers
from data_prep.running.progress import Progress
from data_prep.running.workers import Task, Workers, written_aside
from data_prep.sharding.build_shards import build_shards
from data_prep.sources.text import Text
from patience import patience_s
from project import ROOT

FolderBytes = Callable[[Path], dict[str, bytes]]


SQUARES = """
from data_prep.common.errors import BadInput
from data_prep.running.workers import written_aside


def write_square(folder, number, tick):
    if number == 13:
        raise BadInput("13 is not liked")
    with written_aside(folder / f"{number}.txt") as path:
        path.write_text(str(number**2))
    tick(bytes=number, documents=1)
"""


@pytest.fixture(scope="module", autouse=True)
def write_square(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Put a task into a module that other processes can import, because they cannot import test files."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "square_tasks.py").write_text(SQUARES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder)]))
        yield importlib.import_module("square_tasks").write_square


def squares(folder: Path, numbers: range) -> list[Task]:
    return [Task(str(number), (folder, number)) for number in numbers]


@pytest.mark.parametrize("processes", [1, 2])
def test_tasks_in_processes(tmp_path: Path, processes: int, write_square: Callable[..., None]):
    with Progress("square", sum(range(12))) as seen:
        Workers(processes).run(write_square, squares(tmp_path, range(12)), tmp_path, seen)
        Workers(processes).run(write_square, squares(tmp_path, range(3)), tmp_path, seen)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{n}.txt": str(n * n) for n in range(12)}
    assert seen.done == (sum(range(12)) + 3, 15, 0)
    with pytest.raises(BadInput, match="13 is not liked"), Progress("square", 1) as seen:
        Workers(processes).run(write_square, squares(tmp_path, range(10, 20)), tmp_path, seen)


@pytest.mark.parametrize("waits", ["wait", "shutdown"])
def test_ctrl_c_leaves_no_process(
    waits: str, tmp_path: Path, write_square: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """No process is left when tasks are interrupted or done, even if one was still starting and was not needed."""

    def interrupt(*_: object, **__: object) -> NoReturn:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(workers if waits == "wait" else workers.ProcessPoolExecutor, waits, interrupt)
    with pytest.raises(KeyboardInterrupt), Progress("square", 3) as seen:
        Workers(2).run(write_square, squares(tmp_path, range(3)), tmp_path, seen)
    assert not multiprocessing.active_children()


def test_bad_switches():
    with pytest.raises(BadInput, match="--workers = 0, but it must be a whole number from 1"):
        Workers(0)
    with pytest.raises(BadInput, match="--cluster slurm is not one of local, ray"):
        Workers(1, "slurm")


def test_files_written_aside_are_whole_or_not_there(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "a") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with written_aside(tmp_path / "a") as one, written_aside(tmp_path / "b") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
        assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


class Clock:
    """A clock for `progress` that only `pass_s` moves; the thread of `progress` looks at every second of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.ended = 1000.0, False
        self.turn, self.looked = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(progress, "threading", SimpleNamespace(Thread=threading.Thread, Event=lambda: self))

    def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            assert self.looked.acquire(timeout=patience_s(1))
            self.now_s += progress.REFRESH_S
            self.turn.release()
        assert self.looked.acquire(timeout=patience_s(1))
        self.looked.release()

    def wait(self, refresh_s: float) -> bool:
        """Stands in for the event that ends the thread."""
        self.looked.release()
        self.turn.acquire()
        return self.ended

    def set(self) -> None:
        self.ended = True
        self.turn.release()


def test_a_stall_is_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    clock = Clock(monkeypatch)
    with Progress("encode", 10**9) as seen, seen.under_way("train-00017"):
        seen.tick(bytes=2 * 10**8, documents=3, tokens=4 * 10**7)
        clock.pass_s(150)
        line = seen.line()
    lines = capfd.readouterr().err.splitlines()
    assert [text for text in lines if "nothing has moved" in text] == [
        f"encode: nothing has moved for {seconds} s; under way: train-00017" for seconds in (61, 122)
    ], "the message is not repeated at each look"
    assert line.startswith("encode: 0.20 of 1.00 GB (20 %)") and "Mtok/s" in line and line.endswith(" left")


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    clock = Clock(monkeypatch)
    with Progress("pack", 100) as seen:
        for _ in range(20):
            seen.tick(bytes=5)
            clock.pass_s(10)
    assert capfd.readouterr().err.count("pack: ") == 3, "in 200 seconds"


@pytest.fixture(scope="module")
def cluster(write_square: object) -> Iterator[Any]:
    """A real Ray cluster of two nodes with one core each on this machine; a test may kill the second node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", str(made.address))
        yield made
        made.shutdown()


@pytest.mark.chaos
def test_shards_on_ray_survive_the_loss_of_a_node(
    cluster: Any, tmp_path: Path, tiny_documents: list, make_corpus: Any, tiny_tokenizer: Path,
    folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """With two nodes, one of them killed midway, the bytes equal those of one process on one machine."""
    monkeypatch.setattr(spool, "buckets_for", lambda _: 40)
    parts = make_corpus(tmp_path / "corpus", tiny_documents)
    second = cluster.add_node(num_cpus=1)
    killed = threading.Event()
    out = tmp_path / "shards"

    def kill_midway() -> None:
        while len(list((tmp_path / "shards.work").glob("*/train-*.json"))) < 15:
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill_midway)
    killer.start()
    build_shards(parts, tiny_tokenizer, out, seq_len=64, size_limit_mb=1, workers=Workers(1, "ray"))
    killer.join()
    assert killed.is_set()
    build_shards(parts, tiny_tokenizer, tmp_path / "straight", seq_len=64, size_limit_mb=1)
    assert folder_bytes(out) == folder_bytes(tmp_path / "straight")


def test_a_corpus_on_ray_is_the_same(cluster: Any, tmp_path: Path, folder_bytes: FolderBytes, monkeypatch: Any):
    monkeypatch.setattr(spool, "BATCH_BYTES", 1)
    (tmp_path / "in").mkdir()
    for n in range(6):
        (tmp_path / f"in/{n}.jsonl").write_text("".join(f'{{"text": "text {n} {i}"}}\n' for i in range(40)))
    source = {"text": (Text(), [str(tmp_path / "in")])}
    build_corpus(source, tmp_path / "far", 0.2, workers=Workers(1, "ray"))
    build_corpus(source, tmp_path / "near", 0.2)
    assert folder_bytes(tmp_path / "far") == folder_bytes(tmp_path / "near")


def test_what_a_task_on_ray_says_arrives(cluster: Any, tmp_path: Path, write_square: Callable[..., None]):
    with Progress("square", 10) as seen:
        Workers(1, "ray").run(write_square, squares(tmp_path, range(5)), tmp_path, seen)
        assert seen.done == (10, 5, 0)
        with pytest.raises(BadInput) as error:
            Workers(1, "ray").run(write_square, squares(tmp_path, range(13, 14)), tmp_path, seen)
    assert str(error.value) == "13 is not liked"


def test_a_node_with_other_files_or_libraries_is_refused(
    cluster: Any, tmp_path: Path, write_square: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """Real tasks check the folder: they do not find the mark that this process wrote, or lack a package."""

    def refused(match: str) -> None:
        with Progress("square", 10) as seen, pytest.raises(BadInput, match=match):
            Workers(1, "ray").run(write_square, squares(tmp_path, range(3)), tmp_path, seen)
        assert not list(tmp_path.glob("*.txt"))

    with monkeypatch.context() as patch:
        patch.setattr(workers, "write_text", lambda *_: None)  # another disk: the mark is missing there
        refused(r"node .* does not see .*\.cluster; put the folders where all nodes of a cluster see them")
    with monkeypatch.context() as patch:
        real = workers.library_versions
        patch.setattr(workers, "library_versions", lambda *names: {**real(*names), "gigatoken": "0.0.1"})
        refused(r"node .* has other libraries: gigatoken: '0\.0\.1' -> ")


def test_no_cluster_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_square: Callable[..., None]):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        BadInput, match=r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused\); start one with `ray start --h"
    ):
        Workers(1, "ray").run(write_square, squares(tmp_path, range(1)), tmp_path, Progress("x", 1))


def test_a_task_that_ray_gives_back_is_told_in_a_line():
    """Each kind of error of Ray; the number of attempts is named only for errors after which Ray tries again."""
    from ray import exceptions

    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, exceptions.RayError) and kind is not exceptions.RayTaskError]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "what happened\n[state-dump] of a node\n" * 20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "__str__", Exception.__str__)
            message = str(workers._lost("train-00017", error))
        assert "\n" not in message and "state-dump" not in message and kind.__name__ in message
        assert "train-00017" in message and message.endswith("type the same command to resume")
        tried_again = kind in (exceptions.NodeDiedError, exceptions.WorkerCrashedError)
        assert ("17 times" in message) == tried_again, message


def test_a_head_that_does_not_answer_is_said_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now_s = 1000.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now_s))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = workers._Head(address)
        head.check()
    now_s += workers.HEAD_LOOK_S
    head.check()
    now_s += workers.HEAD_LOOK_S / 2  # the thread has not looked yet
    head.check()
    now_s += workers.HEAD_LOOK_S
    head.check()
    assert capsys.readouterr().err == f"the head of the Ray cluster at {address} does not answer (Connection refused)\n"
    now_s += workers.HEAD_DEAD_S
    with pytest.raises(BadInput, match=rf"{address} has not answered for \d+ s .*`ray start --head`.*type the same"):
        head.check()


HEAD = """
import os, signal, sys, threading, time
from pathlib import Path
from data_prep.common.errors import run
from data_prep.running.progress import Progress
from data_prep.running.workers import Task, Workers

def main():
    from ray.cluster_utils import Cluster
    from slow_tasks import wait
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = str(made.address)
    folder = Path(sys.argv[1])

    def kill():
        while not list(folder.glob("begun-*")):
            time.sleep(0.1)
        for kind, found in made.head_node.all_processes.items():
            if sys.argv[2] in ("all", kind):
                for one in found:
                    os.kill(one.process.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with Progress("wait", 10) as seen:
        Workers(1, "ray").run(wait, [Task(str(n), (folder, n)) for n in range(9)], folder, seen)

run(main)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("killed", ["all", "raylet"])
def test_a_head_that_dies_midway(killed: str, tmp_path: Path, outcome: Callable[[str, str, str], None]):
    """Runs in its own process, because Ray ends a process after a minute without a head."""
    (tmp_path / "slow_tasks.py").write_text(
        "import time\ndef wait(folder, n, tick):\n    (folder / f'begun-{n}').touch()\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD, str(tmp_path), killed],
        env=environment, capture_output=True, text=True, timeout=patience_s(),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "type the same command to resume" in done.stderr.splitlines()[-1]
    assert "state-dump" not in done.stdout + done.stderr and "times" not in done.stderr
    outcome(f"Ray's head dies midway ({killed})", done.stderr.splitlines()[-1], "tasks that were running")

"""After Ctrl-C at any moment, a data command ends with code 130 and one line, and leaves no process or output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oracle import half_written
from patience import patience_s, start_s
from project import ROOT

SAID = "interrupted: type the same command to resume"


def group(process: int) -> list[str]:
    """Command lines of the processes in a process group, without zombies."""
    commands = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == process and state != "Z":
                commands.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return commands


def interrupted(command: list[str | Path], folder: Path, begun: Begun, wait_s: float) -> tuple[int, str, list[str]]:
    """Send Ctrl-C to all processes of a command, like a terminal, some seconds after a condition is met."""
    running = subprocess.Popen(
        [sys.executable, *command], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while running.poll() is None and not begun(running.pid):
            time.sleep(0.001)
        time.sleep(wait_s)
        os.killpg(running.pid, signal.SIGINT)
        _, output = running.communicate(timeout=patience_s())
        end_s = time.monotonic() + patience_s()
        while (left := group(running.pid)) and time.monotonic() < end_s:
            time.sleep(0.05)
        return running.returncode, output, left
    finally:
        if group(running.pid):
            os.killpg(running.pid, signal.SIGKILL)


Begun = Callable[[int], object]


def imports(process: int) -> bool:
    """Wait until the first libraries are loaded; before that, Python itself handles Ctrl-C and prints a traceback."""
    return "orjson" in Path(f"/proc/{process}/maps").read_text()


def workers(process: int) -> bool:
    """Wait until a worker process has started and imports its libraries."""
    return any("spawn_main" in command for command in group(process))


COMMANDS = ("shards", "corpus", "tokenizer", "verify")
MOMENTS = 12  # moments in `make chaos`, spread over the time that a command takes here


@pytest.fixture
def command(
    request: pytest.FixtureRequest, tiny_corpus: Path, tiny_tokenizer: Path, tiny_shards: Path, tmp_path: Path
) -> list[str | Path]:
    """A command that makes `out`; verify.py reads the shards in `out` instead."""
    name, two = request.param, ["--workers", "2"]
    lines = (f'{{"text": "a text of its own, number {n}"}}\n' for n in range(4000))
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    if name == "verify":
        shutil.copytree(tiny_shards, tmp_path / "out")
    out = tmp_path / "out"
    return {
        "shards": [
            ROOT / "data_prep/shards.py", "--corpus", tiny_corpus, "--tokenizer", tiny_tokenizer, *two, "--seq-len",
            "64", "--out", out,
        ],
        "corpus": [ROOT / "data_prep/corpus.py", "--source", "text", "--input", "texts.jsonl", *two, "--out", out],
        "tokenizer": [
            ROOT / "data_prep/tokenizer.py", "--corpus", tiny_corpus, "--vocab-size", "600", "--out", out,
        ],
        "verify": [ROOT / "data_prep/verify.py", "--shards", out],
    }[name]  # fmt: skip


def check(command: list[str | Path], folder: Path, begun: Begun, wait_s: float) -> None:
    code, output, left = interrupted(command, folder, begun, wait_s)
    assert not left, left
    assert not half_written(folder / "out")
    assert "Traceback" not in output, output
    assert (code, output.count(SAID)) in ((130, 1), (0, 0)), output  # the command may have finished before


@pytest.mark.parametrize("command", ["shards"], indirect=True)
@pytest.mark.parametrize("begun", [imports, workers])
@pytest.mark.parametrize("wait_starts", [0, 0.05, 0.2])
def test_ctrl_c_at_any_moment(begun: Begun, wait_starts: float, command: list[str | Path], tmp_path: Path) -> None:
    check(command, tmp_path, begun, wait_starts * start_s())


@pytest.mark.parametrize("command", COMMANDS[1:], indirect=True)
@pytest.mark.parametrize("wait_starts", [0.02, 0.1])
def test_ctrl_c_of_each_command(wait_starts: float, command: list[str | Path], tmp_path: Path) -> None:
    check(command, tmp_path, imports, wait_starts * start_s())


@pytest.mark.chaos
@pytest.mark.parametrize("command", COMMANDS, indirect=True)
def test_ctrl_c_at_moments_over_all_of_it(command: list[str | Path], tmp_path: Path) -> None:
    begin_s = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    took_s = time.monotonic() - begin_s
    for moment in range(MOMENTS):
        if command[0] != ROOT / "data_prep/verify.py":
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        check(command, tmp_path, imports, took_s * moment / MOMENTS)

"""If two commands write one output, the second is refused and names the first; a dead process blocks no output."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import main_of, options, parser_of
from data_prep.common.command_line import FileToWrite, folder_to_make
from data_prep.common.errors import BadInput
from data_prep.common.lock import INSIDE, hold
from data_prep.common.manifest import begin, publish
from holder import HOLD, Holder
from patience import patience_s
from project import COMMANDS, ROOT

# Arguments that a command needs, beside its output, to reach its lock; only if not every text is allowed.
GIVEN = {
    "data_prep/corpus.py": ["--source", "sample"],
    "recipes/ladder.py": sorted(map(str, (ROOT / "yamls/ladder/tiny").glob("*.yaml"))),
    "recipes/report.py": ["missing-run"],
    "data_prep/look.py": ["missing"],
}
# Outputs that no option is typed as. Commands that run a configuration write a run folder, which has its own test.
MORE = [
    ("data_prep/verify.py", ["--repair", "--remote", "missing", "--shards", "shards"], "shards"),
    ("recipes/report.py", ["missing-run"], "missing-run/report.html"),
    ("recipes/report.py", ["missing-run", "--log"], str(ROOT / "docs/runs.md")),
]
RUN_A_CONFIGURATION = {"recipes/train.py", "recipes/finetune.py", "recipes/sweep.py", "recipes/preflight.py"}
WRITE_NOTHING = {"recipes/plan.py"}


def outputs() -> Iterator[tuple[str, list[str], str]]:
    """Each output of every command: the command, its arguments and the name of the output."""
    for command in COMMANDS:
        for before, action in options(parser_of(command)):
            if action.type is folder_to_make:
                name = "new"
            elif isinstance(action.type, FileToWrite):
                name = f"new{action.type.endings[0]}"
            else:
                continue
            needed = [
                part
                for place, other in options(parser_of(command))
                if place == before and other.required and other is not action and other.option_strings
                for part in (other.option_strings[0], "missing")
                if command not in GIVEN or other.dest != "source"
            ]
            yield command, [*before, *GIVEN.get(command, []), *needed, action.option_strings[0], name], name


OUTPUTS = [*outputs(), *MORE]


def refusal(output: Path) -> str:
    with pytest.raises(BadInput) as refused, hold(output):
        pass
    return str(refused.value)


def test_every_command_is_looked_at() -> None:
    assert {command for command, _, _ in OUTPUTS} | RUN_A_CONFIGURATION | WRITE_NOTHING == {*COMMANDS}
    for command in RUN_A_CONFIGURATION:
        assert "overrides" in {action.dest for _, action in options(parser_of(command))}


@pytest.mark.parametrize(("command", "arguments", "name"), OUTPUTS, ids=lambda one: one if isinstance(one, str) else "")
def test_a_command_refuses_an_output_that_another_writes(
    command: str, arguments: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new command that writes an output without a lock fails here with another message, or succeeds."""
    monkeypatch.chdir(tmp_path)
    with Holder(name, tmp_path) as holder:
        with pytest.raises(BadInput, match=holder.says):
            main_of(command)(arguments)
        assert not any(path.name == "new" for path in tmp_path.rglob("*"))
        holder.kill()
        with hold(tmp_path / name):
            pass


def test_a_dead_holder_and_one_that_is_done(tmp_path: Path) -> None:
    out = tmp_path / "deep/er/out"
    with Holder(out) as holder:
        assert f"pid {holder.process.pid} on host" in refusal(out)
        holder.kill()
        assert (tmp_path / "deep/er/.out.lock").is_file(), "the dead process has left its lock"
    with hold(out):
        pass
    assert not (tmp_path / "deep/er/.out.lock").exists()
    (tmp_path / "deep/er").rmdir()
    (tmp_path / "deep").rmdir()
    with Holder(out) as holder:
        assert f"pid {holder.process.pid} on host" in refusal(out)
        holder.let_go()
    assert not (tmp_path / "deep").exists(), "the folders that were made for the lock are removed with it"


def test_names_of_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "disk/alias").symlink_to("out")
    (tmp_path / "disk/out").mkdir()
    monkeypatch.chdir(tmp_path / "disk")
    with Holder(tmp_path / "disk/out"):
        for name in ("out", "./out", "../link/out", str(tmp_path / "link/out"), "alias", "../disk/nothing/../out"):
            assert "another process" in refusal(Path(name)), name
        with hold(Path("out.html")), hold(Path("other")), hold(tmp_path / "disk"), hold(Path("out/inner")):
            pass
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [".out.lock", "alias", "out"]


def test_beside_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point in a folder of root: root may write anywhere, so the test refuses the lock file."""
    (tmp_path / "mount").mkdir()
    real = os.open

    def refuse(path: object, flags: int, mode: int = 0o777) -> int:
        if path == tmp_path / ".mount.lock":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, mode)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "open", refuse)
    with hold(tmp_path / "mount"):
        assert (tmp_path / "mount" / INSIDE).is_file()
        assert "this process is writing" in refusal(tmp_path / "mount")
    assert not list((tmp_path / "mount").iterdir())
    monkeypatch.setattr(os, "open", real)
    (tmp_path / "file").touch()
    assert "file/run cannot be locked" in refusal(tmp_path / "file/run")
    assert "cannot be locked" in refusal(Path("/proc/nowhere/run"))


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with hold(tmp_path / "run"):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_two_threads_of_one_process(tmp_path: Path) -> None:
    """POSIX record locks belong to a process: they would admit both threads, and end when one closes its file."""
    with hold(tmp_path / "out"):
        refusals: list[str] = []
        thread = threading.Thread(target=lambda: refusals.append(refusal(tmp_path / "out")))
        thread.start()
        thread.join()
        assert "this process is writing" in refusals[0]
        other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path / "out")], cwd=ROOT, capture_output=True)
        assert b"another process" in other.stderr


def test_a_lock_that_was_removed_under_its_holder(tmp_path: Path) -> None:
    """If a lock file is removed, its command publishes nothing and leaves the lock of another command alone."""
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=r"\.out\.lock was removed while this command ran"), hold(out):
        partial = begin(out)
        (partial / "data").write_text("mine")
        (tmp_path / ".out.lock").unlink()
        with Holder(out) as other:
            try:
                publish(partial, out, {"stage": "x", "format": 1}, {})
            finally:
                assert f"pid {other.process.pid} on host" in (tmp_path / ".out.lock").read_text()
    assert not out.exists()


def test_a_holder_lets_go_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a removed file would block no other command."""
    real, calls = fcntl.lockf, 0

    def lock(descriptor: int, flags: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / ".out.lock").unlink()
        real(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", lock)
    with hold(tmp_path / "out"):
        assert calls == 2
        other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path / "out")], cwd=ROOT, capture_output=True)
        assert f"pid {os.getpid()} on host".encode() in other.stderr
    assert not list(tmp_path.iterdir())


def test_two_corpora_with_one_name(tmp_path: Path) -> None:
    """A real race: both builds start at once, each with its own fraction."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text number {n}", "id": f"{n}"}) + "\n" for n in range(20_000)))
    command = [sys.executable, ROOT / "data_prep/corpus.py", "--source", "text", "--input", texts, "--workers", "1"]
    fractions = (0.05, 0.4)
    racing = [
        subprocess.Popen(
            [*command, "--out", tmp_path / "c", "--val-fraction", str(fraction)], stderr=subprocess.PIPE, text=True
        )
        for fraction in fractions
    ]
    errors = [process.communicate(timeout=patience_s())[1] for process in racing]
    codes = [process.returncode for process in racing]
    assert sorted(codes) == [0, 2], errors
    loser, winner = codes.index(2), codes.index(0)
    if "is the output of another build" not in errors[loser]:  # otherwise the winner ended before the other began
        assert f"(pid {racing[winner].pid} on host" in errors[loser]
        assert f"--val-fraction {fractions[winner]}" in errors[loser], "the holder's command"
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    assert manifest["arguments"]["val_fraction"] == fractions[winner]
    assert manifest["counts"]["val"]["documents"] == pytest.approx(20_000 * fractions[winner], rel=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "c.inputs.jsonl.zst", "texts.jsonl"]

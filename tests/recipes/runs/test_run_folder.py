"""What a run folder takes and refuses, without a run."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from project import ROOT
from recipes.runs.fingerprint import check_fingerprint
from recipes.runs.lock import hold

HOLD = "import sys; from pathlib import Path; from recipes.runs.lock import hold\nwith hold(Path(sys.argv[1])):"


def test_a_held_folder_is_refused_and_says_who_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD} print('held', flush=True); sys.stdin.read()", str(tmp_path / "run")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match=f"pid {holder.pid}. is running .*run"), hold(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with hold(tmp_path / "run"):
        pass
    assert check_fingerprint(tmp_path / "run", {}) is None, "still a new folder"


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with hold(tmp_path / "run"):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadInput, match=r"run_dir = .*file/run: Not a directory"),
        hold(tmp_path / "file/run"),
    ):
        pass

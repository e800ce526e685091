"""The output of git is recorded whatever bytes it has, and if git fails, the record and a message say so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from project import ROOT
from recipes.config.loading import load_config
from recipes.runs import environment
from recipes.runs.environment import read_code
from recipes.runs.folder import open_run

LATIN_1 = "naïve Bayes, Sjögren".encode("latin-1")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a changed tracked file that is not UTF-8, in place of this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "HERE", folder)
    (folder / "notes.txt").write_bytes(b"first\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    (folder / "notes.txt").write_bytes(LATIN_1 + b"\n")
    return folder


def test_a_change_in_any_encoding_is_kept_byte_for_byte(repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    cfg = load_config(ROOT / "yamls/smoke-cpu.yaml", [f"run_dir={run}"])
    open_run(run, cfg, {}, {}, lambda folder: folder.mkdir(), {"world_size": 1})
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert len(start["commit"]) == 40 and start["no_commit"] == "" and start["uncommitted"] == ["M notes.txt"]
    (kept,) = run.glob("uncommitted-*.diff")
    assert b"+" + LATIN_1 + b"\n" in kept.read_bytes() and kept.name[12:24] == start["uncommitted_sha256"][:12]
    subprocess.run(["git", "checkout", "-q", "."], cwd=repository, check=True)
    subprocess.run(["git", "apply", kept], cwd=repository, check=True)
    assert (repository / "notes.txt").read_bytes() == LATIN_1 + b"\n"


def test_names_of_files_in_any_encoding_go_into_json(repository: Path) -> None:
    subprocess.run(["git", "config", "core.quotepath", "false"], cwd=repository, check=True)
    (repository / "x.txt").touch()
    (repository / "x.txt").rename(repository / "na\udcefve.txt")
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    (changed,) = [line for line in read_code().uncommitted if line.startswith("A")]
    assert json.dumps(changed).encode() and "na" in changed


def test_a_checkout_of_another_owner_says_that_no_commit_is_recorded(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    facts = environment.environment(1)
    assert facts["commit"] == "" and "dubious ownership" in facts["no_commit"]
    errors = capsys.readouterr().err
    assert "warning: the commit of the code is not recorded: fatal: detected dubious ownership" in errors


def test_without_a_repository_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "HERE", tmp_path)
    assert "not a git repository" in environment.environment(1)["no_commit"]
    assert not capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert read_code().no_commit == "git: No such file or directory"

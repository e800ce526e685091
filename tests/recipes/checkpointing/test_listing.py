"""`report.py RUN --checkpoints` says for each checkpoint what a resumed run would find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from last_line import next_command
from recipes import report
from recipes.checkpointing import checkpoint
from recipes.checkpointing.checkpoint import newest_intact

WHERE = "checkpoints"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints after batches 10, 20 and 100."""
    folder = tmp_path / "run"
    for batch in (10, 20, 100):
        partial = folder / WHERE / f"ep0-ba{batch}.partial"
        partial.mkdir(parents=True)
        for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
            (partial / name).write_bytes(f"{name} of {batch}".encode() * 100_000)
        saved_at = {"batch": batch, "epoch": 0, "sample_in_epoch": batch * 8}
        checkpoint.publish(partial, partial.with_suffix(""), saved_at, {"seed": 17})
    (folder / "run.json").write_text(json.dumps({"finished": False}))
    (folder / "config.yaml").write_text("run_name: a\nsave_remote: null\n")
    return folder


def listed(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The printed lines, without the last, which names the next command; and the error at the end."""
    error = ""
    try:
        report.main([str(run), "--checkpoints"])
    except BadInput as refused:
        error = str(refused)
    lines = capsys.readouterr().out.splitlines()
    if error or not any((run / WHERE).iterdir()):
        return lines, error
    assert next_command(lines[-1], run)[:4] == ["python", "recipes/export.py", "--checkpoint", str(run)]
    return lines[:-1], error


def test_whole_ones_are_listed_by_batch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, error = listed(run, capsys)
    assert [" ".join(line.split()) for line in lines] == [
        str(run), "checkpoint batch size state", "ep0-ba10 10 5.1 MB whole", "ep0-ba20 20 5.1 MB whole",
        "ep0-ba100 100 5.4 MB whole", "the run would resume from ep0-ba100",
    ]  # fmt: skip
    assert not error and not list(run.glob("*.html"))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json"])
@pytest.mark.parametrize("batches", [(100,), (20,), (20, 100), (10, 20, 100)])
def test_what_is_wrong_is_said_and_a_resume_takes_what_is_told(
    run: Path, name: str, batches: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for batch in batches:
        path = run / WHERE / f"ep0-ba{batch}" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    lines, error = listed(run, capsys)
    assert [line.split()[0] for line in lines if line.endswith("  damaged")] == [f"ep0-ba{batch}" for batch in batches]
    assert sum(name in line and "was altered after it was written" in line for line in lines) == len(batches)
    assert error.startswith(f"{len(batches)} of 3 checkpoints are damaged")
    if len(batches) == 3:
        assert "no whole checkpoint" in lines[-1]
        with pytest.raises(BadInput, match="is intact"):
            newest_intact(run / WHERE)
    else:
        taken, _ = newest_intact(run / WHERE)
        assert taken and lines[-1] == f"  the run would resume from {taken.name}"


def test_all_faults_of_a_checkpoint_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / WHERE / "ep0-ba20/.metadata").write_bytes(b"short")
    (run / WHERE / "ep0-ba20/__1_0.distcp").unlink()
    lines, error = listed(run, capsys)
    at = next(n for n, line in enumerate(lines) if line.endswith("  damaged"))
    assert "has 5 bytes" in lines[at + 1] and "No such file" in lines[at + 2] and "1 of 3" in error


def test_what_was_not_written_to_its_end_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a kill, a partial checkpoint is not a fault, but nothing can be resumed from it."""
    (run / WHERE / "ep0-ba100/manifest.json").unlink()
    (run / WHERE / "ep0-ba120.partial").mkdir()
    lines, error = listed(run, capsys)
    assert lines[-2].endswith("not complete (no manifest.json), ignored") and not error
    assert lines[-1] == "  the run would resume from ep0-ba20"


def test_a_run_without_checkpoints_and_one_with_a_remote_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text("save_remote: s3://bucket/prefix\n")
    assert (
        listed(run, capsys)[0][-1] == "  or from a newer one at s3://bucket/prefix, which this command does not check"
    )
    for path in (run / WHERE).iterdir():
        checkpoint.remove(path)
    assert "no whole checkpoint" in listed(run, capsys)[0][-2]


@pytest.mark.parametrize("option", ["--watch", "--log", "--out a.html", "--plot a.png", "--x tokens", "--from-batch 3"])
def test_options_of_the_page_are_refused_beside_it(run: Path, option: str) -> None:
    with pytest.raises(BadInput, match=f"{option.split()[0]} cannot be used with --checkpoints"):
        report.main([str(run), "--checkpoints", *option.split()])
    with pytest.raises(BadInput, match="holds no run"):
        report.main([str(run / WHERE), "--checkpoints"])

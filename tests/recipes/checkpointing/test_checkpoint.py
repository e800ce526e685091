"""A checkpoint counts only if it is whole, and the newest whole one is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from recipes.checkpointing import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, after batches 10, 20 and 100."""
    for batch in (10, 20, 100):
        partial = tmp_path / f"ep0-ba{batch}.partial"
        partial.mkdir()
        for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
            (partial / name).write_bytes(f"{name} of {batch}".encode() * 100)
        checkpoint.publish(
            partial,
            tmp_path / f"ep0-ba{batch}",
            {"batch": batch, "epoch": 0, "sample_in_epoch": batch * 8},
            {"seed": 17},
        )
    return tmp_path


def test_the_newest_is_the_one_of_the_latest_batch(folder: Path) -> None:
    assert [path.name for path in checkpoint.complete_checkpoints(folder)] == ["ep0-ba10", "ep0-ba20", "ep0-ba100"]
    assert checkpoint.newest_intact(folder) == (folder / "ep0-ba100", [])
    assert checkpoint.newest_intact(folder / "nothing") == (None, [])


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_one_is_named_left_and_passed_over(folder: Path, name: str, damage: str) -> None:
    path = folder / "ep0-ba100" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        at = data.index(b"17") if name == "manifest.json" else 50
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:at] + b"3" + data[at + 1 :])
    newest, faults = checkpoint.newest_intact(folder)
    assert newest == folder / "ep0-ba20"
    if (damage, name) == ("missing", "manifest.json"):
        assert faults == []  # a save that was killed never got a manifest
    else:
        assert len(faults) == 1 and str(path) in faults[0]
    assert (folder / "ep0-ba100").is_dir()


def test_a_save_that_was_killed_does_not_count(folder: Path) -> None:
    shutil.copytree(folder / "ep0-ba100", folder / "ep0-ba200.partial")
    assert checkpoint.newest_intact(folder)[0] == folder / "ep0-ba100"


def test_no_intact_checkpoint_is_not_no_checkpoint(folder: Path) -> None:
    for batch in (10, 20, 100):
        (folder / f"ep0-ba{batch}/.metadata").write_bytes(b"")
    with pytest.raises(BadInput, match=r"(?s)no checkpoint in .* is intact:.*ep0-ba100.*ep0-ba20.*ep0-ba10/"):
        checkpoint.newest_intact(folder)


def test_publishing_again_replaces_it(folder: Path) -> None:
    (folder / "ep0-ba100/.metadata").write_bytes(b"")
    partial = folder / "ep0-ba100.partial"
    partial.mkdir()
    (partial / "rank0.pt").write_bytes(b"new")
    checkpoint.publish(partial, folder / "ep0-ba100", {"batch": 100, "epoch": 0, "sample_in_epoch": 0}, {})
    assert checkpoint.fault(folder / "ep0-ba100") is None
    assert sorted(path.name for path in (folder / "ep0-ba100").iterdir()) == ["manifest.json", "rank0.pt"]


def test_each_rank_hashes_what_it_wrote(tmp_path: Path) -> None:
    partial, out = tmp_path / "partial", tmp_path / "ep0-ba100"
    partial.mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp", "__1_1.distcp", "__10_0.distcp", ".metadata"):
        (partial / name).write_bytes(name.encode() * 9)
    hashed = checkpoint.own_outputs(partial, 1)
    assert set(hashed) == {"__1_0.distcp", "__1_1.distcp"}
    checkpoint.publish(
        partial, out, {"batch": 100, "epoch": 0, "sample_in_epoch": 0}, {}, hashed | checkpoint.own_outputs(partial, 10)
    )
    assert checkpoint.fault(out) is None
    (out / "__1_0.distcp").write_bytes(b"__1_0.distcq" * 9)
    assert "altered" in (checkpoint.fault(out) or "")


def test_a_part_of_another_size_than_its_rank_saw_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "__1_0.distcp").write_bytes(b"whole")
    hashed = checkpoint.own_outputs(partial, 1)
    (partial / "__1_0.distcp").write_bytes(b"cut")
    with pytest.raises(OSError, match=r"has 3 bytes, but 5 when it was hashed"):
        checkpoint.publish(partial, tmp_path / "ep0-ba1", {"batch": 1, "epoch": 0, "sample_in_epoch": 0}, {}, hashed)
    assert not (tmp_path / "ep0-ba1").exists()

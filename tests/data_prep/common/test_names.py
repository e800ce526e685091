"""A name that others wrote cannot lead out of its folder or move the cursor of a terminal."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep import verify
from data_prep.common.errors import BadInput, escaped, run
from data_prep.common.files import write_json
from data_prep.common.manifest import MANIFEST, read_manifest, seal
from data_prep.common.names import plain_name, plain_path
from data_prep.sharding.shard_format import STAGE, read_index

OUTSIDE = [
    "../x", "../../x", "/etc/passwd", "a/../../x", "..", ".", "", "a//b", "a\\b", "a\0b", "a\nb", "\x1b[2Jb", "\u202eb",
    "9" * 256, "é" * 128,
]  # fmt: skip
NO_TEXT: list[Any] = [None, 3, ["a"], {"a": 1}]


@pytest.mark.parametrize("name", [*OUTSIDE, *NO_TEXT])
def test_a_name_is_of_a_file_in_the_folder(name: Any) -> None:
    with pytest.raises(BadInput, match="names a file outside its folder"):
        plain_path(name, "the list") if isinstance(name, str) else plain_name(name, "the list")
    assert plain_name("shard.00000.mds.zstd", "") and plain_path("train/shard 1.mds", "")
    with pytest.raises(BadInput):
        plain_name("train/index.json", "the list")


def forged(folder: Path, change: Any) -> None:
    """A manifest whose seal is valid although its content was changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    write_json(folder / MANIFEST, {**manifest, "seal": seal(manifest)})


@pytest.mark.parametrize("name", OUTSIDE)
def test_manifests_and_indexes_list_files_of_their_own_folder(tiny_shards: Path, tmp_path: Path, name: str) -> None:
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = json.loads((shards / "train/index.json").read_text())
    for part in ("raw_data", "zip_data"):
        changed = json.loads(json.dumps(index))
        changed["shards"][0][part]["basename"] = name
        with pytest.raises(BadInput, match="outside its folder"):
            read_index(shards / "train", json.dumps(changed).encode())
    forged(shards, lambda manifest: manifest["outputs"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(BadInput, match="outside its folder"):
        read_manifest(shards, STAGE, "make shards")


@pytest.mark.parametrize(
    "outputs",
    [None, [], {"a": None}, {"a": {}}, {"a": {"bytes": "1", "sha256": "0"}}, {"a": {"bytes": -1, "sha256": "0"}}],
)
def test_a_manifest_gives_size_and_hash_of_each_file(tiny_shards: Path, tmp_path: Path, outputs: Any) -> None:
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    forged(shards, lambda manifest: manifest.update(outputs=outputs))
    with pytest.raises(BadInput, match="altered after it was written"):
        read_manifest(shards, STAGE, "make shards")


def test_repair_removes_nothing_elsewhere(tiny_shards: Path, tmp_path: Path) -> None:
    """A copy whose index names a file outside the folder, with a matching hash in the manifest."""
    copy, mine = shutil.copytree(tiny_shards, tmp_path / "copy"), tmp_path / "mine"
    precious = tmp_path / "precious"
    precious.write_text("mine")
    index = json.loads((copy / "train/index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../../precious"
    (copy / "train/index.json").write_text(json.dumps(index))
    data = (copy / "train/index.json").read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forged(copy, lambda manifest: manifest["outputs"].update({"train/index.json": entry}))
    with pytest.raises(BadInput, match="outside its folder"):
        verify.main(["--shards", str(mine), "--repair", "--remote", str(copy)])
    assert precious.read_text() == "mine"


def test_messages_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise BadInput("a file named \x1b[2J\x9b1m\r gone\nand a second line: β")

    with pytest.raises(SystemExit):
        run(fails)
    assert capsys.readouterr().err == "error: a file named \\x1b[2J\\x9b1m\\r gone\nand a second line: β\n"
    assert escaped("β–µ 😀") == "β–µ 😀"

"""Copies of token shards are uploaded and read back, and replace damaged local files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from data_prep import shards, verify
from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.manifest import MANIFEST, seal
from data_prep.files import object_store
from data_prep.sharding import verification
from data_prep.sharding.build_shards import build_shards
from data_prep.sharding.repair import repair
from data_prep.sharding.upload import upload
from patience import patience_s

Proxy = Any  # defined in conftest.py
FolderBytes = Callable[[Path], dict[str, bytes]]
numbers = count()


@pytest.fixture
def far(proxy: Proxy) -> str:
    """A bucket behind the proxy."""
    name = f"copies-{next(numbers)}"
    boto3.client("s3", endpoint_url=proxy.store).create_bucket(Bucket=name)
    return f"s3://{name}/some/where"


@pytest.fixture
def written(tiny_shards: Path, tmp_path: Path) -> Path:
    """The tiny shards as they were written; other tests put unpacked shards beside theirs."""
    return shutil.copytree(tiny_shards, tmp_path / "written", ignore=shutil.ignore_patterns("*.mds"))


def objects(proxy: Proxy, far: str) -> dict[str, bytes]:
    as_they_are = Config(response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=proxy.store, config=as_they_are)
    bucket, prefix = far.removeprefix("s3://").split("/", 1)
    listing = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in listing
    }


def test_an_upload_is_the_folder(
    written: Path, far: str, proxy: Proxy, folder_bytes: FolderBytes, capsys: pytest.CaptureFixture[str]
):
    proxy.break_it("503", times=1)
    upload(written, far)
    assert f"{far} holds {written}: 6 files, each read back" in capsys.readouterr().out
    assert objects(proxy, far) == folder_bytes(written)
    puts = [request for request in proxy.requests if request.startswith("PUT")]
    assert puts[-1].split("?")[0].endswith(f"some/where/{MANIFEST}"), "the manifest is uploaded last"
    proxy.requests.clear()
    upload(written, f"{far}/")
    assert capsys.readouterr().out == f"{far} is up to date\n"
    assert not [request for request in proxy.requests if request.startswith("PUT")]


def test_what_arrives_altered_is_uploaded_again(
    written: Path, far: str, proxy: Proxy, folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch
):
    """moto, like some other stores, does not compare checksums; reading the file back finds the fault."""
    real = object_store.Store.put_files
    damaged: list[str] = []

    def put_files(self: object_store.Store, files: dict[str, Path]) -> None:
        real(self, files)
        name = "train/index.json"
        if name in files and len(damaged) < 2:
            data = files[name].read_bytes()
            self.put(name, bytes([data[0] ^ 1]) + data[1:])
            damaged.append(name)

    monkeypatch.setattr(object_store.Store, "put_files", put_files)
    upload(written, far)
    assert len(damaged) == 2 and objects(proxy, far) == folder_bytes(written)
    damaged[:] = []
    monkeypatch.setattr("data_prep.sharding.upload.UPLOADS", 2)
    other = f"{far}-2"
    with pytest.raises(Unavailable, match=r"where-2/train/index\.json differs from the local file after 2 uploads"):
        upload(written, other)
    assert MANIFEST not in objects(proxy, other), "without its manifest a copy is not valid"
    assert written.is_dir()


def test_a_flip_on_the_way_back_is_not_taken_for_good(written: Path, far: str, proxy: Proxy, folder_bytes: FolderBytes):
    proxy.break_it("flip", "GET", "documents", times=2)
    upload(written, far)
    assert objects(proxy, far) == folder_bytes(written)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [("403", BadInput, "access denied"), ("503", Unavailable, "answered 503"), ("cut upload", Exception, "")],
)
def test_a_store_that_refuses_is_named(
    written: Path, far: str, proxy: Proxy, fault: str, error: type[Exception], says: str, folder_bytes: FolderBytes
):
    proxy.break_it(fault, "PUT", "train")
    with pytest.raises(error, match=says):
        upload(written, far)
    assert MANIFEST not in objects(proxy, far)
    proxy.well_again()
    upload(written, far)
    assert objects(proxy, far) == folder_bytes(written)


def test_a_killed_upload_goes_on(written: Path, far: str, proxy: Proxy, folder_bytes: FolderBytes):
    proxy.break_it("hang", "PUT", "index.json", times=1)
    root = str(Path(shards.__file__).parents[1])
    code = "from pathlib import Path; from data_prep.sharding.upload import upload; "
    code += f"upload(Path({str(written)!r}), {far!r})"
    running = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    assert proxy.held.wait(patience_s())
    deadline_s = time.monotonic() + patience_s()
    while len(there := objects(proxy, far)) < 4 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    proxy.well_again()
    assert there and MANIFEST not in there
    proxy.requests.clear()
    upload(written, far)
    puts = {request.split("?")[0].partition("some/where/")[2] for request in proxy.requests if "PUT" in request[:3]}
    assert not puts & (there.keys() - {".write-test"}), "files that had arrived are read back and not sent again"
    assert objects(proxy, far) == folder_bytes(written)


def test_other_shards_are_not_overwritten(written: Path, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path,
                                          far: str, proxy: Proxy):  # fmt: skip
    upload(written, far)
    before = objects(proxy, far)
    build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "other", seq_len=32)
    with pytest.raises(BadInput, match="holds other shards; give another --remote"):
        upload(tmp_path / "other", far)
    assert objects(proxy, far) == before
    for url in ("gs://bucket/x", "s3://", "/somewhere"):
        with pytest.raises(BadInput, match=r"--remote .* is not s3://bucket/prefix"):
            upload(written, url)


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    """The tiny shards, with each file damaged in another way and one removed."""
    folder = shutil.copytree(written, tmp_path / "shards")
    for place, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        data = path.read_bytes()
        if place % 3 == 0:
            path.write_bytes(data[:7] + bytes([data[7] ^ 1]) + data[8:])
        elif place % 3 == 1:
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
    (folder / "train" / "shard.00000.mds").write_bytes(b"unpacked wrongly")
    return folder


def test_repair_from_a_folder_and_from_a_store(
    damaged: Path, written: Path, far: str, proxy: Proxy, folder_bytes: FolderBytes, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    upload(written, far)
    again = shutil.copytree(damaged, tmp_path / "again")
    for folder, remote in ((damaged, str(written)), (again, f"{far}/")):
        with pytest.raises(BadInput):
            verification.verify(folder)
        verify.main(["--shards", str(folder), "--repair", "--remote", remote])
        output = capsys.readouterr().out
        assert "8 files replaced" in output and "all 6 files are as they were written" in output
        assert folder_bytes(folder) == folder_bytes(written)
    assert repair(again, str(written)) == 0


def test_repair_takes_nothing_that_is_not_good(
    damaged: Path, written: Path, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path, folder_bytes: FolderBytes
):
    before = folder_bytes(damaged)
    build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "other", seq_len=32)
    good = shutil.copytree(written, tmp_path / "good")
    with pytest.raises(BadInput, match=r"is a copy of other shards than .*: their manifests differ"):
        repair(good, str(tmp_path / "other"))
    with pytest.raises(BadInput, match="so it is not a complete copy of token shards"):
        repair(damaged, str(tmp_path))
    with pytest.raises(BadInput, match="is not the manifest of token shards"):
        repair(damaged, str(tiny_corpus))
    assert folder_bytes(damaged) == before
    copy = shutil.copytree(written, tmp_path / "copy")
    (copy / "val/index.json").write_text("{}")
    with pytest.raises(BadInput, match=r"copy/val/index\.json was altered too"):
        repair(damaged, str(copy))
    # A manifest with a valid seal that names a place outside the folder.
    manifest = json.loads((written / MANIFEST).read_text())
    manifest["outputs"] = {"../escaped": next(iter(manifest["outputs"].values()))}
    manifest["seal"] = seal(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    shutil.rmtree(damaged)
    with pytest.raises(BadInput, match=r"names a file outside its folder: \.\./escaped"):
        repair(damaged, str(copy))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("switches", [["--repair"], ["--remote", "x"]])
def test_repair_and_remote_go_together(written: Path, switches: list[str]):
    with pytest.raises(BadInput, match="--repair and --remote must be given together"):
        verify.main(["--shards", str(written), *switches])

"""Checkpoints on an object store: present, missing and unreadable ones are told apart.

The store is moto's server; a proxy between store and client makes faults when a test asks for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import torch
from composer.devices import DeviceCPU

import warm
from callbacks import checkpoint_writer
from callbacks.checkpoint_writer import CheckpointError, CheckpointWriter
from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.exit_codes import BAD_INPUT, PREEMPTED, UNAVAILABLE
from data_prep.common.files import read_json, write_json
from data_prep.common.manifest import MANIFEST, seal
from data_prep.files import object_store
from patience import patience_s
from project import ROOT
from recipes.checkpointing import checkpoint
from recipes.checkpointing.remote import RemoteRun, checkpoints_in
from recipes.checkpointing.resume import find_start
from recipes.config.loading import load_config
from recipes.runs.reading import TRAIN_LOSS, read_run

IDENTITY = {"seed": 17, "optimizer": {"lr": 1e-3}, "schedule": {"batches": 60}}
SECRET = "do-not-print-this"  # as in conftest.py

Outcome = Callable[[str, str, str], None]
Proxy = Any  # defined in conftest.py


numbers = count()


@pytest.fixture
def bucket(proxy: Proxy) -> str:
    name = f"runs-{next(numbers)}"
    client(proxy).create_bucket(Bucket=name)
    return name


def client(proxy: Proxy) -> Any:
    return boto3.client("s3", endpoint_url=proxy.store)


@pytest.fixture
def far(bucket: str) -> RemoteRun:
    return RemoteRun(f"s3://{bucket}/some/where", "mine")


def make_checkpoint(folder: Path, name: str, lr: float = 1e-3) -> Path:
    partial = folder / "checkpoints" / f"{name}.partial"
    partial.mkdir(parents=True)
    (partial / "rank0.pt").write_bytes(f"weights of {name}".encode() * 1000)
    (partial / "more.pt").write_bytes(f"moments of {name}".encode() * 100)
    out = partial.with_suffix("")
    checkpoint.publish(
        partial,
        out,
        {"batch": checkpoint.checkpoint_batch(name), "epoch": 0, "sample_in_epoch": 0},
        {**IDENTITY, "optimizer": {"lr": lr}},
    )
    return out


def make_run(folder: Path, *names: str) -> Path:
    """A run folder with these checkpoints, whose metrics end one batch after the last of them."""
    for name in names:
        make_checkpoint(folder, name)
    write_json(folder / "run.json", {"identity": IDENTITY, "starts": [], "finished": False})
    batches = range(1, checkpoint.checkpoint_batch(names[-1]) + 2)
    (folder / "metrics.jsonl").write_text("".join(f'{{"batch": {batch}}}\n' for batch in batches))
    return folder


@pytest.fixture
def run(far: RemoteRun, tmp_path: Path) -> Path:
    """A run whose three checkpoints are all on the remote, and whose own folder is lost."""
    folder = make_run(tmp_path / "first", "ep0-ba8", "ep0-ba16", "ep0-ba24")
    far.upload_run_files(folder)
    for path in checkpoint.complete_checkpoints(folder / "checkpoints"):
        far.upload(path)
    return folder.rename(tmp_path / "lost")


def start(folder: Path, far: RemoteRun | None, *more: str) -> str:
    """Name of the checkpoint that a run in `folder` starts from; empty for none."""
    cfg = load_config(ROOT / "yamls/smoke-cpu.yaml", ["save_interval=8ba", *more])
    path = find_start(folder, cfg, IDENTITY, far).load_path
    return Path(path).parent.name if path else ""


def key(far: RemoteRun, name: str) -> str:
    return f"{far.prefix}/{name}"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_a_run_whose_folder_is_lost_goes_on_from_the_remote(
    run: Path, new: Path, far: RemoteRun, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    assert start(new, far) == "ep0-ba24"
    original, restored = folder_bytes(run), folder_bytes(new)
    assert restored == {name: data for name, data in original.items() if "ba16" not in name and "ba8" not in name}


def test_the_newest_wins_wherever_it_lies(run: Path, new: Path, far: RemoteRun, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(run, new)
    make_checkpoint(new, "ep0-ba32")
    assert start(new, far) == "ep0-ba32"
    shutil.rmtree(new / "checkpoints/ep0-ba32")
    assert start(new, far) == "ep0-ba24" and "fetching" not in capsys.readouterr().out, "the local checkpoint is intact"
    path = new / "checkpoints/ep0-ba24/rank0.pt"
    path.write_bytes(b"damaged")
    assert start(new, far) == "ep0-ba24" and path.read_bytes() == (run / "checkpoints/ep0-ba24/rank0.pt").read_bytes()
    assert str(path) in capsys.readouterr().out
    assert (new / "metrics.jsonl").read_text().endswith('{"batch": 25}\n'), "the metrics in the folder are kept"


def test_a_folder_that_was_overtaken_elsewhere_gets_the_records_of_the_run(
    run: Path, new: Path, far: RemoteRun
) -> None:
    make_run(new, "ep0-ba8")
    (new / "checkpoints/ep0-ba8").rename(new / "checkpoints/ep0-ba7")
    assert start(new, far) == "ep0-ba24"
    assert (new / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_an_empty_prefix_is_a_new_run_and_says_so(
    outcome: Outcome, far: RemoteRun, new: Path, proxy: Proxy, capsys: pytest.CaptureFixture
) -> None:
    assert start(new, far) == ""
    assert f"no checkpoint at {far.url}: starting from the beginning" in capsys.readouterr().out
    assert far.contents() == {}, "the file that tests the permission to write is removed"
    assert any(request.startswith("PUT") for request in proxy.requests)
    outcome("remote: empty prefix", "a new run, and said so", "nothing")


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "list-type", "list s3://"),
        ("PUT", ".write-test", "write to and delete from"),
        ("DELETE", ".write-test", "write to and delete from"),
        ("HEAD", "ba24/manifest.json", "read s3://.*ba24/manifest.json"),
        ("GET", "ba24/rank0.pt", "fetch s3://.*ba24"),
    ],
)
def test_403_is_not_no_checkpoint(
    outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy, method: str, path: str, says: str
) -> None:
    proxy.break_it("403", method, path)
    with pytest.raises(
        BadInput, match=rf"access denied: {proxy.url} answered 403.* on the attempt to {says}"
    ) as caught:
        start(new, far)
    assert "s3:ListBucket" in str(caught.value) and "credentials from env" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not checkpoint.complete_checkpoints(new / "checkpoints")
    outcome(f"remote: 403 to {method} {path}", "access denied, exit code 2, the permissions it takes", "nothing")


def test_a_bucket_that_is_not_there_is_not_no_checkpoint(outcome: Outcome, proxy: Proxy, new: Path) -> None:
    with pytest.raises(BadInput, match="bucket nowhere does not exist at http"):
        start(new, RemoteRun("s3://nowhere/x", "mine"))
    outcome("remote: 404 of the bucket", "bucket does not exist, exit code 2", "nothing")


def test_503_is_waited_out_or_said(outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy) -> None:
    for path in ("list-type", "run.json", "write-test", "manifest.json", "rank0.pt"):
        proxy.break_it("503", path=path, times=1)
    assert start(new, far) == "ep0-ba24"
    shutil.rmtree(new)
    proxy.break_it("503", "GET")
    before = len(proxy.requests)
    with pytest.raises(Unavailable, match=r"(?s)503 SlowDown to each of 2 attempts to list.*So it is not known"):
        start(new, far)
    assert len(proxy.requests) - before == 2 and not new.exists()
    outcome("remote: 503, for ever and once a request", "exit code 69: could not look; once: waited out", "nothing")


@pytest.mark.parametrize("path", ["list-type", pytest.param("ba24/rank0.pt", marks=pytest.mark.chaos)])
def test_a_store_that_does_not_answer_is_named_with_the_seconds(
    outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy, path: str
) -> None:
    proxy.break_it("hang", "GET", path)
    with pytest.raises(Unavailable, match=r"(?s)did not answer within .*nothing was started") as unavailable:
        start(new, far)
    match = re.search(rf"{proxy.url} did not answer within (\d+) s ", str(unavailable.value))
    assert match and round(object_store.READ_TIMEOUT_S * object_store.ATTEMPTS) <= int(match[1]) <= patience_s()
    outcome(f"remote: no answer to GET {path}", "exit code 69, the endpoint and the seconds", "nothing")


def test_a_store_that_is_not_there_is_named(
    outcome: Outcome, new: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Streaming's name for the variable has priority.
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"no connection to http://127.0.0.1:9, tried for \d s") as caught:
        start(new, RemoteRun("s3://runs/x", "mine"))
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("S3_ENDPOINT_URL", f"user:{SECRET}@host")
    with pytest.raises(BadInput, match="is not a URL") as refused:
        start(new, RemoteRun("s3://runs/x", "mine"))
    assert SECRET not in str(refused.value)
    outcome("remote: connection refused", "exit code 69, the endpoint", "nothing")


def test_no_credentials_is_bad_input(new: Path, far: RemoteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BadInput, match="NoCredentialsError"):
        start(new, far)


@pytest.mark.parametrize("name", [MANIFEST, "rank0.pt", "more.pt"])
def test_a_partial_upload_is_named_and_passed_over(
    outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy, name: str, capsys: pytest.CaptureFixture
) -> None:
    client(proxy).delete_object(Bucket=far.bucket, Key=key(far, f"checkpoints/ep0-ba24/{name}"))
    assert start(new, far) == "ep0-ba16"
    assert re.search(rf"ignored a checkpoint: {far.url}/checkpoints/ep0-ba24.*{name}", capsys.readouterr().out)
    outcome(f"remote: partial upload without {name}", "named, the one before it used", "the batches between them")


def test_only_partial_uploads_are_not_no_checkpoint(
    outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy
) -> None:
    for name in ("ep0-ba8", "ep0-ba16", "ep0-ba24"):
        client(proxy).delete_object(Bucket=far.bucket, Key=key(far, f"checkpoints/{name}/{MANIFEST}"))
    with pytest.raises(
        BadInput,
        match=r"(?s)no checkpoint in .* or on its remote is intact:.*ep0-ba24 is not completely uploaded.*ep0-ba8 is",
    ):
        start(new, far)
    outcome("remote: partial uploads only", "each named, exit code 2", "nothing")


def test_a_download_that_breaks_off_is_taken_up_again(
    outcome: Outcome, run: Path, new: Path, far: RemoteRun, proxy: Proxy
) -> None:
    for path in ("rank0.pt", "more.pt", "manifest.json", "metrics.jsonl"):
        proxy.break_it("drop", "GET", path, times=1)
    assert start(new, far) == "ep0-ba24"
    shutil.rmtree(new)
    proxy.break_it("drop", "GET", "rank0.pt")
    with pytest.raises(Unavailable, match="nothing was started"):
        start(new, far)
    assert not (new / "checkpoints/ep0-ba24").exists() and not (new / "checkpoints/ep0-ba24.partial").exists()
    outcome("remote: connection lost in a download", "fetched again; for ever: exit code 69", "nothing")


@pytest.mark.parametrize("checked_by_client", [True, False])
def test_a_byte_that_flips_on_the_way_is_seen(
    outcome: Outcome,
    run: Path,
    new: Path,
    far: RemoteRun,
    proxy: Proxy,
    checked_by_client: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A flipped byte is found also if the store keeps no checksum for the client to compare."""
    if not checked_by_client:
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    proxy.break_it("flip", "GET", "ba24/rank0.pt", times=2)
    assert start(new, far) == "ep0-ba24"
    shutil.rmtree(new)
    proxy.break_it("flip", "GET", "ba24/rank0.pt")
    assert start(new, far) == "ep0-ba16"
    assert "ep0-ba24/rank0.pt was downloaded 3 times, each time with a wrong size or hash" in capsys.readouterr().out
    outcome("remote: a byte flips in a download", "fetched again, then the one before it used", "nothing")


@pytest.mark.parametrize(("change", "says"), [("seal", "was altered"), ("name", "outside its folder")])
def test_a_manifest_that_is_not_what_was_written_is_passed_over(
    run: Path, new: Path, far: RemoteRun, change: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    manifest = read_json(run / "checkpoints/ep0-ba24" / MANIFEST)
    if change == "name":
        manifest["outputs"]["../../evil"] = {"bytes": 1, "sha256": "0"}
        manifest["seal"] = seal(manifest)
    else:
        manifest["batch"] = 25
    far.put(f"checkpoints/ep0-ba24/{MANIFEST}", json.dumps(manifest).encode())
    assert start(new, far) == "ep0-ba16"
    assert says in capsys.readouterr().out


def test_another_runs_prefix_is_refused_untouched(run: Path, new: Path, far: RemoteRun, proxy: Proxy) -> None:
    far.put("run.json", json.dumps({"identity": {**IDENTITY, "optimizer": {"lr": 2e-3}}}).encode())
    proxy.requests.clear()
    with pytest.raises(BadInput, match=rf"{far.url} holds another run:\n  optimizer.lr: 0.002 -> 0.001"):
        start(new, far)
    assert not any(request.startswith(("PUT", "DELETE")) for request in proxy.requests) and not new.exists()
    assert start(new, far, "resume.allow=[optimizer.lr]") == "ep0-ba24"


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_checkpoint_of_another_run_is_refused(run: Path, new: Path, far: RemoteRun, where: str) -> None:
    """The manifest decides, whatever the record of the run says; a remote manifest is checked before the download."""
    make_run(new, "ep0-ba8")
    if where == "here":
        make_checkpoint(new, "ep0-ba32", lr=2e-3)
    else:
        far.upload(make_checkpoint(run, "ep0-ba32", lr=2e-3))
    with pytest.raises(BadInput, match=r"ep0-ba32 holds another run:\n  optimizer.lr: 0.002 -> 0.001"):
        start(new, far if where == "there" else None)
    assert (new / "checkpoints/ep0-ba32").exists() == (where == "here")
    assert start(new, far if where == "there" else None, "resume.allow=[optimizer]") == "ep0-ba32"


@pytest.mark.parametrize("has_remote", [True, False])
def test_checkpoints_that_are_gone_are_not_no_checkpoint(new: Path, far: RemoteRun, has_remote: bool) -> None:
    make_run(new, "ep0-ba8")
    shutil.rmtree(new / "checkpoints")
    with pytest.raises(BadInput, match="the run reached batch 9, but there is no checkpoint"):
        start(new, far if has_remote else None)
    (new / "metrics.jsonl").write_text('{"batch": 8}\n{"event": "start", "batch": 0}\n{"batch": 5, "lo')
    assert start(new, far if has_remote else None) == "", "killed in its first save"


# Uploads


@pytest.fixture
def make_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckpointWriter]:
    """A writer with small checkpoints, and the folder `tmp_path/run`."""

    def write(state: Any, partial: Path) -> None:
        (partial / "rank0.pt").write_bytes(f"weights of {partial.name}".encode() * 1000)
        (partial / "__0_0.distcp").write_bytes(b"in a listing this stands before the manifest")

    monkeypatch.setattr(checkpoint_writer, "_write", write)

    def make(far: RemoteRun, keep: int = 2, stop_on_error: bool = True) -> CheckpointWriter:
        (tmp_path / "run/checkpoints").mkdir(parents=True)
        write_json(tmp_path / "run/run.json", {"identity": IDENTITY})
        return CheckpointWriter(
            tmp_path / "run/checkpoints", 8, keep, None, 80, IDENTITY, stop_on_error=stop_on_error, remote=far
        )

    return make


def save(writer: CheckpointWriter, batch: int) -> None:
    place = SimpleNamespace(epoch=0, batch=batch, sample_in_epoch=8 * batch)
    state: Any = SimpleNamespace(timestamp=place, model=torch.nn.Module(), optimizers=[], device=DeviceCPU())
    writer.save(state)


def names_at(far: RemoteRun) -> dict[str, bool]:
    return checkpoints_in(far.contents())


def test_the_remote_keeps_what_the_folder_keeps(make_writer: Callable[..., CheckpointWriter], far: RemoteRun) -> None:
    writer = make_writer(far)
    for batch in (8, 16, 24):
        save(writer, batch)
    writer.wait_for_upload()
    kept = [path.name for path in checkpoint.complete_checkpoints(writer.folder)]
    assert names_at(far) == dict.fromkeys(kept, True) == {"ep0-ba16": True, "ep0-ba24": True}


def test_old_ones_go_only_when_the_new_one_has_arrived(
    make_writer: Callable[..., CheckpointWriter], far: RemoteRun, proxy: Proxy
) -> None:
    writer = make_writer(far, keep=1)
    save(writer, 8)
    writer.wait_for_upload()
    proxy.requests.clear()
    save(writer, 16)
    writer.wait_for_upload()
    changes = [r.partition("some/where/mine/")[2] for r in proxy.requests if r.startswith(("PUT", "DELETE"))]
    changes = [change.partition("?")[0] for change in changes]
    new, old = "checkpoints/ep0-ba16/", "checkpoints/ep0-ba8/"
    sent = [changes.index(f"{new}{file}") for file in ("__0_0.distcp", "rank0.pt")]
    complete = max(at for at, change in enumerate(changes) if change == f"{new}{MANIFEST}")
    removed = [changes.index(f"{old}{file}") for file in ("__0_0.distcp", "rank0.pt")]
    assert max(sent) < complete < changes.index(f"{old}{MANIFEST}") < min(removed)


def test_a_checkpoint_is_not_removed_while_it_is_uploaded(
    make_writer: Callable[..., CheckpointWriter], far: RemoteRun, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", patience_s())
    writer = make_writer(far, keep=1)
    proxy.break_it("hang", "PUT", "ba8/rank0.pt", times=1)
    save(writer, 8)
    assert proxy.held.wait(patience_s()), "the save has returned while the upload continues"
    saving = threading.Thread(target=save, args=(writer, 16))
    saving.start()
    time.sleep(1)
    assert (
        saving.is_alive() and (writer.folder / "ep0-ba8/rank0.pt").is_file() and (writer.folder / "ep0-ba16").is_dir()
    )
    proxy.well_again()  # the upload is tried again, and arrives
    saving.join(patience_s())
    writer.wait_for_upload()
    assert names_at(far) == {"ep0-ba16": True} and not (writer.folder / "ep0-ba8").exists()


def test_an_upload_that_fails_is_a_warning_or_the_end(
    outcome: Outcome,
    make_writer: Callable[..., CheckpointWriter],
    far: RemoteRun,
    proxy: Proxy,
    capsys: pytest.CaptureFixture,
) -> None:
    writer = make_writer(far, stop_on_error=False)
    proxy.break_it("503", "PUT", "ba8/rank0.pt")
    save(writer, 8)
    save(writer, 16)
    warning = capsys.readouterr().out
    assert "warning: upload to s3://" in warning and "503 SlowDown" in warning and SECRET not in warning
    proxy.well_again()
    writer.wait_for_upload()
    save(writer, 24)
    writer.wait_for_upload()
    assert names_at(far) == {"ep0-ba16": True, "ep0-ba24": True}
    writer.stop_on_error = True
    proxy.break_it("403", "PUT", "ba32/rank0.pt")
    save(writer, 32)
    with pytest.raises(CheckpointError, match=r"access denied.*the checkpoints in .* are intact"):
        save(writer, 40)
    with pytest.raises(CheckpointError, match="access denied"):
        writer.finish()
    outcome("remote: an upload fails", "a warning and again at the next save, or the end", "nothing here")


def test_a_finished_run_is_whole_on_the_remote(
    make_writer: Callable[..., CheckpointWriter], far: RemoteRun, proxy: Proxy
) -> None:
    """This also holds for a run that was killed after its last save, with any value of `stop_on_error`."""
    writer = make_writer(far, stop_on_error=False)
    proxy.break_it("503", "PUT", "rank0.pt", times=4)  # two attempts each in the background and at the end
    save(writer, 80)
    with pytest.raises(CheckpointError, match="503"):
        writer.finish()
    writer.finish()
    assert names_at(far) == {"ep0-ba80": True}


def test_what_an_upload_left_behind_is_replaced_or_removed(
    make_writer: Callable[..., CheckpointWriter], far: RemoteRun
) -> None:
    writer = make_writer(far)
    far.put("checkpoints/ep0-ba3/rank0.pt", b"a part")
    far.put("checkpoints/ep0-ba8/rank0.pt", b"a part")
    far.put(f"checkpoints/ep0-ba8/{MANIFEST}", b"of a copy that was passed over")
    far.put("checkpoints/ep0-ba99/rank0.pt", b"from later, passed over")
    save(writer, 8)
    writer.wait_for_upload()
    assert names_at(far) == {"ep0-ba8": True, "ep0-ba99": False}
    assert far.download(writer.folder / "ep0-ba8", far.contents(), lambda *_: None) is None


def test_an_upload_that_arrives_short_gets_no_manifest(
    outcome: Outcome, run: Path, far: RemoteRun, proxy: Proxy
) -> None:
    path = make_checkpoint(run, "ep0-ba32")
    proxy.break_it("cut upload", "PUT", "ba32/rank0.pt")
    with pytest.raises((Unavailable, BadInput)):
        far.upload(path)
    assert names_at(far)["ep0-ba32"] is False
    proxy.well_again()
    far.upload(path)
    assert names_at(far)["ep0-ba32"] is True
    outcome("remote: an upload cut short on its way", "seen by its size; no manifest, so it does not count", "nothing")


def test_the_store_gets_checksums(run: Path, far: RemoteRun, monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """Make the store refuse bodies that were altered on the way, because moto does not compare checksums."""
    seen: list[str | None] = []
    handler_class: Any = proxy.RequestHandlerClass
    original = handler_class.forward
    monkeypatch.setattr(
        handler_class,
        "do_PUT",
        lambda handler: (seen.append(handler.headers.get("x-amz-checksum-crc32")), original(handler)),
    )
    far.upload(make_checkpoint(run, "ep0-ba32"))
    assert len(seen) == 3 and all(seen)


def test_large_files_travel_in_parts(
    run: Path, new: Path, far: RemoteRun, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    partial = run / "checkpoints/ep0-ba32.partial"
    partial.mkdir()
    (partial / "rank0.pt").write_bytes(os.urandom(12 << 20))
    checkpoint.publish(partial, run / "checkpoints/ep0-ba32", {"batch": 32, "epoch": 0, "sample_in_epoch": 0}, IDENTITY)
    proxy.break_it("503", "PUT", "partNumber=2", times=1)
    far.upload(run / "checkpoints/ep0-ba32")
    assert sum("partNumber" in request for request in proxy.requests) == 4
    assert start(new, far) == "ep0-ba32"


def test_metrics_are_uploaded_in_whole_lines(run: Path, far: RemoteRun) -> None:
    (run / "metrics.jsonl").write_text('{"batch": 1}\n{"batch": 2, "lo')
    (run / "tokenizer").mkdir()
    (run / "tokenizer/vocab.json").write_text("{}")
    far.upload_run_files(run)
    assert far.contents()["metrics.jsonl"] == len('{"batch": 1}\n') and far.contents()["tokenizer/vocab.json"] == 2


# Whole runs, in their own processes


@pytest.fixture
def command(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`command("name", "key=value", …)`: a run of 40 batches in `tmp_path`, with short timeouts for its remote."""

    def make(name: str, *more: str, ranks: int = 1, faults: tuple[str, ...] = ()) -> list[str]:
        launcher = [sys.executable]
        if ranks > 1:
            launcher = [str(Path(sys.executable).with_name("composer")), "-n", str(ranks)]
        return [
            *launcher, "tests/helpers/inject.py", "impatient:0:0", *faults, "--",
            "yamls/smoke-cpu.yaml", "run_name=mine", f"data.shards={tiny_shards}",
            f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / name}",
            "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
            "model.n_layer=3", "model.attn_pdrop=0.1", "model.resid_pdrop=0.1", "model.embd_pdrop=0.1",
            "max_duration=40ba", "global_train_batch_size=8", "device_train_microbatch_size=4", "optimizer.lr=3e-3",
            "scheduler.t_warmup=5ba", "eval_interval=20ba", "save_interval=8ba", "save_num_checkpoints_to_keep=3",
            "loggers.wandb=null", f"stall_timeout_s={patience_s(3)}", *more,
        ]  # fmt: skip

    return make


def run_to_end(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = warm.run(command, ROOT)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert SECRET not in done.stdout + done.stderr
    return done


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, samples and final weights are equal bit for bit, and every batch has metrics."""
    for name in (TRAIN_LOSS, "data/batch_fingerprint"):
        series = [dict(read_run(folder).series[name]) for folder in (one, other)]
        assert series[0] == series[1] and list(series[0]) == list(range(1, 41))
    states = [torch.load(path / "checkpoints/ep0-ba40/rank0.pt", weights_only=False)["state"] for path in (one, other)]
    for name, weights in states[0]["model"].items():
        assert torch.equal(weights, states[1]["model"][name]), name


def test_a_new_machine_goes_on_bit_for_bit(
    outcome: Outcome, command: Callable[..., list[str]], bucket: str, tmp_path: Path
) -> None:
    """A preempted run that lost its folder continues as if nothing had happened, and so does a finished one."""
    run_to_end(command("whole"))
    mine = command("mine", f"save_remote=s3://{bucket}/x")
    done = run_to_end([*mine[:3], "SIGTERM:0:19", *mine[3:]], PREEMPTED)
    assert f"no checkpoint at s3://{bucket}/x/mine: starting from the beginning" in done.stdout
    shutil.rmtree(tmp_path / "mine")
    done = run_to_end(mine)
    assert f"fetching s3://{bucket}/x/mine/checkpoints/ep0-ba19" in done.stdout
    assert read_run(tmp_path / "mine").starts == [0, 19]
    assert_same_run(tmp_path / "whole", tmp_path / "mine")
    far = RemoteRun(f"s3://{bucket}/x", "mine")
    assert names_at(far) == dict.fromkeys(("ep0-ba24", "ep0-ba32", "ep0-ba40"), True) and far.record()["finished"]
    shutil.rmtree(tmp_path / "mine")
    run_to_end(mine)
    assert_same_run(tmp_path / "whole", tmp_path / "mine")
    outcome("remote: preempted, then the run folder is lost", "the uninterrupted run, bit for bit", "nothing")


@pytest.mark.chaos
def test_killed_in_the_middle_of_an_upload_the_one_before_it_is_used(
    outcome: Outcome, command: Callable[..., list[str]], bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.break_it("hang", "PUT", f"ba16/{MANIFEST}")
    mine = command("mine", f"save_remote=s3://{bucket}/x", faults=("patient:0:0",))
    process = subprocess.Popen(mine, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    assert proxy.held.wait(patience_s())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    proxy.well_again()
    shutil.rmtree(tmp_path / "mine")
    done = run_to_end(mine)
    assert f"ignored a checkpoint: s3://{bucket}/x/mine/checkpoints/ep0-ba16 is not completely uploaded" in done.stdout
    # The metrics are uploaded with the checkpoint, and training continues meanwhile.
    assert re.search(r"ep0-ba8; the run had reached batch (\d+), so \d+ batches are computed again", done.stdout)
    assert read_run(tmp_path / "mine").starts == [0, 8]
    outcome("remote: killed in an upload, folder lost", "named, the one before it used", "8 batches, computed again")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("fault", "ranks", "code", "says"),
    [
        ("403", 1, BAD_INPUT, "access denied"),
        ("403", 2, BAD_INPUT, "access denied"),
        ("503", 1, UNAVAILABLE, "503 SlowDown to each of"),
        ("503", 2, UNAVAILABLE, "503 SlowDown to each of"),
        ("hang", 1, UNAVAILABLE, "did not answer within"),
        ("hang", 2, UNAVAILABLE, "did not answer within"),
    ],
)
def test_exit_codes_of_a_remote_that_fails(
    outcome: Outcome,
    command: Callable[..., list[str]],
    run: Path,
    far: RemoteRun,
    proxy: Proxy,
    tmp_path: Path,
    fault: str,
    ranks: int,
    code: int,
    says: str,
) -> None:
    """A run that has checkpoints on the remote, on a new machine."""
    proxy.break_it(fault, "GET")
    done = run_to_end(command("mine", f"save_remote=s3://{far.bucket}/some/where", ranks=ranks), code)
    assert says in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "mine").glob("*")] in ([], [".lock"])
    outcome(f"remote: {fault} at the start, ranks: {ranks}", f"exit code {code}, said why", "nothing")


@pytest.mark.chaos
def test_a_rewind_outlives_the_run_folder(
    outcome: Outcome, command: Callable[..., list[str]], bucket: str, tmp_path: Path
) -> None:
    """After a loss spike in batches 26 to 28, the run rewinds to 24. Without its folder, it skips the same data."""
    guard = [f"callbacks.spike_guard.{key}" for key in ("window_batches=10", "patience_batches=3", "min_rise=0.5")]
    noise = "noise:0:26"
    done = run_to_end(command("whole", *guard, faults=(noise,)))
    assert "back to batch 24" in done.stdout
    # So that a checkpoint is saved during the spike.
    mine = [f"save_remote=s3://{bucket}/x", "save_interval=4ba", *guard]
    done = run_to_end(command("mine", *mine, faults=(noise, "SIGTERM:0:29")), PREEMPTED)
    assert "back to batch 24" in done.stdout
    there = names_at(RemoteRun(f"s3://{bucket}/x", "mine"))
    assert "ep0-ba29" in there
    shutil.rmtree(tmp_path / "mine")
    run_to_end(command("mine", *mine, faults=(noise,)))
    assert read_run(tmp_path / "mine").starts == [0, 24, 29]
    assert (tmp_path / "mine/skipped-1.jsonl.zst").is_file()
    assert_same_run(tmp_path / "whole", tmp_path / "mine")
    outcome("remote: a loss spike, then the run folder is lost", "its data is left out all the same", "nothing")


@pytest.mark.chaos
def test_two_ranks_agree_on_an_upload_that_fails(
    outcome: Outcome, command: Callable[..., list[str]], bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    """A failed upload is reported and tried again, or ends both ranks with the same code."""
    mine = command("mine", f"save_remote=s3://{bucket}/x", "on_save_error=continue", ranks=2)
    proxy.break_it("503", "PUT", "ba16/")
    done = run_to_end(mine)
    assert done.stdout.count("warning: upload to") == 3, "until it is superseded"
    assert names_at(RemoteRun(f"s3://{bucket}/x", "mine"))["ep0-ba40"]
    stops = command("stops", f"save_remote=s3://{bucket}/y", "on_save_error=stop", ranks=2)
    done = run_to_end(stops, 1)
    assert "CheckpointError: upload to" in done.stderr
    outcome("remote: 503 to an upload, two ranks", "continues or stops, as configured", "nothing here")

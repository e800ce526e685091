"""All loggers count one step per batch, have no duplicates after a resume, and never end the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.common.errors import BadInput
from patience import patience_s
from recipes.config import wandb_account
from recipes.config.wandb_account import check_account
from recipes.training import pretraining, wandb_live
from recipes.training.metrics_file import MetricsFile
from recipes.training.tensorboard_files import NO_CURVES, TensorBoardFiles
from recipes.training.wandb_run import WandBRun
from tiny_run import configure
from wandb_server import WandBServer, wandb_server

KEY = "k" * 40


def at(batch: int) -> Any:
    return SimpleNamespace(timestamp=SimpleNamespace(batch=batch, token=0), run_name="run")


def curves(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[str]]]:
    """Points and texts in all event files of a folder, as TensorBoard shows them."""
    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    shown.Reload()
    texts = {
        tag: [e.tensor_proto.string_val[0].decode() for e in shown.Tensors(tag)] for tag in shown.Tags()["tensors"]
    }
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}, texts


def test_tensorboard_has_what_the_run_folder_has(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path):
    run = tmp_path / "run"
    pretraining.train(configure(tiny_shards, tiny_tokenizer, run, "loggers.tensorboard={}"))
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if "event" not in line:
            for name in line.keys() - NO_CURVES - {"batch", "tokens", "time_s"}:
                wanted.setdefault(name, []).append((line["batch"], line[name]))
    shown, texts = curves(run / "tensorboard")
    assert shown.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points], name
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points]), name
    assert "run_dir:" in texts["configuration/text_summary"][0]
    written = [json.loads(line) for line in (run / "texts.jsonl").read_text().splitlines()]
    assert len(texts["texts/text_summary"]) == len({text["batch"] for text in written}) > 1
    assert f"| {written[0]['prompt']} |" in texts["texts/text_summary"][0]


def test_a_resumed_run_takes_back_what_it_computes_again(tmp_path: Path):
    for first, batches, value in ((0, range(1, 9), 1.0), (5, range(6, 8), 2.0)):
        files = TensorBoardFiles(tmp_path / "tensorboard", 1, tmp_path / "none.yaml")
        files.fit_start(at(first), SimpleNamespace())  # pyright: ignore[reportArgumentType] (not used)
        for batch in batches:
            files.log_metrics({"loss": value, "time/batch": batch, "inf": float("inf")}, step=batch - 1)
            files.batch_end(at(batch), SimpleNamespace())  # pyright: ignore[reportArgumentType]
        if first:  # otherwise the run was killed
            files.close(at(7), SimpleNamespace())  # pyright: ignore[reportArgumentType]
        else:
            files._writer.flush()
    assert curves(tmp_path / "tensorboard")[0] == {"loss": [(n, 1.0) for n in range(1, 6)] + [(6, 2.0), (7, 2.0)]}


def test_a_text_is_shown_as_it_is(tmp_path: Path):
    files = TensorBoardFiles(tmp_path, 1, tmp_path / "none.yaml")
    files.fit_start(at(0), SimpleNamespace())  # pyright: ignore[reportArgumentType]
    files.log_table(["prompt", "text"], [["a|b", "<script>*x*\n2"]], "texts", 4)
    files.close(at(4), SimpleNamespace())  # pyright: ignore[reportArgumentType]
    (shown,) = curves(tmp_path)[1]["texts/text_summary"]
    assert shown.splitlines()[2] == "| a&#124;b | &#60;script&#62;&#42;x&#42;<br>2 |"


@pytest.fixture
def wandb_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandBServer]:
    """A W&B server, for which this process has a key."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def wandb_run(folder: Path, resumed: bool = False, online: bool = True) -> WandBRun:
    init = {"dir": str(folder), "settings": {"console": "off"}, "project": "biomedlm"}
    return WandBRun(folder / "metrics.jsonl", online, resumed, init)


def test_wandb_has_the_step_of_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logged: list[tuple[dict[str, Any], int]] = []
    monkeypatch.setattr(wandb, "log", lambda metrics, step: logged.append((metrics, step)))
    logger: Any = SimpleNamespace()
    run = wandb_run(tmp_path)
    run.log_metrics({"loss/train/total": 2.0}, step=6)
    run.log_metrics({"loss/train/perplexity": 7.4}, step=7)
    run.batch_end(at(7), logger)
    run.log_metrics({"metrics/eval/Perplexity": 9.0}, step=7)
    run.eval_end(at(7), logger)
    run.fit_end(at(7), logger)
    assert logged == [
        ({"loss/train/total": 2.0, "loss/train/perplexity": 7.4}, 7),
        ({"metrics/eval/Perplexity": 9.0}, 7),
    ]


def of_the_run(history: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Step -> metrics, without W&B's own."""
    return {line["_step"]: {k: v for k, v in line.items() if not k.startswith("_")} for line in history}


def in_the_folder(metrics: Path) -> dict[int, dict[str, Any]]:
    """Step -> metrics in metrics.jsonl."""
    steps: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        if "event" not in line:
            step = steps.setdefault(line.pop("batch"), {})
            step |= {name: value for name, value in line.items() if name not in ("tokens", "time_s")}
    return steps


def test_wandb_online_has_what_the_run_folder_has(
    tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path, wandb_at: WandBServer, capfd: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    pretraining.train(configure(tiny_shards, tiny_tokenizer, run, "loggers.wandb={mode: online}"))
    ((run_id, history),) = wandb_at.history.items()
    assert of_the_run(history) == in_the_folder(run / "metrics.jsonl")
    assert "wandb sync" not in (printed := "".join(capfd.readouterr())) and f"W&B: {wandb_at.url}" in printed
    (files,) = (path for path in (run / "wandb").iterdir() if path.is_dir() and not path.is_symlink())
    assert files.name.startswith("offline-run-") and files.name.endswith(run_id), "for `wandb sync`, and no other file"


def goes_on(process: psutil.Process) -> bool:
    """Whether the process exists and is no zombie; on some machines the first process is slow to reap zombies."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Faults of W&B, or of the process that sends to it, in the middle of a run.
FAULTS = ("hang", "500", "killed", "halted")


@pytest.mark.parametrize("fault", FAULTS)
def test_wandb_goes_away(
    fault: str, tmp_path: Path, wandb_at: WandBServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """The run names the folder for `wandb sync`, which then sends everything, and leaves no process."""
    monkeypatch.setattr(wandb_live, "LAST_S", 0.5)
    logger: Any = None
    run, file = wandb_run(tmp_path), MetricsFile(tmp_path / "metrics.jsonl", {})
    run.init(at(0), logger)
    assert run._live
    process = psutil.Process(run._live._process.pid)
    family = [process, *process.children(recursive=True)]
    assert "wandb-core" in {one.name() for one in family}
    for batch in range(1, 301):
        for destination in (run, file):
            destination.log_metrics({"loss/train/total": 1 / batch})
            destination.batch_end(at(batch), logger)
        if batch == 100:
            wandb_at.fault = fault
            if fault in ("killed", "halted"):
                process.send_signal({"killed": signal.SIGKILL, "halted": signal.SIGSTOP}[fault])
    run.post_close()
    errors = capsys.readouterr().err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert f"wandb sync {folder}" in errors
    deadline_s = time.monotonic() + patience_s()
    while any(map(goes_on, family)):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert not list(tmp_path.glob("wandb/live-*"))
    if fault == "hang":
        wandb_at.fault = ""
        wandb_at.released.set()
        monkeypatch.delenv("WANDB_SERVICE")  # of this process
        synced = subprocess.run([sys.executable, "-m", "wandb", "sync", folder], capture_output=True, text=True)
        assert synced.returncode == 0, synced.stdout + synced.stderr
        ((run_id, history),) = wandb_at.history.items()
        assert folder.name.endswith(run_id), "the same run"
        assert of_the_run(history) == in_the_folder(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(("fault", "problem"), [("refuse", "no such entity"), ("hang", "no answer in")])
def test_a_run_that_wandb_does_not_take(
    fault: str, problem: str, tmp_path: Path, wandb_at: WandBServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    logger: Any = None
    wandb_at.fault = fault
    monkeypatch.setattr(wandb_live, "LAST_S", 0.5)
    if fault == "hang":
        monkeypatch.setattr(wandb_live, "BEGIN_S", 0.5)
    with pytest.raises(BadInput, match=rf"{problem}.*loggers\.wandb\.mode=offline"):
        wandb_run(tmp_path).init(at(0), logger)
    resumed = wandb_run(tmp_path, resumed=True)
    resumed.init(at(0), logger)
    resumed.post_close()
    assert problem in (errors := capsys.readouterr().err) and "wandb sync" not in errors
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """A W&B server that gives this response; with status 0, none at all."""
    asked: list[Any] = []
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            if not status:
                released.wait()
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Print no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://user:secret@127.0.0.1:{listening.server_port}", asked
        finally:
            released.set()
            listening.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b'{"data": {"viewer": {"id": "VXNlcg=="}}}', ""),
        (200, b'{"data": {"viewer": null}}', "does not know the key"),
        (200, b"<html>", "does not know the key"),
        (401, b"{}", "refuses the key"),
        (302, b"", "answers 302"),
        (503, b"", "answers 503"),
        (0, b"", "does not answer"),
    ],
)
def test_wandb_is_asked_once_before_the_start(
    status: int, body: bytes, problem: str, tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    cfg = configure(tiny_shards, tiny_tokenizer, tmp_path / "run", "loggers.wandb={mode: online}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if not status:
        monkeypatch.setattr(wandb_account, "ANSWER_S", 0.2)
    with server(status, body) as (url, asked):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        if problem:
            with pytest.raises(BadInput, match=rf"{problem}.*loggers\.wandb\.mode=offline") as refused:
                pretraining.train(cfg)
            assert KEY not in str(refused.value) and "secret" not in str(refused.value)
            assert not (tmp_path / "run").exists()
        check_account(cfg, resumed=True)
        assert (problem in (errors := capsys.readouterr().err)) and bool(errors) is bool(problem)
        assert len(asked) == 1 and asked[0][0] == "/graphql"
        monkeypatch.setenv("RANK", "1")
        check_account(cfg, resumed=False)  # only rank 0 has it


def test_nobody_listens(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = configure(tiny_shards, tiny_tokenizer, tmp_path / "run", "loggers.wandb={mode: online}")
    with server(200, b"") as (url, _):
        pass
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    with pytest.raises(BadInput, match=r"does not answer \(ConnectionError\)"):
        check_account(cfg, resumed=False)

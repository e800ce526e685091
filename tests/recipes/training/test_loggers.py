"""Loggers: one step for one batch in each, resumed without doubles, and none that ends the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from composer.loggers import WandBLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.errors import CommError

from data_prep.common.errors import BadInput
from recipes.config import wandb_account
from recipes.config.wandb_account import check_account
from recipes.training import pretraining
from recipes.training.tensorboard_files import NO_CURVES, TensorBoardFiles
from recipes.training.wandb_run import WandBRun
from tiny_run import configure

KEY = "k" * 40


def at(batch: int) -> Any:
    return SimpleNamespace(timestamp=SimpleNamespace(batch=batch), run_name="run")


def curves(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[str]]]:
    """Points and texts of all event files of a folder, as TensorBoard shows them."""
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
        files.fit_start(at(first), SimpleNamespace())  # pyright: ignore[reportArgumentType] (it is not asked)
        for batch in batches:
            files.log_metrics({"loss": value, "time/batch": batch, "inf": float("inf")}, step=batch - 1)
            files.batch_end(at(batch), SimpleNamespace())  # pyright: ignore[reportArgumentType]
        if first:  # else it was killed
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


def wandb_run(resumed: bool) -> WandBRun:
    return WandBRun(resumed, init_kwargs={"mode": "online"})


def test_wandb_has_the_step_of_the_run_folder(monkeypatch: pytest.MonkeyPatch):
    logged: list[tuple[dict[str, Any], int]] = []
    monkeypatch.setattr(wandb, "log", lambda metrics, step: logged.append((metrics, step)))
    logger: Any = SimpleNamespace()
    run = wandb_run(False)
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


def test_a_run_that_wandb_does_not_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    begun: list[str] = []

    def init(self: Any, state: Any, logger: Any) -> None:
        begun.append(self._init_kwargs["mode"])
        if begun[-1] == "online":
            raise CommError("no such entity")

    monkeypatch.setattr(WandBLogger, "init", init)
    logger: Any = None
    with pytest.raises(BadInput, match=r"no such entity.*loggers\.wandb\.mode=offline"):
        wandb_run(False).init(at(0), logger)
    wandb_run(True).init(at(0), logger)
    assert begun == ["online", "online", "offline"]
    assert "no such entity" in capsys.readouterr().err


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """A server of W&B's that gives this answer; a status of 0 is none at all."""
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
            """Nothing."""

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
        assert (problem in (said := capsys.readouterr().err)) and bool(said) is bool(problem)
        assert len(asked) == 1 and asked[0][0] == "/graphql"
        monkeypatch.setenv("RANK", "1")
        check_account(cfg, resumed=False)  # rank 0's alone


def test_nobody_listens(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = configure(tiny_shards, tiny_tokenizer, tmp_path / "run", "loggers.wandb={mode: online}")
    with server(200, b"") as (url, _):
        pass
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    with pytest.raises(BadInput, match=r"does not answer \(ConnectionError\)"):
        check_account(cfg, resumed=False)

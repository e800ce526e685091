"""Everything that a run logs during training equals an independent computation."""

from __future__ import annotations

import json
import math
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import warm
from callbacks import cost_monitor
from callbacks.cost_monitor import CostMonitor
from callbacks.registry import CALLBACKS, peak_flops
from data_prep.common.errors import BadInput
from data_prep.files import json_lines
from data_prep.sharding.shard_format import DOCUMENTS, read_documents, read_shards_info
from data_prep.sources.document import ABSTRACTS, ARTICLES
from data_prep.tokenizing import tokenizer_format
from project import ROOT
from recipes.config import wandb_account
from recipes.config.loading import load_config
from recipes.config.wandb_account import check_account
from recipes.dataloading.loader import build_dataloader
from recipes.modeling.token_loss import TokenLoss, read_token_sources
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS, NOT_METRICS, TRAIN_LOSS, read_run
from recipes.runs.spent import spent
from recipes.training import pretraining
from recipes.training.metrics_file import MetricsFile
from tiny_run import configure


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_hours(metrics: list[dict[str, Any]], gpu_hours: float | None, ranks: int = 1) -> None:
    """GPU-hours count all ranks from the start of training to the last batch; their line is written later."""
    batches_s = [line["time_s"] for line in metrics if TRAIN_LOSS in line]
    written_s = [line["time_s"] for line in metrics if "cost/gpu_hours" in line][-1]
    assert gpu_hours is not None
    assert batches_s[-2] - batches_s[0] < 3600 * gpu_hours / ranks < written_s - metrics[0]["time_s"] + 0.01


def test_everything_is_logged_and_is_right(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path):
    """Losses by source, norms, passes and cost of a run equal values computed again from its model and shards."""
    cfg = configure(
        tiny_shards, tiny_tokenizer, tmp_path / "run", "price_per_gpu_hour=3", "gradient_clipping_norm=0.01",
        "callbacks.norm_monitor.interval=4ba", "callbacks.data_monitor.interval=4ba", "loggers.tensorboard={}",
    )  # fmt: skip
    trainer = pretraining.train(cfg)
    assert trainer is not None
    metrics = lines(tmp_path / "run")
    last = {name: value for line in metrics for name, value in line.items()}

    info = read_shards_info(tiny_shards)
    sources = {document["id"]: document["source"] for _, document in read_documents(tiny_shards / "val")}
    assert set(sources.values()) == {ABSTRACTS, ARTICLES}
    stream_sources = [d["source"] for _, d in read_documents(tiny_shards / "val") for _ in range(d["tokens"])]
    model: Any = trainer.state.model
    model.eval()
    nats: dict[str, list[float]] = {ABSTRACTS: [], ARTICLES: []}
    loader = build_dataloader(cfg, "val", 1)
    for batch in loader.dataloader:
        with torch.no_grad():
            logits = model.model(input_ids=batch["input_ids"]).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        for sample, row in zip(batch["sample_ids"].tolist(), losses.tolist(), strict=True):
            for at, loss in enumerate(row, 1):
                nats[stream_sources[sample * 64 + at]].append(loss)
    together = [loss for one in nats.values() for loss in one]
    assert last[EVAL_LOSS] == pytest.approx(sum(together) / len(together), rel=1e-5)
    for source, one in nats.items():
        mean = sum(one) / len(one)
        assert last[f"{EVAL_LOSS}/{source}"] == pytest.approx(mean, rel=1e-5)
        size = [(d["bytes"], d["tokens"]) for _, d in read_documents(tiny_shards / "val") if d["source"] == source]
        bytes_per_token = sum(b for b, _ in size) / sum(t for _, t in size)
        bits = mean / math.log(2) / bytes_per_token
        assert last[f"{EVAL_BITS}/{source}"] == pytest.approx(bits, rel=1e-5)

    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert last["l2_norm/param/global"] == pytest.approx(weights.norm().item(), rel=1e-5)
    norms = [line["l2_norm/grad/global"] for line in metrics if "l2_norm/grad/global" in line]
    assert len(norms) == 3 and all(norm > 0.1 for norm in norms), "gradients are clipped after the norm is logged"
    assert last["time/passes"] == pytest.approx(12 * 8 * 64 / info.counts["train"].tokens)
    shares = [line["throughput/data_wait_share"] for line in metrics if "throughput/data_wait_share" in line]
    assert len(shares) == 3 and all(0 < share < 1 for share in shares)
    train_loss = last[TRAIN_LOSS]
    assert last["loss/train/perplexity"] == pytest.approx(math.exp(train_loss))
    per_byte = train_loss / math.log(2) / info.counts["train"].bytes_per_token
    assert last["loss/train/bits_per_byte"] == pytest.approx(per_byte)
    assert_hours(metrics, last["cost/gpu_hours"])
    assert last["cost/total"] == pytest.approx(3 * last["cost/gpu_hours"])
    assert "throughput/device/mfu" not in last, "no MFU on unknown hardware"
    assert list((tmp_path / "run/tensorboard").rglob("events.out.tfevents.*"))
    patterns = [pattern for entry in CALLBACKS for pattern in entry.logs]
    of_nobody = {name for name in last.keys() - NOT_METRICS if not any(fnmatch(name, each) for each in patterns)}
    assert {name for name in of_nobody if not name.startswith((TRAIN_LOSS, EVAL_LOSS, "trainer/"))} == set(), (
        "a logged metric is not in the table"
    )


def test_texts_do_not_touch_the_losses(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path):
    for name, more in (("with", ()), ("without", ("callbacks.generate_samples=null", "callbacks.norm_monitor=null"))):
        pretraining.train(configure(tiny_shards, tiny_tokenizer, tmp_path / name, *more))
    curves = [read_run(tmp_path / name).series for name in ("with", "without")]
    for metric in (TRAIN_LOSS, EVAL_LOSS):
        assert curves[0][metric] == curves[1][metric]
    texts = [json.loads(line) for line in (tmp_path / "with/texts.jsonl").read_text().splitlines()]
    assert [text["batch"] for text in texts] == [6, 6, 6, 12, 12, 12] and all(text["text"] for text in texts)
    assert not (tmp_path / "without/texts.jsonl").exists()


def test_two_ranks_say_what_one_says(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path):
    """With FSDP, each of two ranks holds parts of gradients and weights, and both must take part in sampling texts."""
    plain = ["model.attn_pdrop=0", "model.resid_pdrop=0", "model.embd_pdrop=0", "callbacks.norm_monitor.interval=4ba"]
    cfg = configure(tiny_shards, tiny_tokenizer, tmp_path / "one", *plain)
    pretraining.train(cfg)
    command = [warm.COMPOSER, "-n", "2", "recipes/train.py", tmp_path / "one/config.yaml"]
    done = warm.run([*command, f"run_dir={tmp_path / 'two'}"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    for metric in ("l2_norm/grad/global", "l2_norm/param/global", *(n for n in one.series if "metrics/eval" in n)):
        assert dict(two.series[metric]) == pytest.approx(dict(one.series[metric]), rel=1e-4), metric
    assert two.texts == one.texts
    assert_hours(lines(tmp_path / "two"), two.last("cost/gpu_hours"), ranks=2)


def test_where_a_token_comes_from(tiny_shards: Path, tmp_path: Path):
    sources = read_token_sources(tiny_shards / "val", 64)
    assert sources is not None and sources.names == (ABSTRACTS, ARTICLES)
    stream = [d["source"] for _, d in read_documents(tiny_shards / "val") for _ in range(d["tokens"])]
    samples = read_shards_info(tiny_shards).counts["val"].samples
    of = np.array(sources.names)[sources.of(range(samples)).numpy()]
    assert of.ravel().tolist() == stream[: samples * 64]
    assert read_token_sources(tmp_path, 64) is None, "downloaded shards have no list of documents"
    with json_lines.Writer(tmp_path / DOCUMENTS) as listing:
        listing.write({"id": "a", "source": ABSTRACTS, "tokens": 3, "bytes": 9})
    assert read_token_sources(tmp_path, 64) is None, "with one source, all samples belong to it"


def test_each_sample_counts_once():
    loss, ids = TokenLoss(4, source=1), torch.tensor
    losses, sources = torch.full((2, 3), 2.0), torch.zeros(2, 3, dtype=torch.uint8)
    loss.update(losses, ids([0, 3]), sources)
    assert math.isnan(loss.compute()), "no token of this source"
    sources[1] = ids([1, 0, 1])
    for _ in range(2):  # as if two ranks had read it
        loss.update(ids([[2.0, 9.0, 4.0]]), ids([1]), sources[1:])
    loss.update(ids([[6.0, 9.0, 9.0]]), ids([2]), ids([[1, 0, 0]], dtype=torch.uint8))
    assert loss.compute() == (2 + 4 + 6) / 3
    whole = TokenLoss(4)
    whole.update(losses, ids([0, 3]))
    assert whole.compute() == 2


def test_half_a_line_is_dropped(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    for content, left in (('{"a": 1}\n{"b', '{"a": 1}\n'), ('{"a": 1}\n', '{"a": 1}\n'), ("{", ""), ("", "")):
        log.write_text(content)
        MetricsFile(log, {})
        assert log.read_text() == left


def test_cost_counts_what_a_crash_threw_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"event": "start", "batch": 0, "time_s": 100.0, "ranks": 8}\n{"batch": 9, "time_s": 160.0}\n'
        '{"event": "start", "batch": 5, "time_s": 1000.0, "ranks": 4}\n{"batch": 6, "time_s": 1030.0}\n{"batch": 7, "ti'
    )
    assert spent(log) == (60 + 30, 8 * 60 + 4 * 30)
    assert spent(log, to_batch=9) == (60, 8 * 60) and spent(log, to_batch=8) == spent(log)
    assert spent(tmp_path / "none") == (0, 0)
    set_back = tmp_path / "set_back.jsonl"
    set_back.write_text(
        '{"event": "start", "batch": 0, "time_s": 5000.0, "ranks": 8}\n{"batch": 1, "time_s": 5010.0}\n'
        '{"batch": 2, "time_s": 1400.0}\n{"batch": 3, "time_s": 1410.0}\n'
    )
    assert spent(set_back) == (20, 8 * 20)
    monitor, logged = CostMonitor(log, 36.0), {}
    logger: Any = SimpleNamespace(log_metrics=logged.update)
    state: Any = None
    times = iter((50.0, 80.0))
    monkeypatch.setattr(cost_monitor.time, "monotonic", lambda: next(times))
    monitor.fit_start(state, logger)
    monitor.batch_end(state, logger)
    assert logged == {"cost/gpu_hours": pytest.approx(630 / 3600), "cost/total": pytest.approx(6.3)}


def test_peaks_are_of_the_very_gpu(monkeypatch: pytest.MonkeyPatch):
    """An A10G has 70 TFLOP/s, but Composer takes it for an A10 with 125."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    peaks = {}
    for name in ("NVIDIA A10", "NVIDIA A10G", "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        peaks[name] = peak_flops("amp_bf16", None)
    assert list(peaks.values()) == [125e12, 0.0, 989.5e12, 0.0]
    assert peak_flops("fp32", None) == 0 == peak_flops("amp_bf16", "cpu")


def test_wandb_online_needs_a_key_before_anything_starts(
    tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg = configure(tiny_shards, tiny_tokenizer, tmp_path / "run", "loggers.wandb={mode: online}")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_account, "_problem", lambda url, key: "" if key == "hidden" else "another key")
    with pytest.raises(BadInput, match=r"no key for api\.wandb\.ai: run `wandb login`"):
        pretraining.train(cfg)
    assert not (tmp_path / "run").exists()
    (tmp_path / "netrc").write_text("machine elsewhere login user password hidden\n")
    with pytest.raises(BadInput, match="no key") as refused:
        check_account(cfg, resumed=False)
    assert "hidden" not in str(refused.value)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password hidden\n")
    check_account(cfg, resumed=False)
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    check_account(cfg, resumed=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.generate_samples.prompts=[]", r"callbacks\.generate_samples\.prompts"),
        ("callbacks.generate_samples.max_new_tokens=0", "a whole number from 1 to 100,000"),
        ("callbacks.norm_monitor.interval=0ba", "a duration from 1ba"),
        ("price_per_gpu_hour=-1", "a number from 0 to"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str):
    with pytest.raises(BadInput, match=message):
        load_config(ROOT / "yamls/biomedlm-2.7b.yaml", [override])


def test_tokenizer_of_texts_ends_where_the_model_ends(tiny_tokenizer: Path):
    from callbacks.generate_samples import GenerateSamples

    texts = GenerateSamples(Path("unused"), tiny_tokenizer, ["batoma"], 8, 64, 17)
    end = tokenizer_format.load_tokenizer(tiny_tokenizer).token_to_id("<|endoftext|>")
    prompt, more = texts.ids[0], texts.tokenizer.encode(" cytgen").ids
    assert texts._text([*prompt, *more, end, *more], len(prompt)) == " cytgen"
    assert GenerateSamples(Path("unused"), tiny_tokenizer, ["batoma " * 100], 8, 64, 17).steps == 1


def test_loader_processes_fork_after_texts_without_a_warning(tiny_tokenizer: Path):
    code = (
        "import os, pathlib; from callbacks.generate_samples import GenerateSamples\n"
        f"tokenizer = pathlib.Path({str(tiny_tokenizer)!r})\n"
        "GenerateSamples(pathlib.Path('unused'), tokenizer, ['one', 'two words'], 8, 64, 17)\n"
        "if not os.fork(): os._exit(0)\n"
        "os.wait(); print('forked')"
    )
    answer = warm.run([sys.executable, "-c", code], ROOT)
    assert answer.stdout == "forked\n" and "parallelism" not in answer.stderr

"""The Trainer as users run it, by `main(cfg)` and `composer -n 2`, on tiny shards."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import CheckpointException, save

import warm
from data_prep.common.errors import BadInput
from data_prep.sharding.build_shards import build_shards
from layer_scaling import without_layer_scaling
from patience import patience_s
from project import ROOT
from recipes import export
from recipes.checkpointing import checkpoint as checkpoints
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.dataloading.loader import build_dataloader
from recipes.modeling.gpt2 import BioMedLM
from recipes.modeling.size import checkpoint_bytes
from recipes.planning.run_plan import check_shards
from recipes.runs import report_page
from recipes.runs.reading import EVAL_BITS, LR, TRAIN_LOSS, read_run
from recipes.runs.report_page import REPORT
from recipes.training import pretraining, trainer

GOLDEN = Path(__file__).with_name("golden_losses.json")
NO_DROPOUT = ["model.attn_pdrop=0", "model.resid_pdrop=0", "model.embd_pdrop=0"]

Overrides = Callable[..., list[str]]


@pytest.fixture
def overrides(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Overrides:
    """`overrides("key=value", …)`: changes that make yamls/smoke-cpu.yaml a run of a few seconds on the tiny shards."""

    def make(*more: str) -> list[str]:
        return [
            f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / 'run'}",
            "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
            "model.n_layer=3", "max_duration=20ba", "global_train_batch_size=8", "device_train_microbatch_size=4",
            "scheduler.t_warmup=5ba", "optimizer.lr=3e-3", "optimizer.weight_decay=3e-4",
            "eval_interval=10ba", "save_interval=10ba", "loggers.wandb=null",
            "callbacks.console.interval=10ba", *more,
        ]  # fmt: skip

    return make


def configure(overrides: list[str]) -> TrainConfig:
    return load_config(ROOT / "yamls/smoke-cpu.yaml", overrides)


def losses(folder: Path) -> list[float]:
    """Training losses by batch; if a batch was computed twice, the later one."""
    return [value for _, value in read_run(folder).series[TRAIN_LOSS]]


def test_a_run_end_to_end(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configure(overrides("loggers.wandb={mode: offline}", "data.num_workers=2", "optimizer.lr=1e-2"))
    trained = pretraining.train(cfg)
    assert trained is not None and trained.state.timestamp.batch == 20
    folder = tmp_path / "run"
    curve = losses(folder)
    assert len(curve) == 20 and curve[-1] < curve[0] - 1
    data = read_run(folder)
    assert data.last(EVAL_BITS) is not None and data.last("loss/train/perplexity") is not None
    lr = [value for _, value in data.series[LR]]
    assert len(lr) == 20
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"ep0-ba10", "ep0-ba20"}
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"] and record["plan"]["batches"] == 20
    assert list(folder.glob("wandb/offline-run-*")), "W&B is on, offline, in the run folder"
    printed = capsys.readouterr().out
    assert "plan of smoke" in printed and "attention parity" in printed and "batch 20/20" in printed

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert pretraining.train(cfg) is None, "if it is typed again, a finished run does nothing"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    assert report_page.write_report([data], folder / REPORT).read_text().count("<svg") >= 4
    with pytest.raises(BadInput, match=r"(?s)holds another run.*seed: 17 -> 18"):
        pretraining.train(configure(overrides("seed=18", "optimizer.lr=1e-2")))


def test_golden_losses(overrides: Overrides, tmp_path: Path) -> None:
    """The first 20 losses of a fixed tiny run. If they change, the mathematics changed: give the reason in the commit.

    To record them again, delete the file and run this test.
    """
    pretraining.train(configure(overrides()))
    curve = losses(tmp_path / "run")
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} did not exist and was recorded; commit it")
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 20
    assert curve == pytest.approx(golden, abs=2e-4)  # processors differ in the last bits, and 20 steps amplify this


def test_resume_is_bit_identical_with_dropout(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was cut after its first checkpoint resumes with the same losses and ends with the same weights."""
    whole = pretraining.train(configure(overrides()))
    folder = tmp_path / "run"
    expected = losses(folder)
    shutil.rmtree(folder / "checkpoints/ep0-ba20")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished": true', '"finished": false'))
    logged, check_loaded = (folder / "metrics.jsonl").read_bytes(), trainer.check_loaded

    def flip(state: Any, *more: Any) -> None:
        """One bit is flipped between the file and the device."""
        state.model.model.transformer.h[1].mlp.c_fc.bias.data.view(torch.int32)[3] ^= 1 << 20
        check_loaded(state, *more)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "check_loaded", flip)
        with pytest.raises(
            BadInput, match=r"ep0-ba10: 1 of \d+ tensors .* model\.transformer\.h\.1\.mlp\.c_fc\.bias first"
        ):
            pretraining.train(configure(overrides()))
    assert (folder / "metrics.jsonl").read_bytes() == logged, "the run stopped before its first step"
    resumed = pretraining.train(configure(overrides()))
    assert whole is not None and resumed is not None
    data = read_run(folder)
    assert data.starts == [0, 10]
    assert losses(folder) == expected
    ours, theirs = resumed.state.model.state_dict(), whole.state.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_ranks_fsdp2_give_the_losses_of_one(overrides: Overrides, tmp_path: Path) -> None:
    """One rank uses transformers' own operations, two ranks use the faster ones; the losses agree.

    Clipping acts in some batches only: if it acted in all, it would hide gradients that gloo sums instead of averaging.
    """
    fast = ["kernels.fused_gelu=true", "kernels.loss_chunk_tokens=100"]
    settings = overrides(*NO_DROPOUT, "optimizer.lr=3e-3", "gradient_clipping_norm=1.0")
    command = [warm.COMPOSER, "-n", "2", "recipes/train.py", "yamls/smoke-cpu.yaml", *settings, *fast]
    (tmp_path / "tmp").mkdir()
    done = warm.run([*command, f"run_dir={tmp_path / 'two'}"], ROOT, {**os.environ, "TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "tmp").iterdir()), "such as the lock files that Streaming leaves"
    pretraining.train(configure([*settings, f"run_dir={tmp_path / 'one'}"]))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    record = json.loads((tmp_path / "two/run.json").read_text())
    assert record["starts"][0]["world_size"] == 2
    checkpoint = tmp_path / "two/checkpoints/ep0-ba20"
    assert (checkpoint / ".metadata").is_file(), "sharded"
    size_bytes = sum(path.stat().st_size for path in checkpoint.iterdir() if path.name != "manifest.json")
    added_bytes = size_bytes - checkpoint_bytes(configure(settings).model, sharded=True)
    assert 0 < added_bytes < 200_000 + 15_000 * 40, "bytes that file formats add to the tensors of 40 parameters"
    for name in ("one", "two"):
        export.main(["--checkpoint", str(tmp_path / name), "--out", str(tmp_path / name / "model")])
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(two[name], one[name], atol=1e-4) for name in one), (
        "a sharded checkpoint gives the same export"
    )


def test_launcher_reports_bad_input_as_exit_code_2(overrides: Overrides) -> None:
    command = [warm.COMPOSER, "-n", "2", "recipes/train.py", "yamls/smoke-cpu.yaml", *overrides("model.n_embdd=3")]
    done = warm.run(command, ROOT)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("did you mean 'n_embd'") == 1 and "Traceback" not in done.stderr


def test_microbatches_do_not_change_the_losses(overrides: Overrides, tmp_path: Path) -> None:
    curves = []
    for microbatch in (2, 8):
        name = f"run_dir={tmp_path / str(microbatch)}"
        settings = overrides(*NO_DROPOUT, "max_duration=8ba", f"device_train_microbatch_size={microbatch}", name)
        pretraining.train(configure(settings))
        curves.append(losses(tmp_path / str(microbatch)))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_activation_checkpointing_does_not_change_the_losses(overrides: Overrides, tmp_path: Path) -> None:
    curves = []
    for on in ("true", "false"):
        settings = overrides("max_duration=8ba", f"activation_checkpointing={on}", f"run_dir={tmp_path / on}")
        pretraining.train(configure(settings))
        curves.append(losses(tmp_path / on))
    assert curves[0] == curves[1]


def test_stopped_after_its_last_save_a_run_is_finished(overrides: Overrides, tmp_path: Path) -> None:
    pretraining.train(configure(overrides("max_duration=12ba")))
    folder = tmp_path / "run"
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished": true', '"finished": false'))
    pretraining.train(configure(overrides("max_duration=12ba")))
    assert json.loads((folder / "run.json").read_text())["finished"]
    assert (folder / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("last", "deaths"),
    # After which batch, and in which evaluation of that start. As 12 is no multiple of an interval, it is evaluated
    # last.
    [(12, [(8, 1), (8, 1), (12, 2)]), (8, [(8, 1)])],
)
def test_what_is_due_is_saved_before_it_is_evaluated(
    last: int, deaths: list[tuple[int, int]], overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a run dies in an evaluation, the same command makes the evaluation first, and gives the uninterrupted run."""
    settings = [f"max_duration={last}ba", "eval_interval=8ba", "save_interval=8ba", "model.resid_pdrop=0.1"]
    run, calls, dies_in, evaluate = tmp_path / "run", 0, 0, BioMedLM.eval_forward

    def eval_forward(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return 1 / 0 if calls == dies_in else evaluate(*given)

    monkeypatch.setattr(BioMedLM, "eval_forward", eval_forward)
    pretraining.train(configure(overrides(*settings, f"run_dir={tmp_path / 'whole'}")))
    of_each = calls // len({8, last})
    for batch, evaluation in deaths:
        calls, dies_in = 0, (evaluation - 1) * of_each + 1
        with pytest.raises(ZeroDivisionError):
            pretraining.train(configure(overrides(*settings)))
        assert checkpoints.checkpoint_batch(checkpoints.complete_checkpoints(run / "checkpoints")[-1]) == batch
        assert read_run(run).trained_batches == batch
    dies_in = 0
    pretraining.train(configure(overrides(*settings)))
    assert json.loads((run / "run.json").read_text())["finished"]
    whole, resumed = read_run(tmp_path / "whole").series, read_run(run).series
    of_loss = [name for name in whole if name.startswith((TRAIN_LOSS, "metrics/eval/"))]
    assert {name: resumed[name] for name in of_loss} == {name: whole[name] for name in of_loss}
    assert [batch for batch, _ in resumed[EVAL_BITS]] == sorted({8, last})


def test_a_resumed_run_draws_no_weights(overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint has all weights; without drawing them first, the 2.7B starts more than a minute earlier."""
    whole = pretraining.train(configure(overrides("max_duration=12ba")))
    folder = tmp_path / "run"
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished": true', '"finished": false'))

    def draw(*arguments: object) -> None:
        raise AssertionError("weights are drawn")

    monkeypatch.setattr("transformers.GPT2LMHeadModel._init_weights", draw)
    resumed = pretraining.train(configure(overrides("max_duration=12ba")))
    assert whole is not None and resumed is not None
    ours, theirs = resumed.state.model.state_dict(), whole.state.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(AssertionError, match="weights are drawn"):
        pretraining.train(configure(overrides("max_duration=12ba", f"run_dir={tmp_path / 'new'}")))


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("place", ["file", "index", "entry"])
def test_resuming_executes_nothing(overrides: Overrides, tmp_path: Path, place: str) -> None:
    """A checkpoint with a valid manifest and with code, at each place where Composer unpickles one."""
    pretraining.train(configure(overrides("max_duration=12ba")))
    folder, target = tmp_path / "run", tmp_path / "executed"
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished": true', '"finished": false'))
    honest = folder / "checkpoints/ep0-ba12"
    identity = json.loads((honest / "manifest.json").read_text())["identity"]
    state = torch.load(honest / "rank0.pt", weights_only=False)  # made above
    partial = folder / "checkpoints/crafted"
    partial.mkdir()
    if place != "index":
        state["rng"] = [Payload(target)]
    if place == "file":
        torch.save(state, partial / "rank0.pt")
    else:
        save(state, checkpoint_id=str(partial), no_dist=True)
    if place == "index":
        (partial / ".metadata").write_bytes(pickle.dumps(Payload(target)))
    checkpoints.publish(partial, honest, {"batch": 12, "epoch": 0, "sample_in_epoch": 0}, identity)
    with pytest.raises((BadInput, CheckpointException), match=r"would run code"):
        pretraining.train(configure(overrides("max_duration=12ba")))
    assert not target.exists()


def test_loader_workers_do_not_change_the_samples(overrides: Overrides) -> None:
    def first_epoch(workers: int) -> list[list[list[int]]]:
        cfg = configure(overrides(f"data.num_workers={workers}"))
        loader: Any = build_dataloader(cfg, "train", 1).dataloader
        return [batch["input_ids"].tolist() for batch in loader]

    alone = first_epoch(0)
    assert alone == first_epoch(1) == first_epoch(2)
    assert len(alone) == shards_info(overrides).counts["train"].samples // 8
    samples = [str(sample) for batch in alone for sample in batch]
    assert len(set(samples)) == len(samples), "no sample is repeated within an epoch"


def shards_info(overrides: Overrides) -> Any:
    return check_shards(configure(overrides()))


@pytest.mark.chaos
def test_runs_that_start_together_do_not_collide(overrides: Overrides) -> None:
    """Without the lock, a third of these calls fails with FileExistsError."""
    code = (
        "import sys; from recipes.config.loading import load_config\n"
        "from recipes.dataloading.loader import build_dataloader\n"
        "cfg = load_config('yamls/smoke-cpu.yaml', sys.argv[1:])\n"
        "for _ in range(12): build_dataloader(cfg, 'train', 1)"
    )
    command = [sys.executable, "-c", code, *overrides()]
    together = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=patience_s())[1] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], errors


def test_validation_reads_every_sample_once(overrides: Overrides) -> None:
    loader: Any = build_dataloader(configure(overrides("data.num_workers=2")), "val", 1).dataloader
    batches = list(loader)
    assert sum(len(batch["input_ids"]) for batch in batches) == shards_info(overrides).counts["val"].samples


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.seq_len=32", "seq_len = 32, but .* was built with 64"),
        ("model.vocab_size=601", "vocab_size = 601, but .* was built with 600"),
        ("data.eos_between_documents=false", "was built with True"),
        ("data.shards=nowhere", "nowhere does not exist, .*make shards"),
        ("data.tokenizer=yamls", "yamls holds no tokenizer.json"),
        ("global_train_batch_size=100000", "fewer than one batch"),
        ("run_dir=yamls", "not empty and holds no run"),
    ],
)
def test_shards_that_do_not_fit_are_refused(overrides: Overrides, override: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        pretraining.train(configure(overrides(override)))


def test_another_tokenizer_is_refused(overrides: Overrides, tiny_tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer.json").write_text((tiny_tokenizer / "tokenizer.json").read_text() + " ")
    with pytest.raises(BadInput, match="is not the tokenizer of"):
        pretraining.train(configure(overrides(f"data.tokenizer={other}")))


def test_no_run_starts_with_stock_attention(overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
    from callbacks.attention_parity import ParityError

    monkeypatch.setattr("recipes.modeling.gpt2.use_scaled_attention", without_layer_scaling)
    with pytest.raises(ParityError, match="does not compute this model"):
        pretraining.train(configure(overrides()))


def test_2022_shards_train_too(overrides: Overrides, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64, eos_between_documents=False)
    changes = (f"data.shards={tmp_path / 'shards'}", "data.eos_between_documents=false", "max_duration=6ba")
    assert pretraining.train(configure(overrides(*changes))) is not None

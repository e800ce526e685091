"""A run that reads a share of old text resumes as the same run, and reports what it read of each folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json
from data_prep.files import json_lines
from data_prep.sharding.shard_format import read_documents, read_shards_info
from project import ROOT
from recipes.checkpointing.checkpoint import complete_checkpoints, remove
from recipes.config.loading import load_config, load_recorded_config
from recipes.config.schema import TrainConfig
from recipes.dataloading import skipped_data
from recipes.dataloading.loader import build_dataloader
from recipes.runs.model_card import write_model_card
from recipes.runs.names import RECORD
from recipes.runs.plots import plots
from recipes.runs.reading import TRAIN_LOSS, read_run, summary
from recipes.training import pretraining

BATCH, SAVED, END, SHARE = 8, 4, 9, 0.6
FINGERPRINT, OLD_LOSS, OLD_BITS = (
    "data/batch_fingerprint",
    "metrics/eval-old/LanguageCrossEntropy",
    "metrics/eval-old/BitsPerByte",
)


def configure(folder: Path, shards: Path, tokenizer: Path, *more: str) -> TrainConfig:
    settings = [
        f"run_dir={folder}", f"data.shards={shards}", f"data.tokenizer={tokenizer}", "data.seq_len=64",
        "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=16", "model.n_layer=2",
        "model.n_head=2", f"max_duration={END}ba", f"global_train_batch_size={BATCH}",
        "device_train_microbatch_size=4", "scheduler.t_warmup=1ba", "optimizer.lr=3e-3", f"eval_interval={SAVED}ba",
        f"save_interval={SAVED}ba", "loggers.wandb=null", "callbacks.data_monitor.interval=1ba",
        "callbacks.generate_samples.max_new_tokens=2", "callbacks.console.interval=1ba", "model.attn_pdrop=0.1",
    ]  # fmt: skip
    return load_config(ROOT / "yamls/smoke-cpu.yaml", [*settings, *more])


@pytest.fixture(scope="module")
def mixed(old_shards: Path) -> list[str]:
    return [f"data.mix.old.shards={old_shards}", f"data.mix.old.share={SHARE}"]


@pytest.fixture(scope="module")
def whole(mixed: list[str], tiny_shards: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "run"
    pretraining.train(configure(folder, tiny_shards, tiny_tokenizer, *mixed))
    return folder


def test_a_run_is_resumed_within_a_pass(
    whole: Path, mixed: list[str], tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The run stopped after its checkpoint and during the evaluation, before the old text was evaluated."""
    folder = shutil.copytree(whole, tmp_path / "run")
    for checkpoint in complete_checkpoints(folder / "checkpoints")[1:]:
        remove(checkpoint)
    (folder / RECORD).write_text(json.dumps({**read_json(folder / RECORD), "finished": False}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["batch"] <= SAVED and OLD_LOSS not in line]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    pretraining.train(configure(folder, tiny_shards, tiny_tokenizer, *mixed))
    output = capsys.readouterr().out
    assert "batch 5 computed twice has the same loss and gradient, bit for bit" in output
    assert f"the run stopped before the evaluation of batch {SAVED} was complete" in output
    one, again = read_run(whole), read_run(folder)
    for metric in (TRAIN_LOSS, FINGERPRINT, OLD_LOSS, OLD_BITS, "metrics/eval/LanguageCrossEntropy", "data/share/old"):
        assert again.series[metric] == one.series[metric], metric
    assert len(again.texts["Photosynthesis is"]) == 3, "once after both splits, at batches 4, 8 and 9"


def test_it_says_what_it_read_of_each_folder(whole: Path, tiny_shards: Path, old_shards: Path) -> None:
    data, info = read_run(whole), read_shards_info(old_shards)
    shares = [share for _, share in data.series["data/share/old"]]
    cfg = load_recorded_config(whole / "config.yaml")
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    main = read_shards_info(tiny_shards).counts["train"].samples
    of_old = loader.dataset.sample_order(0, BATCH)[: END * BATCH].reshape(END, BATCH) >= main
    assert shares == pytest.approx(of_old.mean(axis=1).tolist())
    record = read_json(whole / RECORD)
    assert record["identity"]["mix"] == {"old": {"shards_sha256": info.sha256, "share": SHARE}}
    of = record["data"]["mix"]["old"]
    assert (of["shards"], of["shards_sha256"], of["corpus"]) == (str(old_shards), info.sha256, info.manifest["corpus"])
    assert of["counts"]["train"]["samples"] == info.counts["train"].samples
    row = summary(data)["mixed in: old"]
    assert f"60.0{row[4]}% of a pass" in row and f"{data.last(OLD_BITS):.4f} bits per byte" in row
    assert data.last(OLD_LOSS) != data.last("metrics/eval/LanguageCrossEntropy")
    axes = plots([data])["Bits per byte of validation text"].axes[0]
    assert "old" in axes.get_legend_handles_labels()[1]
    write_model_card(
        whole.parent, whole / "checkpoints/ep0-ba8", whole, 8, {"eager": 1e-7},
        {"dtype": "float32", "n_parameters": 1, "n_positions": 64, "tied": True},
    )  # fmt: skip
    card = (whole.parent / "README.md").read_text()
    (mixed,) = (line for line in card.splitlines() if line.startswith("| mixed in: old |"))
    assert info.sha256[:16] in mixed and f"validation {dict(data.series[OLD_LOSS])[8]:.4f} nats per token" in mixed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.mix=null", r"mix: .*cannot change: under another order"),
        ("data.mix.old.share=0.5", r"mix\.old\.share: 0\.6 -> 0\.5 .*cannot change"),
        ("data.mix={new: {shards: OLD, share: 0.6}}", r"mix\.new: None -> .*cannot change"),
    ],
)
def test_another_mix_is_another_run(
    change: str, says: str, whole: Path, mixed: list[str], tiny_shards: Path, tiny_tokenizer: Path, old_shards: Path
) -> None:
    given = mixed if "{" not in change else []
    change = change.replace("OLD", str(old_shards))
    with pytest.raises(BadInput, match=rf"(?s)holds another run.*{says}"):
        pretraining.train(configure(whole, tiny_shards, tiny_tokenizer, *given, change, "resume.allow=[mix]"))


def test_a_loss_spike_lists_what_it_leaves_out_by_folder(
    mixed: list[str], tiny_shards: Path, old_shards: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Every rise by a ten-thousandth counts as a spike: the first is skipped, and the next ends the run."""
    guard = "callbacks.spike_guard={window_batches: 1, threshold: 0.0001, min_rise: 0.0001, patience_batches: 1}"
    more = [guard, "callbacks.spike_guard.max_rewinds=1", "max_duration=40ba", "eval_interval=100ba"]
    with pytest.raises(SystemExit):
        pretraining.train(configure(tmp_path / "run", tiny_shards, tiny_tokenizer, *mixed, *more))
    (entry,) = skipped_data.read(tmp_path / "run")
    details = [record for _, record in json_lines.read(tmp_path / "run" / entry["details"])]
    samples = [(record["shards"], record["sample"]) for record in details if "sample" in record]
    assert len(samples) == entry["samples"] > 0
    assert {shards for shards, _ in samples} == {str(folder / "train") for folder in (tiny_shards, old_shards)}
    for folder in (tiny_shards, old_shards):
        mine = {sample for shards, sample in samples if shards == str(folder / "train")}
        overlapping = {
            record["id"] for start, record in read_documents(folder / "train")
            if mine & {*range(start // 64, (start + record["tokens"] - 1) // 64 + 1)}
        }  # fmt: skip
        named = {
            record["document"]
            for record in details
            if record["shards"] == str(folder / "train") and "document" in record
        }
        assert named == overlapping

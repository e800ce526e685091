"""Outputs from before the code moved into rooms are read, resumed and found current.

tests/data/before_rooms was made by commit 6e66e8e: a corpus, a tokenizer, shards, and a finished run of twelve batches
with dropout. Its configuration has the keys of that time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_prep import corpus, shards, tokenizer, verify
from data_prep.common.errors import BadInput
from data_prep.common.manifest import difference
from data_prep.filtering.build_corpus import CARD
from project import ROOT
from recipes import export
from recipes.checkpointing.trained_model import find_source, load_trained
from recipes.config.loading import load_config, load_recorded_config
from recipes.config.old_keys import GONE, RENAMED
from recipes.finetuning.planning import architecture
from recipes.runs.reading import TRAIN_LOSS, read_run, summary
from recipes.training.pretraining import train

BEFORE = ROOT / "tests/data/before_rooms"
FolderBytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(BEFORE, tmp_path / "old")


def test_stages_make_the_same_bytes(tmp_path: Path, folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old texts and shards are rebuilt with the same bytes, so outputs from that time count as current.

    Only the manifest and the card of the corpus differ: since corpus format 4, articles and abstracts become another
    text, so the old corpus itself is refused. The rules for own text did not change, and neither did its bytes.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copy(BEFORE / "documents.jsonl", tmp_path)
    text = ["--source", "text", "--input", "documents.jsonl", "--val-fraction", "0.2", "--workers", "1"]
    corpus.main([*text, "--out", "new-corpus"])
    made, before = folder_bytes(tmp_path / "new-corpus"), folder_bytes(BEFORE / "corpus")
    manifests = [json.loads(folder.pop("manifest.json")) for folder in (made, before)]
    assert made.pop(CARD) != before.pop(CARD), "the card says the same facts in other words"
    assert made == before
    for manifest in manifests:
        del manifest["outputs"][CARD]
    differ = [line.split(":")[0] for line in difference(*manifests)]
    assert differ == ["arguments.keep_characters", "characters", "format", "seal"]
    shutil.copytree(BEFORE / "corpus", tmp_path / "corpus")
    with pytest.raises(BadInput, match="format: 3 -> 4"):
        corpus.main([*text, "--out", "corpus"])
    tokenizer.main(["--corpus", "corpus", "--out", "tokenizer", "--vocab-size", "300"])
    made_of = ["--corpus", "corpus", "--tokenizer", "tokenizer"]
    shards.main([*made_of, "--out", "shards", "--seq-len", "32", "--workers", "1"])
    for stage in ("tokenizer", "shards"):
        assert folder_bytes(tmp_path / stage) == folder_bytes(BEFORE / stage), stage


def test_shards_of_then_verify(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.main(["--shards", str(old / "shards")])
    assert "files are as they were written" in capsys.readouterr().out


def test_a_run_of_then_is_resumed_bit_for_bit(old: Path) -> None:
    """A run that stopped at batch 6 has the same losses in batches 7 to 12 as the uninterrupted run."""
    run = old / "run"
    expected = dict(read_run(run).series[TRAIN_LOSS])
    shutil.rmtree(run / "checkpoints/ep0-ba12")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "finished": False}))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["batch"] <= 6]
    (run / "metrics.jsonl").write_text("".join(kept))
    overrides = json.loads((old / "overrides.json").read_text())
    now = [re.sub(r", vocab_multiple: 1", "", text) for text in overrides]
    for before, name in RENAMED.items():
        now = [text.replace(before, name) for text in now]
    places = [f"data.shards={old / 'shards'}", f"data.tokenizer={old / 'tokenizer'}", f"run_dir={run}"]
    with pytest.raises(BadInput, match=r"schedule\.name: 'cosine' -> 'linear'"):
        train(load_config(ROOT / "yamls/smoke-cpu.yaml", [*now, *places, "scheduler.name=linear"]))
    assert train(load_config(ROOT / "yamls/smoke-cpu.yaml", [*now, *places])) is not None
    losses = dict(read_run(run).series[TRAIN_LOSS])
    assert losses.keys() == expected.keys() == set(range(1, 13))
    assert {n: losses[n] for n in range(1, 7)} == {n: expected[n] for n in range(1, 7)}
    # Exact where torch computes as it did then; another processor rounds differently.
    assert [losses[n] for n in range(7, 13)] == pytest.approx([expected[n] for n in range(7, 13)], rel=1e-6)
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 2


def test_a_run_of_then_is_exported_and_fine_tuned_from(old: Path, tmp_path: Path) -> None:
    export.main(["--checkpoint", str(old / "run"), "--out", str(tmp_path / "model")])
    source = find_source(old / "run", None)
    assert architecture(source).n_embd == load_trained(source).config.n_embd == 16
    assert "| schedule | cosine, warm-up 2ba" in (tmp_path / "model/README.md").read_text()
    whole = torch.load(old / "run/checkpoints/ep0-ba12/rank0.pt", weights_only=False)["state"]["model"]
    assert torch.equal(load_trained(source).transformer.wte.weight, whole["model.transformer.wte.weight"])


def test_a_run_of_then_is_reported(old: Path) -> None:
    data = read_run(old / "run")
    assert data.texts["cytitis"] and "12 of 12 batches" in summary(data)["trained on"]


def test_keys_of_then_are_translated_in_a_run_folder_alone() -> None:
    cfg = load_recorded_config(BEFORE / "run/config.yaml")
    assert cfg.callbacks.nan_guard and cfg.callbacks.nan_guard.max_in_a_row == 3
    assert cfg.callbacks.generate_samples and cfg.callbacks.generate_samples.prompts == ["cytitis"]
    with pytest.raises(BadInput, match=r"config.yaml: 'callbacks.number_guard' is called 'callbacks.nan_guard' now"):
        load_config(BEFORE / "run/config.yaml")


@pytest.mark.parametrize("key", [*RENAMED, *GONE])
@pytest.mark.parametrize("value", ["null", "{a: 1}", "7"])
def test_an_old_key_is_refused_by_name_wherever_a_user_writes_it(key: str, value: str, tmp_path: Path) -> None:
    says = RENAMED.get(key, "is gone")
    with pytest.raises(BadInput, match=rf"override '{re.escape(key)}.*{re.escape(says)}"):
        load_config(ROOT / "yamls/smoke-cpu.yaml", [f"{key}={value}"])
    section, _, last = key.partition(".")
    (tmp_path / "mine.yaml").write_text(f"base: {ROOT}/yamls/smoke-cpu.yaml\n{section}: {{{last}: {value}}}\n")
    with pytest.raises(BadInput, match=rf"mine\.yaml: '{re.escape(key)}' {says if key in GONE else ''}"):
        load_config(tmp_path / "mine.yaml")


def test_a_setting_that_is_gone_and_acted_is_not_passed_over(old: Path) -> None:
    config = old / "run/config.yaml"
    config.write_text(config.read_text().replace("vocab_multiple: 1", "vocab_multiple: 128"))
    with pytest.raises(BadInput, match=r"vocab_multiple = 128: this version has no such setting; use the commit"):
        load_recorded_config(config)

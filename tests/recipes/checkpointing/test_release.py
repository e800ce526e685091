"""A released folder describes the exported checkpoint, and works with all programs that read it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, GPT2TokenizerFast

from data_prep.common.errors import BadInput
from data_prep.common.manifest import begin, publish
from project import ROOT
from recipes import export, report
from recipes.runs.model_card import write_model_card
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS

BEFORE = ROOT / "tests/data/before_rooms"  # a finished run of twelve batches with two checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(BEFORE / "run", tmp_path / "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "model"
    export.export(BEFORE / "run", folder)
    return folder


def card_of(checkpoint: Path, out: Path) -> str:
    shutil.rmtree(out, ignore_errors=True)
    export.export(checkpoint, out)
    return (out / "README.md").read_text()


def card_alone(run: Path, batch: int, out: Path) -> str:
    """The card that the export writes, without the model."""
    out.mkdir(exist_ok=True)
    facts = {"dtype": "float32", "n_parameters": 1, "n_positions": 32, "tied": True}
    write_model_card(out, run / f"checkpoints/ep0-ba{batch}", run, batch, {"eager": 0.0}, facts)
    return (out / "README.md").read_text()


def change_lines(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in change(lines)))


def test_a_card_speaks_of_its_checkpoint(run: Path, tmp_path: Path) -> None:
    losses = {
        line["batch"]: line[EVAL_LOSS] for line in map(json.loads, (run / "metrics.jsonl").open()) if EVAL_LOSS in line
    }
    assert losses.keys() == {6, 12}
    for batch, loss in losses.items():
        card = card_of(run / f"checkpoints/ep0-ba{batch}", tmp_path / "out")
        assert f"| validation | {loss:.4f} nats per token" in card and f"at batch {batch} |" in card
        assert f"| trained on | {batch * 128:,} tokens = " in card and f"in {batch} of 12 batches of 128 tokens" in card
    # not evaluated at this batch: the card has no loss, rather than that of another batch
    change_lines(run / "metrics.jsonl", lambda lines: [line for line in lines if line["batch"] != 6])
    assert "| validation |" not in card_alone(run, 6, tmp_path / "out")
    assert "| validation |" in card_alone(run, 12, tmp_path / "out")
    # evaluated twice: a loss that a crash discarded does not belong to this checkpoint
    again = {"batch": 4, "tokens": 512, "time_s": 2e9}
    change_lines(run / "metrics.jsonl", lambda lines: [*lines, {"event": "start", **again}])
    assert "| validation |" not in card_alone(run, 12, tmp_path / "out")
    evaluated = {**again, "batch": 12, EVAL_LOSS: 1.5, EVAL_BITS: 0.5}
    change_lines(run / "metrics.jsonl", lambda lines: [*lines, evaluated])
    assert "| validation | 1.5000 nats" in card_alone(run, 12, tmp_path / "out")


def test_documents_and_licences_are_counted_over_the_same_splits(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    corpus = record["data"]["corpus"]
    corpus["counts"]["recent"] = {"documents": 5, "bytes": 50, "sources": {"text": {"documents": 5, "bytes": 50}}}
    corpus["licenses"] = {"CC BY": 25, "unknown": 100}
    (run / "run.json").write_text(json.dumps(record))
    card = card_alone(run, 12, tmp_path / "out")
    documents = re.search(r"\| corpus \| (\d+) documents in train and val and recent: (\d+) of text", card)
    licenses = re.search(r"\| licences of the corpus \| CC BY: (\d+), unknown: (\d+) \|", card)
    assert documents and licenses
    assert documents[1] == documents[2] == "125" and int(licenses[1]) + int(licenses[2]) == 125


def test_a_metrics_line_that_was_cut_is_read_alike(run: Path, tmp_path: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 12, "tok')
    assert "| validation | 4.2653" in card_of(run, tmp_path / "out")
    report.main([str(run)])
    for line in ("\n7\n[1]\nnull\n", '\n{"event": "start"}\n'):
        (run / "metrics.jsonl").write_text((BEFORE / "run/metrics.jsonl").read_text() + line + '{"batch": 13}\n')
        for command in (lambda: card_alone(run, 12, tmp_path / "out"), lambda: report.main([str(run)])):
            with pytest.raises(BadInput, match=r"metrics\.jsonl, line \d+ is "):
                command()


def test_another_tokenizer_is_another_build(run: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", shutil.copytree(run / "tokenizer", tmp_path / "other")
    export.export(run, out)
    export.main(["--checkpoint", str(run), "--out", str(out), "--tokenizer", str(other)])  # with the same bytes
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"another build:\n  inputs\.tokenizer"):
        export.main(["--checkpoint", str(run), "--out", str(out), "--tokenizer", str(other)])
    with pytest.raises(BadInput, match="not the tokenizer that ep0-ba12 was trained with"):
        export.export(run, tmp_path / "out2", other)
    shutil.copy(other / "tokenizer.json", run / "tokenizer")
    with pytest.raises(BadInput, match="not the tokenizer that ep0-ba12 was trained with"):
        export.export(run, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [("n_head: 2", "n_head: 4", "model.n_head: 2 -> 4"), ("gelu_new", "relu", "model.activation_function"),
     ("scale_attn_by_inverse_layer_idx: true", "scale_attn_by_inverse_layer_idx: false", "model.scale_attn"),
     ("n_layer: 2", "n_layer: 1", "model.n_layer"), ("n_layer: 2", "n_layer: 3", "model.n_layer")],
)  # fmt: skip
def test_a_configuration_that_was_altered_since_is_refused(
    before: str, after: str, key: str, run: Path, tmp_path: Path
) -> None:
    """The shapes of the weights do not show heads, attention scale and activation."""
    config = run / "config.yaml"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(BadInput, match=key):
        export.export(run, tmp_path / "out")


def test_a_long_text_is_cut_to_what_the_model_reads(model: Path) -> None:
    """In transformers itself: with 1024 in every folder, a model of 32 positions failed with an index error."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer("cytase " * 500, truncation=True, return_tensors="pt")
    assert tokenizer.model_max_length == inputs["input_ids"].shape[1] == 32
    assert AutoModelForCausalLM.from_pretrained(model)(**inputs).logits.isfinite().all()


def test_the_card_loads_the_model_as_printed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(model)
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("Aspirin")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_get_the_mode_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        export.export(BEFORE / "run", tmp_path / "model")
        partial = begin(tmp_path / "stage")
        # The permissions of tempfile's files.
        os.close(os.open(partial / "for-the-owner-alone", os.O_CREAT | os.O_WRONLY, 0o600))
        publish(partial, tmp_path / "stage", {}, {})
    finally:
        os.umask(before)
    files = [*(tmp_path / "model").iterdir(), *(tmp_path / "stage").iterdir()]
    assert len(files) > 9 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_vocabulary_and_merges_are_there_whatever_transformers_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5 writes only tokenizer.json."""
    monkeypatch.setattr(GPT2TokenizerFast, "save_vocabulary", lambda *_, **__: ())
    export.export(BEFORE / "run", tmp_path / "model")
    fast = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/vocab.json").read_text()) == fast.get_vocab()
    slow = GPT2Tokenizer(str(tmp_path / "model/vocab.json"), str(tmp_path / "model/merges.txt"))
    text = "Cytase, 5 µg of β-blockers  and\ttabs"
    assert slow(text)["input_ids"] == fast(text)["input_ids"] and len(slow) == len(fast) == 300


@pytest.mark.parametrize("license", ["mit", None])
def test_a_converted_model_keeps_the_licence_of_its_source(license: str | None, model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(model, tmp_path / "source")
    (source / "README.md").write_text(
        f"---\nlanguage: en\nlicense: {license}\n---\n# Mine\n" if license else "# Mine\n"
    )
    card = card_of(source, tmp_path / "out")
    assert ("license: mit\n" in card) == bool(license) and "bloom-rail" not in card and "# source\n" in card
    assert "bloom-rail" in card_of(model, tmp_path / "again")

"""The code on the card of a fine-tuned model prints the model's answer."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_prep.tasks.task_set import Pair
from kind_examples import ASKED
from recipes.checkpointing.trained_model import Source
from recipes.config.schema import FinetuneConfig, LoraConfig, OptimizerConfig
from recipes.finetuning import heads
from recipes.finetuning.heads import FineTuned
from recipes.finetuning.kind import Encoder
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.model_card import TEMPLATE, write_model_card
from recipes.finetuning.pairs import Pairs
from recipes.finetuning.scoring import predict
from recipes.finetuning.task_head import TaskHead
from recipes.modeling.release import make_ready
from template_fields import template_fields

START = {"commit": "0123abc", "uncommitted": [], "world_size": 1, "gpus": [], "processor": "a CPU"}
PLAN = {"parameters": 11_904, "trained_parameters": 11_904, "batches": 20, "batches_per_epoch": 4}
RECORD = {"identity": {}, "finished": True, "plan": PLAN, "data": {}, "starts": [START]}
COUNTS = dict.fromkeys(("bytes", "documents", "tokens", "dropped_tokens", "samples"), 1)
OF_PRETRAINING = {
    **RECORD,
    "plan": {"parameters": 11_904, "batches": 20, "tokens_per_batch": 8, "train_tokens": 160},
    "data": {
        "counts": {"train": COUNTS, "val": COUNTS},
        "baselines": {"unigram_nats_per_token": 7.5, "xz9_bits_per_byte": 2.4},
        "corpus": {"licenses": {}, "dropped": {}, "dates": {"first": None, "last": None}},
    },
}
FACTS = {"dtype": "float32", "n_parameters": 11_904, "n_positions": 64, "batch": 8, "difference": 1e-7}
HOURS = '{"event": "start", "batch": 0, "tokens": 0, "time_s": 8, "ranks": 8}\n'
LINE = {"batch": 8, "tokens": 8, "time_s": 7208, "metrics/eval/Accuracy": 0.75}


def written(folder: Path, kind: str = "verdict", **changes: Any) -> str:
    """The card of a model of the kind; changes apply to arguments of `write_model_card`, or to the run folder."""
    run = folder.parent / "run"
    run.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps({**RECORD, **changes.pop("record", {})}))
    (run / "metrics.jsonl").write_text(changes.pop("hours", "") + json.dumps(changes.pop("line", LINE)))
    source = Source(folder.parent / "base", folder, None, changes.pop("sha256", "abc123"))
    source = changes.pop("source", source)
    if (sources := changes.pop("base_sources", None)) is not None:  # the base model comes from a run
        record = copy.deepcopy(OF_PRETRAINING)
        record["data"]["corpus"]["counts"] = {"train": {"documents": 1, "sources": sources}}
        (folder.parent / "run.json").write_text(json.dumps(record))
        source = Source(folder.parent / "checkpoints/ep0-ba1", folder, folder.parent, "")
    settings = {"task": "mine", "run_name": "mine-1", "run_dir": str(run), **changes.pop("cfg", {})}
    head = TaskHead(
        **{"task": "mine", "kind": kind, "labels": ASKED[kind].labels, "seq_len": 60, **changes.pop("head", {})}
    )
    parts = {split: [None] * n for split, n in changes.pop("parts", {"train": 5, "dev": 2}).items()}
    write_model_card(folder, FinetuneConfig(**settings), source, head, parts, {**FACTS, **changes})  # pyright: ignore[reportArgumentType]
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_asks_the_model_as_it_was_trained_to_be_asked(
    kind: str, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With transformers alone, the printed code gives the same answer as the recipe's own code."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    KINDS[kind].add_tokens(tokenizer)
    torch.manual_seed(1)
    n = len(tokenizer)
    config = GPT2Config(vocab_size=n, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    model = FineTuned(GPT2LMHeadModel(config), TaskHead("mine", kind, ASKED[kind].labels, 60))
    make_ready(model.model, tokenizer.eos_token_id, tokenizer.pad_token_id)
    folder = tmp_path / "model"
    heads.save(model, tokenizer, folder)
    (snippet,) = re.findall(r"```python\n(.*?)```", written(folder, kind), re.DOTALL)
    monkeypatch.chdir(folder)
    ran: dict[str, Any] = {}
    exec(snippet, ran)
    printed = capsys.readouterr().out.strip()
    tuned, tokenizer = heads.load(folder)
    example, cfg = ASKED[kind].of_card, FinetuneConfig(device_eval_batch_size=4)
    if isinstance(example, Pair) and kind == "pairs":
        source, _ = Pairs().source(example, Encoder(tokenizer, Pairs(), 60), 50)
        ids = torch.tensor([source])
        text = tuned.model.generate(ids, attention_mask=torch.ones_like(ids), max_length=50)[0, ids.shape[1] :]
        assert printed == tokenizer.decode(text, skip_special_tokens=True).strip() != ""
        return
    (record,) = predict(tuned, tokenizer, [example], cfg)
    assert printed == ASKED[kind].printed(record)
    if "scores" in record:
        assert list(map(float, ran["scores"])) == pytest.approx(record["scores"], rel=1e-4)


# Field -> the change of its cause, and the resulting text on the card.
TRACED: dict[str, tuple[dict[str, Any], str]] = {
    "about_pubmed": (
        {"base_sources": {"PubMed Abstracts": {"documents": 1, "bytes": 1}}}, "PubMed is a trademark of the NLM",
    ),
    "answers": ({"kind": "tags"}, "it tags the words"),
    "base": ({"source": Source(Path("other"), Path(), None, "")}, "| other, sha256"),
    "base_sha256": ({"sha256": "def456"}, "sha256 def456"),
    "batch": ({"batch": 7}, "| trained on | 7 of 20"),
    "cfg.global_train_batch_size": ({"cfg": {"global_train_batch_size": 77}}, "batches of 77 examples"),
    "cfg.lora.r": ({"cfg": {"lora": LoraConfig(r=5)}}, "LoRA of rank 5"),
    "cfg.optimizer.betas": ({"cfg": {"optimizer": OptimizerConfig(lr=1, betas=[0.5, 0.6])}}, "betas [0.5, 0.6]"),
    "cfg.optimizer.eps": ({"cfg": {"optimizer": OptimizerConfig(lr=1, eps=0.125)}}, "eps 0.125"),
    "cfg.optimizer.lr": ({"cfg": {"optimizer": OptimizerConfig(lr=0.5)}}, "lr 0.5"),
    "cfg.optimizer.weight_decay": ({"cfg": {"optimizer": OptimizerConfig(lr=1, weight_decay=0.375)}}, "decay 0.375"),
    "cfg.precision": ({"cfg": {"precision": "amp_fp16"}}, "amp_fp16"),
    "cfg.run_name": ({"cfg": {"run_name": "mine-2"}}, "# mine-2"),
    "cfg.seed": ({"cfg": {"seed": 99}}, "| seed | 99 |"),
    "cfg.warmup_share": ({"cfg": {"warmup_share": 0.25}}, "warm-up 0.25"),
    "code": ({"kind": "tags"}, 'words = ["Aspirin", "inhibits", "COX-1"]'),
    "commits": ({"record": {"starts": [START, {**START, "commit": "", "uncommitted": ["x"]}]}},
                "0123abc; then unknown, with uncommitted changes"),
    "difference": ({"difference": 2e-7}, "of the largest answer: 2.0e-07"),
    "dtype": ({"dtype": "bfloat16"}, "in bfloat16"),
    "examples.*": ({"parts": {"train": 6}}, "6 in train"),
    "examples.key": ({"parts": {"test": 5}}, "5 in test"),
    "head.kind": ({"kind": "pairs"}, "of kind pairs"),
    "head.labels": ({"head": {"labels": ("a", "b")}}, "labels a, b"),
    "head.seq_len": ({"head": {"seq_len": 59}}, "59 tokens in training"),
    "head.task": ({"head": {"task": "other"}}, "fine-tuned on other"),
    "license": ({"base_sources": {}}, "license: bigscience-bloom-rail-1.0"),
    "max_length": ({"kind": "pairs", "head": {"seq_len": 40}}, "max_length=40"),
    "n_parameters": ({"n_parameters": 12_345}, "12,345 parameters"),
    "n_positions": ({"n_positions": 128}, "the model can read 128 tokens"),
    "on_dev.*": ({"line": {**LINE, "metrics/eval/Accuracy": 0.5}}, "Accuracy 0.5000, at batch 8"),
    "on_dev.key": ({"line": {**LINE, "metrics/eval/F1": 0.5}}, "F1 0.5000"),
    "metadata": ({"kind": "choice"}, "pipeline_tag: question-answering"),
    "spent.device_hours": ({"hours": HOURS}, "= 16 device-hours"),
    "spent.hours": ({"hours": HOURS}, "| 2 hours"),
    "plan.batches": ({"record": {"plan": {**PLAN, "batches": 21}}}, "of 21 batches"),
    "plan.batches_per_epoch": ({"record": {"plan": {**PLAN, "batches_per_epoch": 3}}}, "3 batches in a pass"),
}  # fmt: skip


def test_every_field_of_the_card_is_traced(tmp_path: Path) -> None:
    """The fields of the usage examples of each kind are included."""
    examples = tmp_path / "examples.jinja"
    examples.write_text("\n".join(kind.card_code for kind in KINDS.values()))
    assert template_fields(TEMPLATE) | template_fields(examples) == TRACED.keys()


@pytest.mark.parametrize("field", TRACED)
def test_the_card_follows(field: str, tmp_path: Path) -> None:
    changes, says = TRACED[field]
    assert says not in written(tmp_path / "m") and says in written(tmp_path / "m", **changes)


def test_the_loss_of_another_batch_is_not_on_the_card(tmp_path: Path) -> None:
    assert "on dev" not in written(tmp_path / "m", line={**LINE, "batch": 7})

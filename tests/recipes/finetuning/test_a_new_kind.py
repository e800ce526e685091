"""A new kind of task needs this file and a line in each of two tables; then all commands work with it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Linear
from torch.nn.functional import mse_loss

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks import registry, strict_reading
from data_prep.tasks.task_set import Example, TaskSet, file_hashes, need
from project import ROOT
from recipes import evaluate, generate
from recipes.config.schema import FinetuneConfig
from recipes.finetuning import heads, training
from recipes.finetuning.kind import Encoded, Encoder, Kind, KindWithHead, last_hidden
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.scoring import predict
from recipes.finetuning.sweep import load_sweep
from recipes.finetuning.task_head import read_task

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

    from recipes.finetuning.kind import Batch

DOSES = {"cyt": 0.0, "gen": 0.5, "hep": 1.0, "lip": 1.5}


@dataclass(frozen=True)
class Measured:
    """A text and its number."""

    id: str
    text: str
    number: float
    where: str

    @property
    def fault(self) -> str:
        return "" if self.text.strip() else "its text is empty"


def read_measured(folder: Path) -> TaskSet:
    """{train,dev,test}.json with lines `text`, `number`."""
    paths = {split: need(folder, f"{split}.json") for split in ("train", "dev", "test")}
    splits = {
        split: [
            Measured(f"{split}-{n}", record["text"], record["number"], where)
            for n, (where, record) in enumerate(strict_reading.json_lines(path))
        ]
        for split, path in paths.items()
    }
    return TaskSet(folder.name, "number", splits, file_hashes(folder, paths.values()))


class Number(KindWithHead):
    """A number for a text: `text <|NUMBER|>`, by a linear map with a bias, with the squared error."""

    added_tokens = ("<|NUMBER|>",)
    loss_unit = "squared units/text"
    metric = "near"
    dev_metric = "Near"
    pipeline_tag = "text-regression"
    does = "reads a number off a text"
    card_code = """\
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Model

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = GPT2Model.from_pretrained(folder).eval()
head = load_file(f"{folder}/head.safetensors")
with torch.no_grad():
    hidden = model(**tokenizer("ro myo hep<|NUMBER|>", return_tensors="pt")).last_hidden_state[0, -1]
number = (head["weight"] @ hidden + head["bias"]).item()
print(f"{number:.4f}")
"""

    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> Linear:
        return Linear(config.n_embd, 1)

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        assert isinstance(example, Measured)
        ids, room = encoder.ids(example.text), encoder.room(1, "end", example.where)
        return Encoded(((*ids[-room:], *encoder.added),), example.number, len(ids) > room)

    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        return head(last_hidden(gpt2, batch)).float()[:, 0]

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        return mse_loss(answers, batch["labels"])

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        return ((answers - batch["labels"]).abs() < 0.25).float()

    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        near = float(abs(answers.item() - right.item()) < 0.25)
        return {"numbers": [answers.item(), right.item()], "near": near}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines in the two tables, and the files of the set, in which the last word decides."""
    monkeypatch.setitem(KINDS, "number", Number())
    monkeypatch.setitem(registry.READERS, "doses", read_measured)
    draw, folder = random.Random(7), tmp_path / "data/doses"
    folder.mkdir(parents=True)
    for split, n in (("train", 64), ("dev", 10), ("test", 30)):
        words = [[*draw.choices(["ro", "myo", "neu"], k=3), draw.choice(list(DOSES))] for _ in range(n)]
        lines = [json.dumps({"text": " ".join(text), "number": DOSES[text[-1]]}) for text in words]
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("known")
def test_a_new_kind_is_trained_scored_released_and_evaluated(
    configure: Callable[..., FinetuneConfig], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = [tmp_path / "doses-1", tmp_path / "doses-2"]
    settings = ["task=doses", "max_duration=15ep", "eval_interval=30ba"]
    assert training.finetune(configure("ner", *settings, f"run_dir={runs[0]}", "seed=1"))
    assert training.finetune(configure("ner", *settings, f"run_dir={runs[1]}", "seed=2"))
    assert not training.finetune(configure("ner", *settings, f"run_dir={runs[0]}", "seed=1")), "it is finished"
    run = runs[0]

    # training: the loss in its unit, the metric of dev
    assert re.search(r"batch +1/60 \| loss +[\d.]+ squared units/text \|", capsys.readouterr().out)
    assert json.loads((run / "run.json").read_text())["loss_unit"] == "squared units/text"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    on_dev = [line["metrics/eval/Near"] for line in logged if "metrics/eval/Near" in line]
    losses = [line["loss/train/total"] for line in logged if "loss/train/total" in line]
    assert losses[-1] < losses[0] / 20

    # scores of predictions by the released folder
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert scores["test"].keys() == {"near"} and scores["test"]["near"]["value"] > 0.9, "held-out texts"
    assert scores["dev"]["near"]["value"] == pytest.approx(on_dev[-1])
    lines = [json.loads(line) for line in (run / "predictions-test.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and abs(lines[0]["numbers"][0] - lines[0]["numbers"][1]) < 0.25
    assert load_file(run / "model/head.safetensors").keys() == {"weight", "bias"}
    tuned, tokenizer = heads.load(run / "model")

    # the card, whose code prints the model's answer
    card = (run / "model/README.md").read_text()
    assert "pipeline_tag: text-regression" in card and ": it reads a number off a text." in card
    assert f"| on dev | Near {on_dev[-1]:.4f}" in card and "| task | doses, of kind number |" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run / "model")
    ran: dict[str, Any] = {}
    exec(snippet, ran)
    (record,) = predict(
        tuned, tokenizer, [Measured("1", "ro myo hep", 1.0, "")], FinetuneConfig(device_eval_batch_size=4)
    )
    assert ran["number"] == pytest.approx(record["numbers"][0], rel=1e-4)

    # evaluate.py: the model on the set, the mean over seeds, and what is refused
    command = ["--tasks", "doses", "--data", str(tmp_path / "data")]
    evaluate.main([*command, "--model", str(run / "model"), "--out", str(tmp_path / "scores")])
    percent = 100 * scores["test"]["near"]["value"]
    assert f"| doses | doses-1 | fine-tuned on doses, near | {percent:.1f} [" in capsys.readouterr().out
    evaluate.main(["--runs", *map(str, runs), "--out", str(tmp_path / "seeds")])
    assert "| doses | doses-1 | fine-tuned, near, mean of 2 seeds ± " in capsys.readouterr().out
    with pytest.raises(
        BadInput, match="doses is of kind 'number', on which a base model cannot be scored; fine-tune it"
    ):
        evaluate.main([*command, "--model", str(base), "--out", str(tmp_path / "other")])
    with pytest.raises(
        BadInput, match=r"was fine-tuned on doses \(number\): it reads a number off a text and writes no"
    ):
        generate.main(["--model", str(run / "model"), "--prompt", "x"])


@pytest.mark.usefixtures("known")
def test_a_sweep_compares_by_the_new_kinds_metric(base: Path, tmp_path: Path) -> None:
    grid = {"base": str(ROOT / "yamls/finetune/ner.yaml"), "grid": {"seed": [1, 2]}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(grid))
    settings = [f"model={base}", f"data={tmp_path / 'data'}", f"run_dir={tmp_path / 'sweep'}", "preset=cpu"]
    sweep = load_sweep(tmp_path / "sweep.yaml", ["task=doses", *settings, "seq_len=64", "global_train_batch_size=16"])
    assert sweep.metric == "near"


@pytest.mark.usefixtures("known")
def test_a_fault_of_a_new_kinds_example_is_refused_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "data/doses/dev.json"
    path.write_text(path.read_text() + '{"text": " ", "number": 1.0}\n')
    with pytest.raises(BadInput, match=r"dev\.json, line 11 \(dev-10\): its text is empty"):
        registry.load("doses", tmp_path / "data")


def test_a_model_of_a_kind_that_is_not_known_is_refused(base: Path) -> None:
    (base / "task.json").write_text('{"task": "doses", "kind": "number", "labels": [], "seq_len": 8}')
    try:
        with pytest.raises(BadInput, match="kind = 'number' is not what"):
            read_task(base)
    finally:
        (base / "task.json").unlink()


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_all_that_is_asked_of_it(name: str) -> None:
    kind = KINDS[name]
    assert not [attribute for attribute in Kind.__annotations__ if not hasattr(kind, attribute)]
    assert bool(kind.target_start) == (not isinstance(kind, KindWithHead))

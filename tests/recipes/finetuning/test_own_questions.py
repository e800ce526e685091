"""Own questions, from a CSV to scores: fine-tuned, asked of the base model, searched for in a corpus."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_head import head_of
from recipes import evaluate
from recipes.config.schema import FinetuneConfig
from recipes.finetuning import training
from recipes.finetuning.kinds import KINDS

LABELS = ("mild", "moderate", "severe")


@pytest.mark.parametrize("kind", ["verdict", "choice"])
def test_from_a_csv_to_scores(
    kind: str, configure: Callable[..., FinetuneConfig], base: Path, tiny_corpus: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "data/mine").mkdir(parents=True)
    with (tmp_path / "data/mine/questions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "context", "answer", *(["options"] if kind == "choice" else [])])
        for n in range(200):
            options = [" | ".join(LABELS)] if kind == "choice" else []
            rows.writerow([f"how is it, {n}?", f"the cytoma of {n}, so to say", LABELS[n % 3], *options])
    yaml = "pubmedqa" if kind == "verdict" else "medqa"
    assert training.finetune(configure(yaml, "task=mine", "max_duration=2ba", "global_train_batch_size=8"))
    assert "80 / 10 / 10 by a hash" in capsys.readouterr().out
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["scores"]["test"]["acc"]["n"] > 10
    assert json.loads((tmp_path / "run/model/task.json").read_text())["kind"] == kind
    assert head_of(tmp_path / "run/model")["pipeline_tag"] == KINDS[kind].pipeline_tag
    asked = ["--tasks", "mine", "--data", str(tmp_path / "data")]
    for name, model, more in (
        ("head", tmp_path / "run/model", []),
        ("base", base, ["--shots", "1", "--limit", "5", "--corpus", str(tiny_corpus)]),
    ):
        evaluate.main(["--model", str(model), *asked, "--out", str(tmp_path / name), *more])
        task = json.loads((tmp_path / name / "results.json").read_text())["tasks"]["mine"]
        assert set(task["forms"]) == (
            {"head"} if name == "head" else {"option", *(["letter"] if kind == "choice" else [])}
        )
    assert task["leaks"]["questions"] > 10

"""Every column of the results tables depends on something in the scores; a new one fails until its cause is listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data_prep.tasks.task_set import Question, TaskSet
from recipes.evaluation import evaluate_model
from recipes.evaluation.answers import Form
from recipes.evaluation.contamination import Leaks
from recipes.evaluation.evaluate_model import _nothing_yet, _record, table
from recipes.evaluation.over_seeds import evaluate_runs
from recipes.finetuning.sweep_results import to_markdown as sweep_to_markdown
from recipes.scoring.results_table import HEADER, Row, to_html, to_markdown

COLUMNS = tuple(column.name for column in fields(Row))
Case = dict[str, Any]
Change = Callable[[Case], object]


def rows_of(case: Case, folder: Path) -> list[Row]:
    """The table of one set, made from answers."""
    asked = [
        Question(f"q{n}", f"Question {n}?", ("a", "b", "c"), 0 if n < case["first"] else 1, "", subject=case["subject"])
        for n in range(case["n"])
    ]
    task = TaskSet(case["task"], "choice", {"test": asked}, {})
    leaked = {f"{case['task']}/q0": {"words": "", "documents": []}} if case["leaks"] else {}
    leaks = Leaks({}, leaked, frozenset(), frozenset(), 0, 1)
    result = _nothing_yet(task, leaks if case["leaks"] is not None else None, case["limit"])
    records = [
        {"id": q.id, "subject": q.subject, "acc": float(n < case["right"]), "acc_norm": float(n < case["right_norm"])}
        for n, q in enumerate(asked[: case["limit"]])
    ]
    _record(result, task.name, "option", Form(case["how"], records, case["cut"]), folder)
    return table(case["model"], [task], {task.name: result})


BASE: Case = {"task": "medqa", "model": "mine", "how": "0-shot, option", "n": 20, "first": 12, "right": 9,
              "right_norm": 8, "cut": 0, "limit": None, "subject": "", "leaks": None}  # fmt: skip
# For each column, a change of its cause, and the resulting table.
CAUSES: dict[str, list[tuple[Case, str]]] = {
    "task": [({"task": "medmcqa"}, "| medmcqa |"), ({"subject": "anatomy"}, "| medqa: anatomy |"),
             ({"leaks": True}, "| medqa: clean |")],
    "model": [({"model": "a|b"}, "| a\\|b |")],
    "how": [({"how": "5-shot, option"}, "| 5-shot, option |"), ({"cut": 3}, "| 0-shot, option, 3 of 20 cut |"),
            ({"limit": 9}, "| 0-shot, option, a part, 9 of 20 |")],
    "score": [({"right_norm": 2}, "| 0-shot, option, by length | 10.0 ["),
              ({"right": 20}, "| 100.0 [83.9, 100.0] Wilson, n = 20 |"), ({"first": 20}, "| baseline | 100.0 |")],
    "published": [({"task": "own"}, "")],
}  # fmt: skip


def test_every_column_of_the_scores_follows_its_cause(tmp_path: Path) -> None:
    assert CAUSES.keys() == set(COLUMNS) and len(HEADER) == len(COLUMNS) - 1
    before = rows_of(BASE, tmp_path)
    assert rows_of(BASE, tmp_path) == before
    for column, causes in CAUSES.items():
        for change, says in causes:
            after = rows_of({**BASE, **change}, tmp_path)
            assert {getattr(row, column) for row in after} != {getattr(row, column) for row in before}, (column, change)
            if says:
                assert says in to_markdown(after) and says not in to_markdown(before), (column, change)


def test_both_forms_of_a_table_show_all_columns() -> None:
    row = Row("<task>", "mod|el", "how", "12.5", False)
    page, text = (
        to_html([row, Row("t", "m", "h", "s", True)], "Scores"),
        to_markdown([row, Row("t", "m", "h", "s", True)]),
    )
    assert "<tr><td>&lt;task&gt;<td>mod|el<td>how<td>12.5</tr><tr class=published><td>t<td>m<td>h<td>s</tr>" in page
    assert "| <task> | mod\\|el | how | 12.5 |\n| *t* | *m* | *h* | *s* |" in text
    for name in HEADER:
        assert name in page and name in text


def write_run(folder: Path, case: Case, seed: int) -> None:
    folder.mkdir(parents=True)
    record = {"starts": [], "finished": True, "identity": {"task": {"name": case["task"]}, "seed": seed}}
    records = [
        {
            "id": f"q{n}",
            "cut": n < case["cut"],
            "answer": int(n >= case["first"]),
            "acc": float(n < case["right"] + seed),
        }
        for n in range(case["n"])
    ]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "scores.json").write_text(json.dumps({"task": case["task"], "seed": seed, "scores": {"test": {}}}))
    (folder / "predictions-test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))


SEEDS: Case = {"task": "medqa", "n": 20, "first": 12, "right": 9, "cut": 0, "seeds": (1, 2), "name": "mine"}
OVER_SEEDS: dict[str, list[tuple[Case, str]]] = {
    "task": [({"task": "own"}, "| own |")],
    "model": [({"name": "other"}, "| other |")],
    "how": [({"cut": 4}, "| fine-tuned, acc, mean of 2 seeds ± 3.5, 4 of 20 cut |"), ({"seeds": (1,)}, "acc, seed 1 |"),
            ({"seeds": (1, 4)}, "mean of 2 seeds ± 10.6 |")],
    "score": [({"right": 18}, "| 97.5 ["), ({"seeds": (5,)}, "| 70.0 [48.1, 85.5] Wilson, n = 20 |"),
              ({"first": 15}, "| baseline | 75.0 |")],
    "published": [({"task": "own"}, "| own |")],
}  # fmt: skip


def test_every_column_of_the_table_over_seeds_follows_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.evaluation.over_seeds.environment", lambda _: {})
    monkeypatch.setattr("recipes.evaluation.over_seeds.library_versions", lambda *_: {})

    def table_of(case: Case, name: str) -> str:
        runs = [tmp_path / name / f"seed-{seed}" for seed in case["seeds"]]
        for run, seed in zip(runs, case["seeds"], strict=True):
            write_run(run, case, seed)
        evaluate_runs(runs, tmp_path / name / "out", case["name"])
        return (tmp_path / name / "out/table.md").read_text(encoding="utf-8")

    assert OVER_SEEDS.keys() == set(COLUMNS)
    before = table_of(SEEDS, "before")
    for column, causes in OVER_SEEDS.items():
        for number, (change, says) in enumerate(causes):
            after = table_of({**SEEDS, **change}, f"{column}{number}")
            assert says in after and says not in before, (column, change)


SWEEP: dict[str, Any] = {
    "metric": "acc", "compared": 2, "left_out": [],
    "configurations": [
        {"configuration": "lr=1", "runs": [], "dev": [0.5, 0.6], "mean": 0.55, "standard_deviation": 0.07},
        {"configuration": "lr=2", "runs": [], "dev": [0.4, 0.5], "mean": 0.45, "standard_deviation": 0.07},
    ],
}  # fmt: skip


def test_every_field_of_a_sweeps_table_follows_its_cause() -> None:
    """The fields that the table reads of the results, as a proxy sees them; each must have a listed cause."""

    class Seen(dict[str, Any]):
        read: set[str] = set()  # noqa: RUF012

        def __getitem__(self, key: str) -> Any:
            Seen.read.add(key)
            return super().__getitem__(key)

    def text(**changes: Any) -> str:
        results = json.loads(json.dumps(SWEEP), object_hook=Seen)
        for key, value in changes.items():
            if key in results:
                results[key] = value
            else:
                results["configurations"][1][key] = value
        return sweep_to_markdown(results, "TEST TABLE")

    before = text()
    assert before.endswith("TEST TABLE") and "| lr=1 | 55.0 ± 7.0 |" in before
    causes: dict[str, tuple[Any, str]] = {
        "metric": ("f1", "| f1 on dev, %, mean of 2 seeds"),
        "compared": (7, "The best of 7 configurations"),
        "left_out": (["a", "b"], "Left out because they failed: a, b."),
        "configuration": ("lr=3", "| lr=3 | 45.0"),
        "mean": (0.55, "1 more have the same score on dev"),
        "standard_deviation": (0.01, "| lr=2 | 45.0 ± 1.0 |"),
        "dev": ([1.0, 1.0], ""),
        "configurations": (SWEEP["configurations"][:1], ""),
    }
    for field, (value, says) in causes.items():
        after = text(**{field: value})
        assert says in after and (not says or says not in before), field
    assert Seen.read == causes.keys()
    assert text(configurations=[{**SWEEP["configurations"][0], "dev": [0.5]}]) != before
    assert not re.search(r"lr=2 \|", text(configurations=SWEEP["configurations"][:1]))


def test_the_results_are_those_of_the_table(tmp_path: Path) -> None:
    """`summarise` returns exactly the groups that have rows in the table."""
    records = [{"id": f"{n}", "subject": "ab"[n % 2], "acc": 1.0} for n in range(6)]
    assert list(evaluate_model.summarise(records, {"0"})) == ["all", "a", "b", "clean"]
    assert evaluate_model.summarise(records, {"0"})["clean"]["acc"]["n"] == 5

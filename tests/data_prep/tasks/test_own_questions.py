"""Own questions in both formats, of both kinds, in one file or three; a message about an error names the column."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from data_prep.tasks.description import describe
from data_prep.tasks.own_questions import EXAMPLES
from data_prep.tasks.registry import load
from data_prep.tasks.task_set import Question
from project import ROOT

Record = dict[str, Any]


def write(path: Path, records: list[Record], names: list[str] | None = None) -> None:
    """Write JSON lines or CSV, according to the ending of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return
    target = io.StringIO(newline="")
    rows = csv.DictWriter(target, names or list(records[0]))
    rows.writeheader()
    rows.writerows({**r, **({"options": " | ".join(r["options"])} if "options" in r else {})} for r in records)
    path.write_bytes(b"\xef\xbb\xbf" + target.getvalue().encode())  # as spreadsheets save it


def verdicts(n: int, labels: tuple[str, ...] = ("no", "yes", "maybe")) -> list[Record]:
    return [
        {
            "context": f'Of {n} mice, "most"\nslept.',
            "question": f"Does {n} help, so to say?",
            "answer": labels[n % len(labels)],
        }
        for n in range(n)
    ]


def choices(n: int) -> list[Record]:
    return [{"question": f"Which is {n}?", "options": [f"x{n}", f"y, {n}", "z"], "answer": f"y, {n}"} for n in range(n)]


def asked(question: Question) -> tuple[Any, ...]:
    return question.question, question.context, question.options, question.options[question.answer]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_that_are_printed_are_read(name: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / "mine" / f"{split}{Path(name).suffix}"
        path.parent.mkdir(exist_ok=True)
        second = EXAMPLES[name].splitlines()[-1].replace("maybe", "yes").replace("7", "8")
        path.write_text(EXAMPLES[name].replace('"7"', f'"{split}"') + second.replace('"8"', f'"{split}2"') + "\n")
    task = load("mine", tmp_path)
    assert task.kind == name.split(".")[0] and {split: len(q) for split, q in task.splits.items()} == {
        "train": 2,
        "test": 2,
    }
    answers = [question.options[question.answer] for question in task.questions("train")]
    assert answers == (["Aspirin"] * 2 if task.kind == "choice" else ["maybe", "yes"])


def test_describe_prints_the_forms_and_needs_no_configuration() -> None:
    command = [sys.executable, "recipes/finetune.py", "--describe"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(line in printed for text in EXAMPLES.values() for line in text.splitlines())
    assert "phrases_no_exclude_" in printed and "`context`, `options`, `id`" in printed


@pytest.mark.parametrize("records", [verdicts(9), choices(9)], ids=["verdict", "choice"])
def test_csv_is_read_as_json_lines_are(records: list[Record], tmp_path: Path) -> None:
    tasks = []
    for ending in ("jsonl", "csv"):
        for split in ("train", "dev", "test"):
            write(tmp_path / ending / f"mine/{split}.{ending}", records)
        tasks.append(load("mine", tmp_path / ending))
    one, other = tasks
    assert one.kind == other.kind and [*one.splits] == [*other.splits] == ["train", "dev", "test"]
    for split in one.splits:
        assert [*map(asked, one.questions(split))] == [*map(asked, other.questions(split))]
        assert [q.options[q.answer] for q in one.questions(split)] == [record["answer"] for record in records]


def test_one_file_is_split_by_what_is_asked(tmp_path: Path) -> None:
    """Neither the order of the lines nor a second copy moves a question to another split."""
    records = verdicts(200)
    write(tmp_path / "a/mine/questions.csv", records)
    random.Random(0).shuffle(records)
    write(tmp_path / "b/mine/export.csv", [*records, records[0], records[1]])
    one, other = load("mine", tmp_path / "a"), load("mine", tmp_path / "b")
    for split, share in (("train", 0.8), ("dev", 0.1), ("test", 0.1)):
        assert {*map(asked, one.questions(split))} == {*map(asked, other.questions(split))}
        assert share / 2 < len(one.splits[split]) / 200 < 2 * share
    assert sum(len(questions) for questions in other.splits.values()) == 202
    assert "80 / 10 / 10 by a hash" in describe(one) and "more than one split" not in describe(other)
    write(tmp_path / "few/mine/questions.csv", records[:3])
    with pytest.raises(
        BadInput, match=r"questions\.csv: its 3 questions are too few .* empty; write files of your own"
    ):
        load("mine", tmp_path / "few")


def test_labels_are_those_that_occur_in_an_order_that_heads_share(tmp_path: Path) -> None:
    for labels, ordered in (
        (("no", "yes", "maybe"), ("yes", "no", "maybe")),  # the order of PubMedQA, so that its head can be used
        (("yes", "no"), ("yes", "no")),
        (tuple("fedcba"), tuple("abcdef")),
        (tuple(f"grade {n:02}" for n in range(20)), tuple(f"grade {n:02}" for n in range(20))),
    ):
        folder = tmp_path / str(len(labels))
        write(folder / "mine/train.jsonl", verdicts(60, labels))
        write(folder / "mine/test.jsonl", verdicts(60, labels))
        assert {question.options for question in load("mine", folder).questions("test")} == {ordered}


def test_missing_and_rare_labels_are_said(tmp_path: Path) -> None:
    write(tmp_path / "mine/train.jsonl", [*verdicts(3, ("no",)), *verdicts(30, ("yes",))])
    write(tmp_path / "mine/test.jsonl", verdicts(9))
    printed = describe(load("mine", tmp_path))
    assert "train: no answer is 'maybe'" in printed and "train: always answering 'yes' is right in 90.9%" in printed
    assert "test: no answer" not in printed and "test: always" not in printed


def test_other_columns_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"mine/{split}.csv", [{**record, "url": "http://a"} for record in verdicts(9)])
    assert "ignored columns: url" in describe(load("mine", tmp_path))


ONE, TWO = verdicts(2)
CHOICE = choices(1)[0]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{**ONE, "answer": None}], r"line 1: the column 'answer' is null"),
        ([{"question": "q?", "label": "yes"}], r"line 1: no column 'answer'; there are question, label"),
        ([{"Question": "q?", "answer": "yes"}], r"line 1: no column 'question'; 'Question' is there: write it so"),
        ([{"text": "q?"}], r"no column 'question'; there are text \(questions have .*; pairs, source and target"),
        ([ONE, {**TWO, "answer": " "}], r"line 2: the column 'answer' is empty"),
        ([ONE, {**TWO, "answer": True}], r"line 2: answer is True, not a text"),
        ([ONE, {**TWO, "context": 7}], r"line 2: context is 7, not a text"),
        ([ONE, {**TWO, "answer": "NO"}], r"the answers '(NO|no)' and '(NO|no)' differ in case"),
        ([ONE, CHOICE], r"line 1: it has no options, but .*line 2 has"),
        ([{**CHOICE, "answer": "w"}], r"'answer' is 'w', which is no option's text or letter; .* x0, y, 0, z"),
        ([{**CHOICE, "options": ["B", "A"], "answer": "A"}], r"is the text of one option and the letter of another"),
        ([{**CHOICE, "options": ["a", 3]}], r"options, entry 2 is 3, not a text"),
        ([{**CHOICE, "options": ["a"], "answer": "a"}], r"1 options; a question has 2"),
        ([{**CHOICE, "options": [*"abcdefghi"], "answer": "a"}], r"9 options; a question has 2 to 8"),
        ([{**ONE, "id": "1"}, {**TWO, "id": "1"}], r"this id is also that of train"),
        ([{**ONE, "question": ""}], r"the question is empty"),
        ([{**ONE, "answer": f"an answer {n}"} for n in range(65)], r"65 different answers .* source and target"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_line_and_column(records: list[Record], says: str, tmp_path: Path) -> None:
    write(tmp_path / "mine/train.jsonl", records)
    write(tmp_path / "mine/dev.jsonl", [{**records[-1], "id": "d"}])
    with pytest.raises(BadInput, match=says) as caught:
        load("mine", tmp_path)
    assert ".py" not in str(caught.value).replace("recipes/finetune.py --describe", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question;answer\nq?;yes\n", r"line 1: columns are separated by ';'; save it with commas"),
        ("question\tanswer\nq?\tyes\n", r"line 1: columns are separated by"),
        ("question,answer\nq?, well,yes\n", r"line 2: 3 columns, but line 1 has 2; put a text with commas in"),
        ('question,answer\nq?,"yes\n', r"not CSV \(unexpected end of data\)"),
        ("question,answer,answer\nq?,yes,no\n", r"line 1: the column 'answer' occurs twice"),
        ("question,answer\n", r"no question was found"),
        ("question,options,answer\nq?,[a,yes\n", r"line 2: .*options' begins with \[ and is no JSON list"),
        ("question,answer\nq?,\n", r"line 2: no column 'answer'"),
    ],
)
def test_a_csv_that_cannot_be_read(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/questions.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"questions\.csv.*{says}|{says}"):
        load("mine", tmp_path)


def test_files_that_do_not_say_which_split_they_are(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path / "mine" / name, verdicts(9))
    with pytest.raises(BadInput, match=r"holds a\.csv, b\.csv; name them train, dev and test, or leave one"):
        load("mine", tmp_path)
    for ending in ("csv", "jsonl"):
        write(tmp_path / f"other/test.{ending}", verdicts(9))
    with pytest.raises(BadInput, match="holds test twice"):
        load("other", tmp_path)
    with pytest.raises(BadInput, match=r"nowhere does not exist; .*--describe"):
        load("nowhere", tmp_path)

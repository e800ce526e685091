"""Whatever a file of a question set contains, the set is read, or refused with a message."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hunting import hunt, hunt_on
from mutations import Draw, mutated, to_json
from oracle import problems


def lines(*records: Any) -> bytes:
    return b"".join(to_json(record) + b"\n" for record in records)


@functools.cache
def workbook() -> bytes:  # cached, because a workbook contains the time at which it was made
    from openpyxl import Workbook

    book, target = Workbook(), io.BytesIO()
    sheet = book.worksheets[0]
    sheet.append(["File", "CHQ", "Summary"])
    for number in range(30):
        sheet.append([f"file {number}", f"what of the cytoma {number}?", f"cytoma {number}"])
    book.save(target)
    return target.getvalue()


def workbook_of_600_mb() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook())) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("sheet1.xml"):
                content = content.replace(b"<sheetData>", b"<sheetData>" + b"<row><c/></row>" * (40 << 20))
            new.writestr(name, content)
    return target.getvalue()


PHRASES = [
    {"question": f"q {n}?", "answer": "a", "options": {"A": "a", "B": f"b {n}"}, "answer_idx": "A"} for n in range(4)
]
MCQA = [
    {"question": f"q {n}?", "cop": 1, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "id": f"m{n}"} for n in range(4)
]
ABSTRACTS = {
    str(n): {"QUESTION": f"q {n}?", "CONTEXTS": ["one", "two"], "final_decision": "yes", "LONG_ANSWER": "so"}
    for n in range(1, 7)
}
YES_NO = {
    "questions": [
        {
            **{"type": "yesno", "id": "b", "body": "is it?", "exact_answer": "yes"},
            **{"snippets": [{"text": "it is", "document": "http://www.ncbi.nlm.nih.gov/pubmed/17"}], "documents": []},
        }
    ]
}


def of_abstracts(*numbers: int) -> bytes:
    return to_json({str(n): ABSTRACTS[str(n)] for n in numbers})


# name of the set -> its files in the folder of that name
SETS: dict[str, dict[str, Callable[[], bytes]]] = {
    "medqa": {
        f"phrases_no_exclude_{split}.jsonl": lambda split=split: lines(*({**p, "question": split} for p in PHRASES))
        for split in ("train", "dev", "test")
    },
    "medmcqa": {"dev.json": lambda: lines(*MCQA)},
    "pubmedqa": {
        "ori_pqal.json": lambda: to_json(ABSTRACTS),
        "test_ground_truth.json": lambda: to_json({"1": "yes", "2": "yes"}),
        "pqal_fold0/train_set.json": lambda: of_abstracts(3, 4, 5),
        "pqal_fold0/dev_set.json": lambda: of_abstracts(6),
    },
    "bioasq": {
        "b_train.json": lambda: to_json({"questions": [{**YES_NO["questions"][0], "id": f"t{n}"} for n in range(40)]}),
        "b_golden.json": lambda: to_json(YES_NO),
    },
    "mmlu": {"anatomy_test.csv": lambda: b'"what, then?",a,b,c,d,A\nwhat else?,a,b,c,d,D\n'},
    "meqsum": {"MeQSum.xlsx": workbook},
    "own-pairs": {"test.jsonl": lambda: lines(*({"source": f"s {n}", "target": f"t {n}"} for n in range(4)))},
    "own-choice": {
        "test.jsonl": lambda: lines(*({"question": f"q {n}?", "options": ["a", "b"], "answer": "B"} for n in range(4)))
    },
    "own-verdict": {"test.csv": lambda: b'context,question,answer\r\n"so, it is",is it?,yes\r\nno,is it so?,no\r\n'},
    "own-tags": {
        f"{split}.tsv": lambda split=split: f"{split}\tO\nmyo\tB-X\noma\tI-X\n\nno\tO\n".encode()
        for split in ("train", "test")
    },
}


def command(name: str) -> tuple[str, str]:
    return "-c", (
        "from pathlib import Path\n"
        "from data_prep.common.errors import run\n"
        "from data_prep.tasks.description import describe\n"
        "from data_prep.tasks.registry import load\n"
        f"run(lambda: print(describe(load({name!r}, Path('data')))))"
    )


def found_in(name: str, folder: Path) -> Callable[[Draw], list[str]]:
    def find(draw: Draw) -> list[str]:
        files = {f"data/{name}/{path}": make() for path, make in SETS[name].items()}
        chosen = draw(st.sampled_from(sorted(files)))
        files[chosen] = mutated(draw, chosen, files[chosen])
        wrong = problems(command(name), files, folder / "run")
        return [f"{chosen}: {files[chosen][:1000]!r}", *wrong] if wrong else []

    return find


@pytest.mark.parametrize("name", SETS)
def test_honest_sets_are_read(name: str, tmp_path: Path) -> None:
    files = {f"data/{name}/{path}": make() for path, make in SETS[name].items()}
    assert not problems(command(name), files, tmp_path / "run", codes=(0,))


@pytest.mark.parametrize("name", SETS)
def test_whatever_is_in_a_set(name: str, tmp_path: Path) -> None:
    hunt(found_in(name, tmp_path), examples=8)


@pytest.mark.chaos
def test_whatever_is_in_a_set_for_ten_minutes(tmp_path: Path, outcome: Any) -> None:
    outcome("question sets: anything wrong", hunt_on({name: found_in(name, tmp_path) for name in SETS}), "nothing")


@pytest.mark.chaos
def test_a_workbook_that_unpacks_to_600_mb(tmp_path: Path) -> None:
    files = {"data/meqsum/MeQSum.xlsx": workbook_of_600_mb()}
    assert not problems(command("meqsum"), files, tmp_path / "run", codes=(2,))

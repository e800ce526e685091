"""Read the user's own questions, as JSON lines or CSV: `question`, `answer` and optional `context`, `options`, `id`.

With options, the set is of the kind `choice`: an answer is the text or the letter of an option. Without options, the
set is of the kind `verdict`: its labels are the answers that occur. Train, dev and test are three files, or a hash
splits a single file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks import strict_reading
from data_prep.tasks.classification import BIOASQ_LABELS, PUBMEDQA_LABELS
from data_prep.tasks.task_set import LETTERS, MOST_OPTIONS, Question, TaskSet, file_hashes, split_by_hash

SPLITS = ("train", "dev", "test")
ENDINGS = (".jsonl", ".csv")
NEEDED, OPTIONAL = ("question", "answer"), ("context", "options", "id")
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
EXAMPLES = {  # file name -> its first one or two lines, for each format
    "choice.jsonl": '{"question": "Which thins the blood?", "options": ["Aspirin", "Insulin"], "answer": "A"}\n',
    "choice.csv": "question,options,answer\nWhich thins the blood?,Aspirin | Insulin,Aspirin\n",
    "verdict.jsonl": '{"id": "7", "context": "9 of 18 slept.", "question": "Does it help?", "answer": "maybe"}\n',
    "verdict.csv": 'context,question,answer\n"9 of 18 slept, 9 did not.",Does it help?,maybe\n',
}


@dataclass(frozen=True)
class Record:
    """A question as read from its file; `options` is empty if the question has none."""

    where: str
    id: str
    question: str
    answer: str
    context: str
    options: tuple[str, ...]


def find(folder: Path) -> dict[str, Path]:
    """Find the files of the user's own set, by split; a single file has the key `all` and is split by a hash.

    Raises:
        BadInput: a split has two files, or there are several files and none is named like a split.
    """
    files: dict[str, Path] = {}
    paths = sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file())
    for path in paths:
        if path.stem not in SPLITS:
            continue
        if path.stem in files:
            raise BadInput(f"{folder} holds {path.stem} twice: {files[path.stem]}, {path}; keep one")
        files[path.stem] = path
    if len(files) > 1 or "test" in files:
        return {split: files[split] for split in SPLITS if split in files}
    if len(paths) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in paths)
        raise BadInput(f"{folder} holds {names}; name them train, dev and test, or leave one, which is split by a hash")
    return {"all": paths[0]} if paths else {}


def columns(path: Path) -> tuple[str, ...]:
    """The column names of a file's first record; empty if the file has no record.

    Raises:
        BadInput: the file cannot be read.
    """
    return tuple(next(_records(path), ("", {}))[1])


def read(folder: Path, files: Mapping[str, Path]) -> TaskSet:
    """Read a set.

    Args:
        folder: folder of the set; its name is the set's name.
        files: files by split, from `find`.

    Raises:
        BadInput: a column is missing or wrong in a record, an answer is not among its options, only some records have
            options, or there are more labels than `MOST_OPTIONS`.
    """
    read = {name: [_read(*record) for record in _records(path)] for name, path in files.items()}
    records = [record for of_file in read.values() for record in of_file]
    if not records:
        raise BadInput(f"{', '.join(map(str, files.values()))}: no question was found")
    with_options = [bool(record.options) for record in records]
    if len(set(with_options)) > 1:
        one, other = (records[with_options.index(value)].where for value in (True, False))
        raise BadInput(f"{other}: it has no options, but {one} has; give options to all questions, or to none")
    kind = "choice" if any(with_options) else "verdict"
    labels = () if kind == "choice" else _labels(records)
    splits: dict[str, list[Question]] = {name: [] for name in read if name != "all"}
    for name, of_file in read.items():
        for number, record in enumerate(of_file):
            split = split_by_hash(_content(record), SHARES) if name == "all" else name
            id_ = record.id or f"{name}-{number:05}"
            options = record.options or labels
            answer = _answer(record, options)
            question = Question(id_, record.question, options, answer, record.where, record.context)
            splits.setdefault(split, []).append(question)
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    notes = []
    if "all" in files:
        if len(ordered) < len(SPLITS):
            raise BadInput(
                f"{files['all']}: its {len(records)} questions are too few to be split by a hash, which leaves "
                f"{' and '.join(sorted({*SPLITS} - {*ordered}))} empty; write files of your own for train, dev and test"
            )
        notes.append("80 / 10 / 10 by a hash of question, context and options: the set is one file")
    if unread := Counter(name for path in files.values() for name in columns(path) if name not in NEEDED + OPTIONAL):
        notes.append(f"ignored columns: {', '.join(unread)}")
    scored = "test" if "test" in ordered or "dev" not in ordered else "dev"
    return TaskSet(folder.name, kind, ordered, file_hashes(folder, files.values()), scored, "; ".join(notes))


def _records(path: Path) -> Iterator[tuple[str, JsonDict]]:
    return strict_reading.json_lines(path) if path.suffix == ".jsonl" else _rows(path)


def _rows(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The rows of a CSV file as mappings from the names in the first row; empty cells are omitted."""
    rows = csv.reader(io.StringIO(strict_reading.text(path), newline=""), strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise BadInput(f"{path}, line 1: the column {twice[0]!r} occurs twice")
        if len(names) == 1 and (separator := next((s for s in ";\t" if s in names[0]), "")):
            raise BadInput(f"{path}, line 1: columns are separated by {separator!r}; save it with commas")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                raise BadInput(
                    f'{where}: {len(row)} columns, but line 1 has {len(names)}; put a text with commas in "…"'
                )
            yield where, {name: cell for name, cell in zip(names, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise BadInput(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _read(where: str, record: JsonDict) -> Record:
    for name in NEEDED:
        if name in record and record[name] is None:
            raise BadInput(f"{where}: the column {name!r} is null")
        if name not in record:
            near = [other for other in record if other.strip().lower() == name]
            there = f"{near[0]!r} is there: write it so" if near else f"there are {', '.join(record) or 'none'}"
            raise BadInput(
                f"{where}: no column {name!r}; {there} (questions have question and answer; pairs, source and target)"
            )
    question, answer = (strict_reading.field(record, name, where).strip() for name in NEEDED)
    if not answer:
        raise BadInput(f"{where}: the column 'answer' is empty")
    context = strict_reading.field(record, "context", where) if record.get("context") is not None else ""
    id_ = strict_reading.id_of(record, "", where) if record.get("id") is not None else ""
    return Record(where, id_, question, answer, context, _options(record.get("options"), where))


def _options(value: Any, where: str) -> tuple[str, ...]:
    """Parse the options: a list, or in a CSV cell a text with `|` between the options, or a JSON list."""
    if value is None:
        return ()
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return tuple(option.strip() for option in value.split("|"))
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: the column 'options' begins with [ and is no JSON list ({error.msg})") from None
    return tuple(option.strip() for option in strict_reading.items({"options": value}, "options", where))


def _answer(record: Record, options: Sequence[str]) -> int:
    """The index of the option that the answer names, by its text or by its letter."""
    by_text = {options.index(record.answer)} if record.answer in options else set()
    letter = LETTERS.find(record.answer) if len(record.answer) == 1 and record.options else -1
    meant = by_text | ({letter} if 0 <= letter < len(options) else set())
    if len(meant) == 1:
        return meant.pop()
    problem = "is the text of one option and the letter of another" if meant else "is no option's text or letter"
    answer, listed = record.answer[:80], ", ".join(options)[:200]
    raise BadInput(f"{record.where}: the column 'answer' is {answer!r}, which {problem}; the options are {listed}")


def _labels(records: Sequence[Record]) -> tuple[str, ...]:
    """The answers that occur, sorted. Labels of PubMedQA and BioASQ keep their order there, so that heads fit both."""
    labels = sorted({record.answer for record in records})
    by_fold = {label.casefold(): label for label in labels}
    for record in records:
        if by_fold[record.answer.casefold()] != record.answer:
            other = by_fold[record.answer.casefold()]
            raise BadInput(f"{record.where}: the answers {record.answer!r} and {other!r} differ in case; write one")
    if len(labels) > MOST_OPTIONS:
        raise BadInput(
            f"{records[0].where}: {len(labels)} different answers in a set without options, but a set has at most "
            f"{MOST_OPTIONS} labels; give each question its options, or name the columns source and target to train "
            "the model to write the answers"
        )
    known = next((known for known in (PUBMEDQA_LABELS, BIOASQ_LABELS) if sorted(known) == labels), None)
    return known or tuple(labels)


def _content(record: Record) -> str:
    """A hash of a question's content, which decides its split; so position and repetition do not matter."""
    return hashlib.sha256("\0".join((record.question, record.context, *record.options)).encode()).hexdigest()

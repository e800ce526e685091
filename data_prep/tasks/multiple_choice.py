"""Read multiple-choice questions: MedQA, MedMCQA, MMLU."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks import strict_reading
from data_prep.tasks.task_set import Question, TaskSet, file_hashes, the_file, the_form

SPLITS = ("train", "dev", "test")
# The medical subjects of MMLU that Med-PaLM (arXiv 2212.13138) chose; BioMedLM's paper reports four of these six.
MMLU_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)


def medqa(folder: Path) -> TaskSet:
    """Read MedQA-USMLE with 4 options, from the project's JSON lines or from BioMedLM's.

    Raises:
        BadInput: as in `load`.
    """
    names = [f"{split}.json" for split in SPLITS]
    forms = {"phrases_no_exclude_*.jsonl": ("phrases_no_exclude_*.jsonl",), "{train,dev,test}.json": names}
    published = the_form(folder, forms) == "phrases_no_exclude_*.jsonl"
    pattern, parse = ("phrases_no_exclude_{}.jsonl", _phrases) if published else ("{}.json", _sent_endings)
    return _json_lines("medqa", folder, pattern, parse, SPLITS)


def medmcqa(folder: Path) -> TaskSet:
    """Read MedMCQA. Its test answers are secret, so published scores are on dev, and test.json is not read.

    Raises:
        BadInput: as in `load`.
    """
    return _json_lines("medmcqa", folder, "{}.json", _cop, ("train", "dev"), scored="dev")


def _json_lines(
    name: str,
    folder: Path,
    pattern: str,
    parse: Callable[[JsonDict, str, str], Question],
    splits: tuple[str, ...],
    scored: str = "test",
) -> TaskSet:
    files = {split: the_file(folder, pattern.format(split), optional=split != scored) for split in splits}
    paths = {split: path for split, path in files.items() if path}
    questions = {
        split: [
            parse(record, where, f"{split}-{number:05}")
            for number, (where, record) in enumerate(strict_reading.json_lines(path))
        ]
        for split, path in paths.items()
    }
    return TaskSet(name, "choice", questions, file_hashes(folder, paths.values()), scored)


def _phrases(record: JsonDict, where: str, id_: str) -> Question:
    """Parse a record of jind11/MedQA, questions/US/4_options: `options` is {A: …}, `answer_idx` is a letter."""
    options = strict_reading.field(record, "options", where, dict)
    letters = sorted(options)
    if letters != list("ABCDE"[: len(letters)]):
        raise BadInput(f"{where}: the options are {', '.join(map(str, letters))}, not A, B, C, D")
    right = strict_reading.field(record, "answer_idx", where)
    if right not in options:
        raise BadInput(f"{where}: answer_idx is {right!r}, the options are {', '.join(letters)}")
    if "answer" in record and record["answer"] != options[right]:
        raise BadInput(f"{where}: answer is {record['answer']!r}, option {right} is {options[right]!r}")
    texts = tuple(strict_reading.field(options, letter, where) for letter in letters)
    return Question(id_, strict_reading.field(record, "question", where), texts, letters.index(right), where)


def _sent_endings(record: JsonDict, where: str, id_: str) -> Question:
    """Parse a record of stanford-crfm/BioMedLM, finetune/mc: `sent1`, `sent2`, `ending0` …, `label` from 0."""
    second = strict_reading.field(record, "sent2", where) if record.get("sent2") is not None else ""
    question = " ".join(filter(None, (strict_reading.field(record, "sent1", where), second)))
    names = [f"ending{n}" for n in range(sum(name.startswith("ending") for name in record))]
    options = tuple(strict_reading.field(record, name, where) for name in names)
    answer = strict_reading.field(record, "label", where, int)
    return Question(strict_reading.id_of(record, id_, where), question, options, answer, where)


def _cop(record: JsonDict, where: str, id_: str) -> Question:
    """Parse a record of medmcqa/medmcqa: options `opa` … `opd`, right option `cop` from 1."""
    options = tuple(strict_reading.field(record, name, where) for name in ("opa", "opb", "opc", "opd"))
    right = strict_reading.field(record, "cop", where, int)
    if not 1 <= right <= 4:
        raise BadInput(f"{where}: cop is {right}, not 1 to 4; if your copy counts from 0, add 1")
    question = strict_reading.field(record, "question", where)
    return Question(strict_reading.id_of(record, id_, where), question, options, right - 1, where)


def mmlu(folder: Path) -> TaskSet:
    """Read the medical subjects of MMLU (hendrycks/test): CSV with question, four options and letter, without header.

    Raises:
        BadInput: as in `load`.
    """
    splits: dict[str, list[Question]] = {}
    paths = []
    for split in ("dev", "val", "test"):
        files = {s: the_file(folder, f"{s}_{split}.csv", optional=True) for s in MMLU_SUBJECTS}
        there = {subject: path for subject, path in files.items() if path}
        if there:
            splits[split] = [q for subject, path in there.items() for q in _subject(path, subject, split)]
            paths += there.values()
    if "test" not in splits:
        raise BadInput(f"{folder} holds none of {', '.join(f'{s}_test.csv' for s in MMLU_SUBJECTS)}")
    return TaskSet("mmlu", "choice", splits, file_hashes(folder, paths))


def _subject(path: Path, subject: str, split: str) -> list[Question]:
    questions = []
    rows = csv.reader(io.StringIO(strict_reading.text(path), newline=""), strict=True)
    try:
        for number, row in enumerate(rows):
            where = f"{path}, line {rows.line_num}"
            if len(row) != 6:
                raise BadInput(f"{where}: {len(row)} columns; a row is question, A, B, C, D, answer letter")
            question, *options, right = row
            if right.strip() not in tuple("ABCD"):
                raise BadInput(f"{where}: the answer is {right!r}, not A, B, C or D; is there a header?")
            answer = "ABCD".index(right.strip())
            id_ = f"{subject}-{split}-{number:04}"
            questions.append(Question(id_, question, tuple(options), answer, where, subject=subject))
    except csv.Error as error:
        raise BadInput(f"{path}, line {rows.line_num}: not CSV ({error})") from None
    return questions

"""Read yes/no/maybe questions on abstracts: PubMedQA and BioASQ. The order of the labels must never change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.pmid import DIGITS
from data_prep.tasks import strict_reading
from data_prep.tasks.task_set import Question, TaskSet, file_hashes, need, split_by_hash, the_file, the_form

SPLITS = ("train", "dev", "test")
LINES_FORM, LINES = "{train,dev,test}.json", tuple(f"{split}.json" for split in SPLITS)
PUBMEDQA_LABELS = ("yes", "no", "maybe")
BIOASQ_LABELS = ("yes", "no")
BIOASQ_DEV_SHARE = 0.1
PMID = re.compile(rf"(?:pubmed|pubmed\.ncbi\.nlm\.nih\.gov)/({DIGITS.pattern})(?![0-9])")


def pubmedqa(folder: Path) -> TaskSet:
    """Read PubMedQA's labelled set, in the project's format or as BioMedLM's JSON lines.

    Raises:
        BadInput: as in `load` and in `_official_pubmedqa`.
    """
    if the_form(folder, {"ori_pqal.json": ("ori_pqal.json",), LINES_FORM: LINES}) == LINES_FORM:
        return _sentence_lines("pubmedqa", folder, PUBMEDQA_LABELS)
    return _official_pubmedqa(folder)


def _official_pubmedqa(folder: Path) -> TaskSet:
    """Read PubMedQA's labelled set in its official split: 500 test questions, and 450 / 50 of the rest from fold 0.

    `test_ground_truth.json` lists the test questions. The project's `split_dataset.py pqal` writes
    `pqal_fold0/{train,dev}_set.json`, which must hold exactly the other questions.

    Raises:
        BadInput: as in `load`; or a test question is in the fold, a question is in no split, or a question has two
            labels.
    """
    all_path, test_path = need(folder, "ori_pqal.json"), need(folder, "test_ground_truth.json")
    fold = next((path for path in sorted(folder.rglob("pqal_fold0")) if path.is_dir()), None)
    if fold is None:
        raise BadInput(f"{folder} holds no folder pqal_fold0; PubMedQA's `python split_dataset.py pqal` makes it")
    paths = {"train": fold / "train_set.json", "dev": fold / "dev_set.json"}
    records, truth = strict_reading.json_object(all_path), strict_reading.json_object(test_path)
    for id_ in records:
        strict_reading.field(records, id_, f"{all_path}, record {id_}", dict)
    ids = {split: list(strict_reading.json_object(path)) for split, path in paths.items()}
    for split, path in paths.items():
        if leaked := sorted(truth.keys() & set(ids[split])):
            raise BadInput(
                f"{path}: {len(leaked)} of the official test questions are in {split}, {leaked[0]} among them; "
                "make the folds again with PubMedQA's split_dataset.py"
            )
    ids["test"] = list(truth)
    held = {id_ for split in ids.values() for id_ in split}
    if missing := sorted(held - records.keys()):
        raise BadInput(f"{all_path}: record {missing[0]} is missing; a split names it")
    if left := sorted(records.keys() - held):
        raise BadInput(f"{fold}: {len(left)} questions of {all_path.name} are in no split, {left[0]} among them")
    for id_, label in truth.items():
        if records[id_].get("final_decision") != label:
            raise BadInput(
                f"{all_path}, record {id_}: final_decision is {records[id_].get('final_decision')!r}, "
                f"{test_path.name} says {label!r}"
            )
    splits = {
        split: [_abstract_question(records[id_], id_, f"{all_path}, record {id_}") for id_ in names]
        for split, names in ids.items()
    }
    files = file_hashes(folder, (all_path, test_path, *paths.values()))
    return TaskSet("pubmedqa", "verdict", splits, files)


def _abstract_question(record: JsonDict, id_: str, where: str) -> Question:
    label = strict_reading.field(record, "final_decision", where)
    if label not in PUBMEDQA_LABELS:
        raise BadInput(f"{where}: final_decision is {label!r}, not one of {', '.join(PUBMEDQA_LABELS)}")
    context = " ".join(strict_reading.items(record, "CONTEXTS", where))
    if not context.strip():
        raise BadInput(f"{where}: CONTEXTS is empty")
    question = strict_reading.field(record, "QUESTION", where)
    return Question(id_, question, PUBMEDQA_LABELS, PUBMEDQA_LABELS.index(label), where, context, pmids=(id_,))


def bioasq(folder: Path) -> TaskSet:
    """Read BioASQ's yes/no questions, from files of its task b or from BioMedLM's JSON lines.

    Task b has a training file, golden test files, and maybe a dev file. Without a dev file, a hash of the question's id
    chooses a tenth of train as dev.

    Raises:
        BadInput: as in `load`; or the training file contains the test questions, as that of a later year does.
    """
    task_b = "*golden*.json, the files of BioASQ's test batches with answers"
    if the_form(folder, {task_b: ("*golden*.json",), LINES_FORM: LINES[-1:]}) == LINES_FORM:
        return _sentence_lines("bioasq", folder, BIOASQ_LABELS)
    golden = sorted(folder.rglob("*golden*.json"))
    train, dev = need(folder, "*train*.json"), the_file(folder, "*dev*.json", optional=True)
    splits: dict[str, list[Question]] = {"train": _yes_no(train)}
    note = ""
    if dev:
        splits["dev"] = _yes_no(dev)
    else:
        shares = {"dev": BIOASQ_DEV_SHARE, "train": 1 - BIOASQ_DEV_SHARE}
        everything = splits["train"]
        splits = {s: [q for q in everything if split_by_hash(q.id, shares) == s] for s in ("train", "dev")}
        note = "dev is a tenth of train, by a hash of the id: the project publishes none"
    splits["test"] = [question for path in golden for question in _yes_no(path)]
    files = file_hashes(folder, [train, *([dev] if dev else []), *golden])
    return TaskSet("bioasq", "verdict", splits, files, note=note)


def _yes_no(path: Path) -> list[Question]:
    questions = []
    records = strict_reading.field(strict_reading.json_object(path), "questions", str(path), list)
    for number, record in enumerate(records, start=1):
        where = f"{path}, question {number}"
        if not isinstance(record, dict):
            raise BadInput(f"{where}: not a JSON object but {repr(record)[:80]}")
        if strict_reading.field(record, "type", where) != "yesno":
            continue
        answer: Any = record.get("exact_answer")
        answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        label = answer.strip().lower() if isinstance(answer, str) else None
        if label not in BIOASQ_LABELS:
            raise BadInput(f"{where}: exact_answer is {record.get('exact_answer')!r}, not yes or no")
        snippets = strict_reading.items(record, "snippets", where, dict) if "snippets" in record else []
        context = " ".join(strict_reading.field(snippet, "text", where) for snippet in snippets)
        if not context.strip():
            raise BadInput(f"{where}: it has no snippets to answer from")
        sources = strict_reading.items(record, "documents", where) if "documents" in record else []
        sources = [*sources, *(strict_reading.field({"document": "", **s}, "document", where) for s in snippets)]
        pmids = {pmid for source in sources for pmid in PMID.findall(source)}
        id_, body = strict_reading.field(record, "id", where), strict_reading.field(record, "body", where)
        order = BIOASQ_LABELS.index(label)
        questions.append(Question(id_, body, BIOASQ_LABELS, order, where, context, pmids=tuple(sorted(pmids))))
    return questions


def _sentence_lines(name: str, folder: Path, labels: tuple[str, ...]) -> TaskSet:
    """Read stanford-crfm/BioMedLM, finetune/seqcls: `sentence1` (question), `sentence2` (context), `label` (answer)."""
    paths = {split: path for split in SPLITS if (path := the_file(folder, f"{split}.json", optional=split != "test"))}
    splits = {
        split: [
            _sentence_question(record, where, f"{split}-{number:05}", labels)
            for number, (where, record) in enumerate(strict_reading.json_lines(path))
        ]
        for split, path in paths.items()
    }
    return TaskSet(name, "verdict", splits, file_hashes(folder, paths.values()))


def _sentence_question(record: JsonDict, where: str, default: str, labels: tuple[str, ...]) -> Question:
    label = strict_reading.field(record, "label", where)
    if label not in labels:
        raise BadInput(f"{where}: label is {label!r}, not one of {', '.join(labels)}")
    question, context = (strict_reading.field(record, key, where) for key in ("sentence1", "sentence2"))
    if not context.strip():
        raise BadInput(f"{where}: sentence2, the context, is empty")
    id_ = strict_reading.id_of(record, default, where)
    pmids = (id_,) if labels == PUBMEDQA_LABELS else ()  # BioASQ's ids are not PubMed numbers
    return Question(id_, question, labels, labels.index(label), where, context, pmids=pmids)

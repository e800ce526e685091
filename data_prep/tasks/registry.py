"""Question sets, source -> target sets and tagged sentences, read from the files that their projects publish.

    folder      files, anywhere below it                                                    splits
    medqa       phrases_no_exclude_{train,dev,test}.jsonl; or {train,dev,test}.json of
                lines `sent1`, `ending0` …, `label` (stanford-crfm/BioMedLM, finetune/mc)   train dev test
    medmcqa     {train,dev}.json, one JSON a line, `cop` from 1 (medmcqa/medmcqa)           train dev
    pubmedqa    ori_pqal.json, test_ground_truth.json, pqal_fold0/{train,dev}_set.json      train dev test
    bioasq      *train*.json, [*dev*.json], *golden*.json of BioASQ task b, yes/no only     train dev test
    mmlu        SUBJECT_{dev,val,test}.csv without header, six medical subjects             dev val test
    meqsum      meqsum.jsonl, or the project's .xlsx (abachaa/MeQSum)                       train dev test, ours
    other       {train,dev,test}.jsonl of lines `source`, `target`; or words and their
                tags in {train,dev,devel,valid,test}.{tsv,txt,conll,iob} (any)              train dev test

Every fault names the file and the line or record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.tasks import classification, multiple_choice, seq2seq, token_classification
from data_prep.tasks.task_set import Pair, Question, TaskSet, the_file

# A set by its name -> who reads its folder.
READERS: dict[str, Callable[[Path], TaskSet]] = {
    "medqa": multiple_choice.medqa,
    "medmcqa": multiple_choice.medmcqa,
    "mmlu": multiple_choice.mmlu,
    "pubmedqa": classification.pubmedqa,
    "bioasq": classification.bioasq,
    "meqsum": seq2seq.meqsum,
}


def load(name: str, data: Path) -> TaskSet:
    """Read and check the set `name`, from the folder of that name in `data`.

    Raises:
        BadInput: the folder or a file is missing, or a record of it cannot be used.
    """
    folder = data / name
    if not folder.is_dir():
        raise BadInput(f"{folder} does not exist; {name} is read from there (its files: data_prep/tasks/registry.py)")
    task = READERS.get(name, _own)(folder)
    _check(task)
    return task


def _own(folder: Path) -> TaskSet:
    """A set of no name known here: pairs, or tagged words."""
    pair_file, tagged_file = the_file(folder, "test.jsonl", optional=True), token_classification.find(folder, "test")
    if pair_file and tagged_file:
        raise BadInput(f"{folder} holds both {pair_file.name} and {tagged_file.name}; keep one")
    return seq2seq.jsonl(folder) if pair_file else token_classification.conll(folder)


def _check(task: TaskSet) -> None:
    """Refuse what every format must not have: empty splits, empty texts, answers without option, ids twice."""
    seen: dict[str, str] = {}
    for split, examples in task.splits.items():
        if not examples:
            raise BadInput(f"{task.name}: its {split} split is empty")
        for example in examples:
            where = f"{example.where} ({example.id})"
            if example.id in seen:
                raise BadInput(f"{where}: this id is also that of {seen[example.id]}; each belongs to one split, once")
            seen[example.id] = f"{split}, {example.where}"
            if isinstance(example, Question):
                _check_question(example, where)
            elif isinstance(example, Pair) and not (example.source.strip() and example.target.strip()):
                raise BadInput(f"{where}: its {'target' if example.source.strip() else 'source'} is empty")


def _check_question(question: Question, where: str) -> None:
    if not question.question.strip():
        raise BadInput(f"{where}: the question is empty")
    if len(question.options) < 2:
        raise BadInput(f"{where}: {len(question.options)} options; a question needs two or more")
    if blank := [n for n, option in enumerate(question.options, 1) if not option.strip()]:
        raise BadInput(f"{where}: option {blank[0]} is empty")
    if not 0 <= question.answer < len(question.options):
        raise BadInput(f"{where}: the answer is option {question.answer + 1} of {len(question.options)}")

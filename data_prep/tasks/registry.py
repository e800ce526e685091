"""Question sets, source -> target sets and tagged sentences, read from the files that their projects publish.

    folder      files, anywhere below it                                                    splits
    medqa       phrases_no_exclude_{train,dev,test}.jsonl; or {train,dev,test}.json of
                lines `sent1`, `ending0` …, `label` (stanford-crfm/BioMedLM, finetune/mc)   train dev test
    medmcqa     {train,dev}.json, one JSON a line, `cop` from 1 (medmcqa/medmcqa)           train dev
    pubmedqa    ori_pqal.json, test_ground_truth.json, pqal_fold0/{train,dev}_set.json; or
                {train,dev,test}.json of lines `sentence1`, `sentence2`, `label`
                (stanford-crfm/BioMedLM, finetune/seqcls)                                   train dev test
    bioasq      *train*.json, [*dev*.json], *golden*.json of BioASQ task b, yes/no only;
                or {train,dev,test}.json of such lines                                      train dev test
    mmlu        SUBJECT_{dev,val,test}.csv without header, six medical subjects             dev val test
    meqsum      meqsum.jsonl, or the project's .xlsx (abachaa/MeQSum)                       train dev test, ours
    other       {train,dev,test}.jsonl of lines `source`, `target`; or words and their
                tags in {train,dev,devel,valid,test}.{tsv,txt,conll,iob} (any)              train dev test

Every fault names the file and the line or record. A folder that holds a set in two forms is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.tasks import classification, multiple_choice, seq2seq, token_classification
from data_prep.tasks.task_set import Question, TaskSet, the_file

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
    return _merge_equal_options(task)


def _own(folder: Path) -> TaskSet:
    """A set of no name known here: pairs, or tagged words."""
    pairs = [path for split in seq2seq.SPLITS if (path := the_file(folder, f"{split}.jsonl", optional=True))]
    tagged = [path for split in token_classification.NAMES if (path := token_classification.find(folder, split))]
    if pairs and tagged:
        raise BadInput(f"{folder} holds both {pairs[-1].name} and {tagged[-1].name}; keep one")
    return seq2seq.jsonl(folder) if pairs else token_classification.conll(folder)


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
            if example.fault:
                raise BadInput(f"{where}: {example.fault}")


def _merge_equal_options(task: TaskSet) -> TaskSet:
    """Make equal texts one option, right if one of them is: a tie between them would go to the first."""
    splits = {split: [_merged(question) for question in task.questions(split)] for split in task.splits}
    merged = {
        split: sum(old is not new for old, new in zip(task.questions(split), questions, strict=True))
        for split, questions in splits.items()
    }
    if not any(merged.values()):
        return task
    counts = ", ".join(f"{n:,} of {split}" for split, n in merged.items() if n)
    note = f"questions that have an option more than once: {counts}; equal texts are one option"
    return replace(task, splits=splits, note="; ".join(filter(None, (task.note, note))))


def _merged(question: Question) -> Question:
    texts = [" ".join(option.split()) for option in question.options]
    kept = [number for number, text in enumerate(texts) if texts.index(text) == number]
    if len(kept) == len(texts):
        return question
    answer = kept.index(texts.index(texts[question.answer]))
    return replace(question, options=tuple(question.options[number] for number in kept), answer=answer)

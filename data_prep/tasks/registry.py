"""Read question sets, sets of source and target texts, and tagged sentences from the files that projects publish.

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
    your own    {train,dev,test}.{jsonl,csv} with columns `question`, `answer` and, if they
                have them, `context`, `options`, `id`; or one such file of any name         train dev test
    your own    {train,dev,test}.jsonl of lines `source`, `target`                          train dev test
    your own    words and their tags in {train,dev,devel,valid,test}.{tsv,txt,conll,iob}    train dev test

A set of your own is a folder of any other name. Questions with `options` are of the kind `choice`: the answer is the
text or the letter of an option. Questions without options are of the kind `verdict`: the labels are the answers that
occur. A single file is split 80 / 10 / 10 by a hash of each question. Every error names the file and the line or
record. A folder that holds a set in two formats is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.tasks import classification, multiple_choice, own_questions, seq2seq, token_classification
from data_prep.tasks.own_questions import EXAMPLES
from data_prep.tasks.task_set import LETTERS, Question, TaskSet

WHICH_FILES = "which files: python recipes/finetune.py --describe"
# Name of a set -> function that reads its folder.
READERS: dict[str, Callable[[Path], TaskSet]] = {
    "medqa": multiple_choice.medqa,
    "medmcqa": multiple_choice.medmcqa,
    "mmlu": multiple_choice.mmlu,
    "pubmedqa": classification.pubmedqa,
    "bioasq": classification.bioasq,
    "meqsum": seq2seq.meqsum,
}


def formats() -> str:
    """Describe the files of each set, with an example of each format of the user's own questions, as lines to print."""
    examples = (f"{name}\n    {text.rstrip().replace(chr(10), chr(10) + '    ')}" for name, text in EXAMPLES.items())
    return "\n\n".join([(__doc__ or "").rstrip(), "Examples of your own questions:", *examples])


def load(name: str, data: Path) -> TaskSet:
    """Read and check the set `name` from the folder of that name in `data`.

    Raises:
        BadInput: the folder or a file is missing, or a record cannot be used.
    """
    folder = data / name
    if not folder.is_dir():
        raise BadInput(f"{folder} does not exist; {name} is read from there ({WHICH_FILES})")
    task = READERS.get(name, _own)(folder)
    _check(task)
    return _merge_equal_options(task)


def _own(folder: Path) -> TaskSet:
    """Read the user's own set: questions, pairs, or tagged words."""
    files = own_questions.find(folder)
    tagged = [path for split in token_classification.NAMES if (path := token_classification.find(folder, split))]
    if not files:
        return token_classification.conll(folder)
    first = next(iter(files.values()))
    if tagged:
        raise BadInput(f"{folder} holds both {first.name} and {tagged[-1].name}; keep one")
    columns = {name for path in files.values() for name in own_questions.columns(path)}
    if columns & {"source", "target"}:
        return seq2seq.jsonl(folder)
    return own_questions.read(folder, files)


def _check(task: TaskSet) -> None:
    """Refuse faults of any format: an empty split, an empty text, an answer that is no option, a repeated id."""
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
            if task.kind == "choice" and isinstance(example, Question) and len(example.options) > len(LETTERS):
                raise BadInput(f"{where}: {len(example.options)} options; a question has 2 to {len(LETTERS)}")


def _merge_equal_options(task: TaskSet) -> TaskSet:
    """Merge equal options into one, which is right if one of them is; otherwise a tie would go to the first of them."""
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

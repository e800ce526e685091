"""Write questions as prompts to be continued, and as task files for lm-eval-harness.

In the form `letter`, the options are listed and the answer is a letter. In the form `option` (cloze), the answer is the
text of the option. Verdicts (yes, no, maybe) only have the form `option`. The wording is that of lm-eval's medqa and
pubmedqa tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, write_json
from data_prep.tasks.task_set import LETTERS, Question, TaskSet, part_by_hash

HARNESS = "harness"


@dataclass(frozen=True)
class Prompt:
    """A question as a prompt that the model continues.

    Attributes:
        question: the question.
        text: text before the answer, shots included.
        choices: possible continuations, without the space before them.
    """

    question: Question
    text: str
    choices: tuple[str, ...]


def question_text(question: Question, form: str) -> str:
    """The text of one question, up to `Answer:`."""
    lines = [f"Abstract: {question.context}"] if question.context else []
    lines.append(f"Question: {question.question}")
    if form == "letter":
        lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return "\n".join([*lines, "Answer:"])


def choices(question: Question, form: str) -> tuple[str, ...]:
    """The possible continuations after `Answer:`."""
    return tuple(LETTERS[: len(question.options)]) if form == "letter" else question.options


def make_prompts(task: TaskSet, form: str, n_shots: int, limit: int | None) -> list[Prompt]:
    """Make prompts from the scored split.

    The shots are the first questions of the same subject in train, or in dev if there is no train. They are the same
    for every question, so that a score can be reproduced from the set alone (as in MMLU).

    Args:
        task: set of questions.
        form: `letter` or `option`.
        n_shots: number of answered questions before each question.
        limit: number of questions to score, chosen by a hash of their ids; None: all.

    Raises:
        BadInput: there are not enough questions for the shots.
    """
    pool = _pool(task) if n_shots else []
    prompts = []
    for question in part_by_hash(task.questions(task.scored), limit):
        shots = [shot for shot in pool if shot.subject == question.subject][:n_shots]
        if len(shots) < n_shots:
            raise BadInput(
                f"--shots {n_shots}: {task.name} has only {len(shots)} questions to take shots from"
                f"{f', for {question.subject}' if question.subject else ''}"
            )
        examples = [f"{question_text(s, form)} {choices(s, form)[s.answer]}" for s in shots]
        text = "\n\n".join([*examples, question_text(question, form)])
        prompts.append(Prompt(question, text, choices(question, form)))
    return prompts


def _pool(task: TaskSet) -> list[Question]:
    split = next((name for name in ("train", "dev", "val") if name in task.splits and name != task.scored), None)
    if split is None:
        raise BadInput(f"--shots: {task.name} has no train or dev split to take shots from; use --shots 0")
    return task.questions(split)


def write_harness_task(folder: Path, name: str, prompts: Sequence[Prompt], final: Path) -> None:
    """Write the prompts as a task of lm-eval-harness with local data: `NAME.yaml` and `NAME.jsonl`.

        lm_eval run --model hf --model_args pretrained=MODEL,dtype=float32 --batch_size 8 \\
            --include_path FOLDER --tasks NAME

    gives exactly the scores of recipes/evaluate.py, if MODEL is a folder of recipes/export.py.

    Args:
        folder: folder to write into.
        name: name of the task.
        prompts: prompts with their shots.
        final: folder that will hold `harness/` at the end, because the harness needs an absolute path.
    """
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for prompt in prompts:
            record = {"text": prompt.text, "choices": prompt.choices, "answer": prompt.question.answer}
            file.write(json.dumps({"id": prompt.question.id, **record}) + "\n")
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task: JsonDict = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(final.absolute() / HARNESS / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1},
    }
    write_json(folder / f"{name}.yaml", task)  # JSON is YAML

"""Put questions to a base model, or to the head of a fine-tuned model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file
from data_prep.tasks.task_set import TaskSet, part_by_hash
from recipes.evaluation.prompts import make_prompts, write_harness_task
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import HEAD

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.heads import FineTuned


@dataclass(frozen=True)
class Form:
    """The answers to the questions of a set in one form of prompts.

    Attributes:
        how: description of the form, for the table.
        records: a record for each question, with its metrics as floats.
        cut: number of questions that were too long for the model, and so lost a part or were read in windows.
    """

    how: str
    records: list[JsonDict]
    cut: int


def check_answerable(task: TaskSet, head: JsonDict | None, model: Path | None) -> None:
    """Refuse a set on which a base model, or the head of a fine-tuned model, cannot be scored.

    Raises:
        BadInput: the set is of another kind, or has other labels.
    """
    if head is None:
        if not KINDS[task.kind].forms:
            raise BadInput(
                f"{task.name} is of kind {task.kind!r}, on which a base model cannot be scored; fine-tune it first"
            )
        return
    tuned = f"{model} was fine-tuned on {head['task']}"
    way_out = f"score a base model on {task.name}, or fine-tune one on it with recipes/finetune.py"
    if task.kind != head["kind"]:
        raise BadInput(f"{tuned}, of kind {head['kind']!r}, but {task.name} is of kind {task.kind!r}: {way_out}")
    if differs := KINDS[task.kind].other_answers(task, head["labels"]):
        raise BadInput(f"{tuned}, {differs}: {way_out}")


def head_sha256(model: Path) -> str | None:
    """The hash of a fine-tuned model's head; None if the model has no head."""
    return sha256_file(model / HEAD) if (model / HEAD).is_file() else None


def answer_by_head(
    arguments: argparse.Namespace, tasks: Sequence[TaskSet], model: FineTuned, tokenizer: Any
) -> Iterator[tuple[str, str, Form]]:
    """Let a fine-tuned model answer the questions of each set, in the format of its tuning.

    Yields:
        Name of the set, `head`, and the answers.

    Raises:
        BadInput: a question cannot be cut to fit.
    """
    from recipes.config.schema import FinetuneConfig
    from recipes.finetuning.scoring import predict

    head, cfg = model.task_head, FinetuneConfig(device_eval_batch_size=arguments.batch_size)
    for task in tasks:
        examples = part_by_hash(task.splits[task.scored], arguments.limit)
        records = predict(model, tokenizer, examples, cfg)
        for record, example in zip(records, examples, strict=True):
            record["subject"] = getattr(example, "subject", "")
        yield task.name, "head", Form(f"fine-tuned on {head.task}", records, sum(record["cut"] for record in records))


def ask(
    arguments: argparse.Namespace, tasks: Sequence[TaskSet], model: GPT2LMHeadModel, tokenizer: Any, folder: Path
) -> Iterator[tuple[str, str, Form]]:
    """Score a base model on each set and form of prompts. The task files are written into `folder`.

    Yields:
        Name of the set, name of the form, and the answers.

    Raises:
        BadInput: there are too few questions for the shots, or an option is longer than the model's context.
    """
    from recipes.evaluation.lm_eval_harness import count_cut, score_choices

    for task in tasks:
        for form in KINDS[task.kind].forms:
            prompts, name = make_prompts(task, form, arguments.shots, arguments.limit), f"{task.name}_{form}"
            cut = count_cut(tokenizer, prompts, model.config.n_positions)
            write_harness_task(folder, name, prompts, arguments.out)
            records = score_choices(model, tokenizer, prompts, folder / f"{name}.yaml", arguments.batch_size)
            yield task.name, form, Form(f"{arguments.shots}-shot, {form}", records, cut)

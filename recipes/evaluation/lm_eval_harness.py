"""Compute few-shot and cloze scores with lm-eval-harness, from the task files that `prompts` writes.

The model is loaded by recipes/modeling/model_folder.py. If the harness loaded it, the attention of the published
BioMedLM would lose its scaling by layer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json
from recipes.evaluation.prompts import Prompt

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def count_cut(tokenizer: Any, prompts: Sequence[Prompt], n_positions: int) -> int:
    """Count the prompts that lose their beginning, because prompt and longest choice do not fit into the context.

    Raises:
        BadInput: a choice by itself does not fit.
    """
    cut = 0
    for prompt in prompts:
        context, *choices = (
            len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in (prompt.text, *(f" {choice}" for choice in prompt.choices))
        )
        if max(choices) > n_positions:
            raise BadInput(
                f"{prompt.question.where}: an option has {max(choices)} tokens, but the model reads {n_positions}"
            )
        cut += context + max(choices) > n_positions + 1  # the last token is only predicted
    return cut


def score_choices(
    model: GPT2LMHeadModel, tokenizer: Any, prompts: Sequence[Prompt], task_file: Path, batch_size: int
) -> list[JsonDict]:
    """Score the choices of every prompt.

    Each call scores one task, so that the last bits of a score do not depend on other tasks.

    Args:
        model: model in evaluation mode.
        tokenizer: tokenizer of the model.
        prompts: prompts from which the task file was written.
        task_file: `NAME.yaml`, with `NAME.jsonl` beside it. The path in the YAML is that of the finished folder.
        batch_size: number of sequences at a time.

    Returns:
        For each prompt `id`, `subject`, `answer`, `log_probs` of its choices in nats, `acc` and `acc_norm`. `acc` is 1
        if the right choice has the largest log-probability, `acc_norm` if it has the largest per character.
    """
    # The harness warns about each cut prompt, which `count_cut` counts, and about models that are already loaded.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    name = task_file.stem
    with tempfile.TemporaryDirectory() as cache:
        place = {"data_files": {"test": str(task_file.with_suffix(".jsonl").absolute())}, "cache_dir": cache}
        tasks = TaskManager(include_defaults=False).load([{**read_json(task_file), "dataset_kwargs": place}])
        arguments: Any = {"pretrained": model, "tokenizer": tokenizer, "backend": "causal", "batch_size": batch_size}
        lm: Any = HFLM(**arguments)
        results: Any = evaluate(lm, tasks, bootstrap_iters=0)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    records = []
    for prompt, sample in zip(prompts, samples, strict=True):
        assert sample["doc"]["id"] == prompt.question.id
        records.append(
            {
                "id": prompt.question.id,
                "subject": prompt.question.subject,
                "answer": prompt.question.answer,
                "log_probs": [float(response[0][0]) for response in sample["resps"]],
                "acc": float(sample["acc"]),
                "acc_norm": float(sample["acc_norm"]),
            }
        )
    return records

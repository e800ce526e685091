"""Few-shot and cloze scores, computed by lm-eval-harness from the task files that `prompts` writes.

The model is the one that recipes/modeling/model_folder.py loads: BioMedLM as it was published has its attention scaled
by layer, which the harness' own loading would lose.
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
    """How many prompts lose their beginning, since they and their longest choice do not fit into the context.

    Raises:
        BadInput: a choice alone does not fit.
    """
    cut = 0
    for prompt in prompts:
        context, *choices = (
            len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in (prompt.text, *(f" {choice}" for choice in prompt.choices))
        )
        if max(choices) > n_positions:
            raise BadInput(
                f"{prompt.question.where}: an option of {max(choices)} tokens, and the model reads {n_positions}"
            )
        cut += context + max(choices) > n_positions + 1  # the last token is predicted and not read
    return cut


def score_choices(
    model: GPT2LMHeadModel, tokenizer: Any, prompts: Sequence[Prompt], task_file: Path, batch_size: int
) -> list[JsonDict]:
    """Score every prompt's choices.

    One task a call, so that a score does not depend, in its last bits, on what else was asked for.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: what the task file was written from.
        task_file: `NAME.yaml`, with `NAME.jsonl` beside it; its own path to that is of the folder's later place.
        batch_size: sequences at a time.

    Returns:
        For each prompt `id`, `answer`, `log_probs` of its choices in nats, and whether it is right: `acc` by the
        largest log-probability, `acc_norm` by the largest for its length in characters.
    """
    # It warns of each cut prompt, which `count_cut` counts, and of models that were loaded before.
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

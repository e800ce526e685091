"""The common part of the kinds of task with one right answer among several: softmax over the answers, and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.common.files import JsonDict
from data_prep.tasks.task_set import Example, Question
from recipes.finetuning.kind import KindWithHead

if TYPE_CHECKING:
    import torch

    from recipes.finetuning.kind import Batch


class OneAnswer(KindWithHead):
    """Questions with one right option: `answers` has a score for each option, `label` is the index of the right one."""

    loss_unit = "nats/question"
    metric = "acc"
    dev_metric = "Accuracy"

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy, in nats per question."""
        import torch.nn.functional as F

        return F.cross_entropy(answers, batch["labels"])

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """(B,): 1 if the answer is right, otherwise 0."""
        return (answers.argmax(1) == batch["labels"]).float()

    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """Return `answer`, the index of the right option; `scores` of all options; and `acc`, 1 or 0."""
        assert isinstance(example, Question)
        row = answers[: len(example.options)].tolist()
        return {"answer": example.answer, "scores": row, "acc": float(row.index(max(row)) == example.answer)}

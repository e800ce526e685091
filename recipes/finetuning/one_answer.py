"""What is common to the kinds with one right answer among several: softmax over them, and accuracy."""

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
    """Questions, each with one right option; `answers` are a score an option, and `label` is the right one's index."""

    loss_unit = "nats/question"
    metric = "acc"
    dev_metric = "Accuracy"

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy, in nats a question."""
        import torch.nn.functional as F

        return F.cross_entropy(answers, batch["labels"])

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """(B,): 1 where the answer is right, 0 elsewhere."""
        return (answers.argmax(1) == batch["labels"]).float()

    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """`answer`, the right one, `scores` of all, and `acc`."""
        assert isinstance(example, Question)
        row = answers[: len(example.options)].tolist()
        return {"answer": example.answer, "scores": row, "acc": float(row.index(max(row)) == example.answer)}

"""Questions about a text, all with the same labels: `<|CONTEXT|> context <|QUESTION|> question <|ANSWER|>`.

This is the format of BioMedLM's published numbers (stanford-crfm/BioMedLM, finetune/seqcls). The head gives each label
a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.tasks.task_set import Example, Question, TaskSet
from recipes.finetuning.kind import LOADING_CODE, Encoded, Encoder, last_hidden
from recipes.finetuning.one_answer import OneAnswer

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.kind import Batch

CONTEXT, QUESTION, ANSWER = "<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>"
CARD_CODE = (
    LOADING_CODE
    + """\
labels = {{ head.labels | list | tojson }}
text = "<|CONTEXT|>Aspirin was given to 9 of 18.<|QUESTION|>Does it help?<|ANSWER|>"
with torch.no_grad():
    scores = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] @ head.T
print(labels[scores.argmax()])
"""
)


class Verdict(OneAnswer):
    """Questions about a text. The labels, such as yes, no and maybe, are the same for all questions."""

    added_tokens = (CONTEXT, QUESTION, ANSWER)
    forms = ("option",)
    pipeline_tag = "text-classification"
    does = "answers a question about a text with one of its labels"
    card_code = CARD_CODE

    def labels(self, task: TaskSet) -> tuple[str, ...]:
        """The options of every question."""
        return task.questions("train")[0].options

    def other_answers(self, task: TaskSet, labels: Sequence[str]) -> str:
        """A text that names the labels of model and task set, if they differ; otherwise empty."""
        asked = task.questions(task.scored)[0].options
        if list(asked) == list(labels):
            return ""
        return f"whose answers are {', '.join(labels)}; those of {task.name} are {', '.join(asked)}"

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """Make one sequence. A long context loses its beginning.

        Raises:
            BadInput: the question does not fit.
        """
        assert isinstance(example, Question)
        begin, ask, answer = encoder.added
        end = [ask, *encoder.ids(example.question), answer]
        room = encoder.room(len(end) + 1, "question", example.where)
        context = encoder.ids(example.context)
        return Encoded(((begin, *context[-room:], *end),), example.answer, len(context) > room)

    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """(B, labels) logits."""
        return head(last_hidden(gpt2, batch)).float()

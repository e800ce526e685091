"""Multiple choice, where each question has its own options: one sequence `question [SEP] option [SEP]` for each option.

This is the format of BioMedLM's published numbers (stanford-crfm/BioMedLM, finetune/mc). The head gives each sequence
one score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from data_prep.tasks.task_set import Example, Question
from recipes.finetuning.kind import LOADING_CODE, Encoded, Encoder, last_hidden
from recipes.finetuning.one_answer import OneAnswer

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.kind import Batch

SEP = "[SEP]"
CARD_CODE = (
    LOADING_CODE
    + """\
question, options = "Which of these thins the blood?", ["Aspirin", "Insulin"]
scores = []
for option in options:
    inputs = tokenizer(f"{question}[SEP] {option}[SEP]", return_tensors="pt")
    with torch.no_grad():
        scores.append((model(**inputs).last_hidden_state[0, -1] @ head.T).item())
print(options[scores.index(max(scores))])
"""
)


class Choice(OneAnswer):
    """A question and its options."""

    added_tokens = (SEP,)
    sequences = 4  # largest number of options of a question in MedQA, MedMCQA and MMLU
    forms = ("letter", "option")
    pipeline_tag = "question-answering"
    does = "chooses among the options of a question"
    card_code = CARD_CODE

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """Make one sequence for each option. A long question loses its beginning, since it asks something at its end.

        Raises:
            BadInput: an option does not fit into a sequence.
        """
        assert isinstance(example, Question)
        (sep,) = encoder.added
        text = encoder.ids(example.text)
        sequences, truncated = [], False
        for option in example.options:
            end = [sep, *encoder.ids(f" {option}"), sep]
            room = encoder.room(len(end), f"option {option[:40]!r}", example.where)
            truncated |= len(text) > room
            sequences.append((*text[-room:], *end))
        return Encoded(tuple(sequences), example.answer, truncated)

    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """(B, O) logits; -inf where a question has fewer options than O."""
        lengths = batch["lengths"]
        scores = head(last_hidden(gpt2, batch)).float()
        return scores.view_as(lengths).masked_fill(lengths == 0, -math.inf)

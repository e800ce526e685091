"""Questions and pairs as token ids: the sequences that fine-tuned models read, and their batches.

    choice    question [SEP] option [SEP]                                    one sequence an option
    verdict   <|CONTEXT|> context <|QUESTION|> question <|ANSWER|>
    pairs     source <|startoftext|> target <|endoftext|>

These are the formats of BioMedLM's published numbers (stanford-crfm/BioMedLM, finetune/). Sequences are padded on the
right with [PAD], an entry of its own: end-of-text has a meaning, and must be learned where it is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from data_prep.stage import BadInput
from data_prep.tasks import Pair, Question

PAD, SEP, START = "[PAD]", "[SEP]", "<|startoftext|>"
CONTEXT, QUESTION, ANSWER = "<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>"
ADDED_TOKENS = {"choice": (SEP,), "verdict": (CONTEXT, QUESTION, ANSWER), "pairs": (START,)}

Batch = dict[str, torch.Tensor]


def add_tokens(tokenizer: Any, kind: str) -> None:
    """Add the tokens of a kind of task, and [PAD]; those that are there stay what they are."""
    tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": list(ADDED_TOKENS[kind])})
    tokenizer.padding_side = "right"


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        sequences: token ids, one sequence an option in `choice`, one in all otherwise.
        label: index of the right option; in `pairs` the position of the target's first token.
        truncated: whether something was cut off to make it fit.
    """

    sequences: tuple[tuple[int, ...], ...]
    label: int
    truncated: bool


class Encoder:
    """Encodes the examples of one kind of task.

    Args:
        tokenizer: with the tokens that `add_tokens` adds.
        kind: `choice`, `verdict` or `pairs`.
        seq_len: the longest sequence, in tokens.
    """

    def __init__(self, tokenizer: Any, kind: str, seq_len: int) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.seq_len = seq_len
        self.pad_id = int(tokenizer.pad_token_id)

    def __call__(self, example: Question | Pair) -> Encoded:
        """Encode one example.

        Raises:
            BadInput: what must not be cut (an option, a verdict's question, a target) does not fit.
        """
        if isinstance(example, Pair):
            return self._pair(example)
        return self._choice(example) if self.kind == "choice" else self._verdict(example)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _room(self, tokens: int, what: str, where: str) -> int:
        """What is left of the sequence for the rest.

        Raises:
            BadInput: nothing.
        """
        if (room := self.seq_len - tokens) < 1:
            raise BadInput(f"{where}: its {what} takes {tokens} tokens, and seq_len = {self.seq_len}; raise seq_len")
        return room

    def _choice(self, question: Question) -> Encoded:
        (sep,) = self._ids(SEP)
        text = self._ids(question.text)
        sequences, truncated = [], False
        for option in question.options:
            end = [sep, *self._ids(f" {option}"), sep]
            room = self._room(len(end), f"option {option[:40]!r}", question.where)
            truncated |= len(text) > room
            sequences.append((*text[-room:], *end))  # what a question asks stands at its end
        return Encoded(tuple(sequences), question.answer, truncated)

    def _verdict(self, question: Question) -> Encoded:
        (begin,), (ask,), (answer,) = (self._ids(token) for token in ADDED_TOKENS["verdict"])
        end = [ask, *self._ids(question.question), answer]
        room = self._room(len(end) + 1, "question", question.where)
        context = self._ids(question.context)
        return Encoded(((begin, *context[-room:], *end),), question.answer, len(context) > room)

    def _pair(self, pair: Pair) -> Encoded:
        target = [*self._ids(pair.target), self.tokenizer.eos_token_id]
        room = self._room(len(target) + 1, "target", pair.where)
        source = self.source(pair, room)
        return Encoded(((*source, *target),), len(source), len(self._ids(pair.source)) > room)

    def source(self, pair: Pair, room: int) -> tuple[int, ...]:
        """What is read before a target is written; its beginning, if it is too long."""
        (start,) = self._ids(START)
        return (*self._ids(pair.source)[:room], start)


class Examples(Dataset[tuple[int, Encoded]]):
    """Encoded examples with their numbers."""

    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> tuple[int, Encoded]:
        return index, self._encoded[index]


def collate(examples: Sequence[tuple[int, Encoded]], pad_id: int) -> Batch:
    """A batch of B examples with up to O sequences of up to T tokens.

    Returns:
        `input_ids` (B, O, T), `lengths` (B, O), 0 where an example has fewer sequences, `labels` (B,) and
        `sample_ids` (B,); all int64.
    """
    width = max(len(sequence) for _, example in examples for sequence in example.sequences)
    most = max(len(example.sequences) for _, example in examples)
    input_ids = torch.full((len(examples), most, width), pad_id)
    lengths = torch.zeros(len(examples), most, dtype=torch.int64)
    for row, (_, example) in enumerate(examples):
        for column, sequence in enumerate(example.sequences):
            input_ids[row, column, : len(sequence)] = torch.tensor(sequence)
            lengths[row, column] = len(sequence)
    return {
        "input_ids": input_ids,
        "lengths": lengths,
        "labels": torch.tensor([example.label for _, example in examples]),
        "sample_ids": torch.tensor([index for index, _ in examples]),
    }

"""Questions, pairs and tagged sentences as token ids: the sequences that fine-tuned models read, and their batches.

    choice    question [SEP] option [SEP]                                    one sequence an option
    verdict   <|CONTEXT|> context <|QUESTION|> question <|ANSWER|>
    pairs     source <|startoftext|> target <|endoftext|>
    tags      <|endoftext|> word word …                                      one sequence, or more of a long sentence

The first three are the formats of BioMedLM's published numbers (stanford-crfm/BioMedLM, finetune/). Sequences are
padded on the right with [PAD], an entry of its own: end-of-text has a meaning, and is learned where it is a target.
Special tokens come from these formats alone: `<|endoftext|>` or `[SEP]` in an example is text, as in the shards.

`tags`: each word is encoded by itself with a space before it, as in running text, so that it is known which tokens are
its own. Its tag is told at its last token, the first position from which a causal model sees the whole word; of what
follows it sees nothing. End-of-text comes first, as before a document in pre-training, so that the first word has
something to its left. A sentence that is longer than seq_len is read in windows cut between words: each word is tagged
in one of them, and all but the first window give half of their length to words that came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from data_prep.common.errors import BadInput
from data_prep.tasks.task_set import Pair, Question, Sentence
from recipes.finetuning.kinds import KINDS

PAD = "[PAD]"
# How texts are encoded: what looks like a special token in one is text.
AS_TEXT: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
NO_TAG = -100  # what cross entropy passes over: positions that no tag is told at

Batch = dict[str, torch.Tensor]


def add_tokens(tokenizer: Any, kind: str) -> None:
    """Add the tokens of a kind of task, and [PAD]; those that are there stay what they are."""
    tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": list(KINDS[kind].added_tokens)})
    tokenizer.padding_side = "right"


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        sequences: token ids, one sequence an option in `choice`, one a window in `tags`, one in all otherwise.
        label: index of the right option; in `pairs` the position of the target's first token.
        truncated: whether something was cut off to make it fit, or read in windows.
        tags: of `tags`, as long as the sequences: index of a word's tag at its last token, `NO_TAG` elsewhere.
    """

    sequences: tuple[tuple[int, ...], ...]
    label: int
    truncated: bool
    tags: tuple[tuple[int, ...], ...] = ()


class Encoder:
    """Encodes the examples of one kind of task.

    Args:
        tokenizer: with the tokens that `add_tokens` adds.
        kind: `choice`, `verdict`, `pairs` or `tags`.
        seq_len: the longest sequence, in tokens.
        labels: of `tags`, in the order of their numbers.
    """

    def __init__(self, tokenizer: Any, kind: str, seq_len: int, labels: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.seq_len = seq_len
        self.numbers = {label: number for number, label in enumerate(labels)}
        self.pad_id = int(tokenizer.pad_token_id)
        self._added = [int(tokenizer.convert_tokens_to_ids(token)) for token in KINDS[kind].added_tokens]

    def __call__(self, example: Question | Pair | Sentence) -> Encoded:
        """Encode one example.

        Raises:
            BadInput: what must not be cut (an option, a verdict's question, a target, a word) does not fit.
        """
        if isinstance(example, Sentence):
            return self._sentence(example)
        if isinstance(example, Pair):
            return self._pair(example)
        return self._choice(example) if self.kind == "choice" else self._verdict(example)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, **AS_TEXT)["input_ids"]

    def _room(self, tokens: int, what: str, where: str) -> int:
        """What is left of the sequence for the rest.

        Raises:
            BadInput: nothing.
        """
        if (room := self.seq_len - tokens) < 1:
            raise BadInput(f"{where}: its {what} takes {tokens} tokens, and seq_len = {self.seq_len}; raise seq_len")
        return room

    def _choice(self, question: Question) -> Encoded:
        (sep,) = self._added
        text = self._ids(question.text)
        sequences, truncated = [], False
        for option in question.options:
            end = [sep, *self._ids(f" {option}"), sep]
            room = self._room(len(end), f"option {option[:40]!r}", question.where)
            truncated |= len(text) > room
            sequences.append((*text[-room:], *end))  # what a question asks stands at its end
        return Encoded(tuple(sequences), question.answer, truncated)

    def _verdict(self, question: Question) -> Encoded:
        begin, ask, answer = self._added
        end = [ask, *self._ids(question.question), answer]
        room = self._room(len(end) + 1, "question", question.where)
        context = self._ids(question.context)
        return Encoded(((begin, *context[-room:], *end),), question.answer, len(context) > room)

    def _pair(self, pair: Pair) -> Encoded:
        target = [*self._ids(pair.target), self.tokenizer.eos_token_id]
        room = self._room(len(target) + 1, "target", pair.where)
        source, cut = self.source(pair, room)
        return Encoded(((*source, *target),), len(source), cut)

    def _sentence(self, sentence: Sentence) -> Encoded:
        spaced = [f" {word}" for word in sentence.words]
        words = self.tokenizer(spaced, **AS_TEXT)["input_ids"]
        for n, ids in enumerate(words):
            if not ids:
                raise BadInput(f"{sentence.where_of(n)}: the tokenizer makes no token of {sentence.words[n]!r}")
            self._room(len(ids), f"word {sentence.words[n][:40]!r}", sentence.where_of(n))
        sequences, tags, room, done = [], [], self.seq_len - 1, 0
        while done < len(words):
            first, end, used = done, done, 0
            while end < len(words) and (end == done or used + len(words[end]) <= (room // 2 if done else room)):
                used += len(words[end])
                end += 1
            while first > 0 and used + len(words[first - 1]) <= room:
                first -= 1
                used += len(words[first])
            sequence, told = [self.tokenizer.eos_token_id], [NO_TAG]
            for n in range(first, end):
                sequence += words[n]
                told += [NO_TAG] * (len(words[n]) - 1)
                told.append(self.numbers[sentence.tags[n]] if n >= done else NO_TAG)
            sequences.append(tuple(sequence))
            tags.append(tuple(told))
            done = end
        return Encoded(tuple(sequences), 0, len(sequences) > 1, tuple(tags))

    def source(self, pair: Pair, room: int) -> tuple[tuple[int, ...], bool]:
        """What is read before a target is written, its beginning if it is too long; and whether it is."""
        (start,) = self._added
        ids = self._ids(pair.source)
        return (*ids[:room], start), len(ids) > room


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
        `input_ids` (B, O, T), `lengths` (B, O), 0 where an example has fewer sequences, `labels` (B,), of `tags`
        (B, O, T), and `sample_ids` (B,); all int64.
    """
    width = max(len(sequence) for _, example in examples for sequence in example.sequences)
    most = max(len(example.sequences) for _, example in examples)
    input_ids = torch.full((len(examples), most, width), pad_id)
    lengths = torch.zeros(len(examples), most, dtype=torch.int64)
    labels = torch.tensor([example.label for _, example in examples])
    if examples[0][1].tags:
        labels = torch.full_like(input_ids, NO_TAG)
    for row, (_, example) in enumerate(examples):
        for column, sequence in enumerate(example.sequences):
            input_ids[row, column, : len(sequence)] = torch.tensor(sequence)
            lengths[row, column] = len(sequence)
        for column, tags in enumerate(example.tags):
            labels[row, column, : len(tags)] = torch.tensor(tags)
    return {
        "input_ids": input_ids,
        "lengths": lengths,
        "labels": labels,
        "sample_ids": torch.tensor([index for index, _ in examples]),
    }

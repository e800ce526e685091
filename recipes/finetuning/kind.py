"""The interface of a kind of task: everything in which fine-tuning differs between kinds.

A kind is a subclass of `Kind` in its own file (choice.py, verdict.py, pairs.py, tags.py), and a line in kinds.py. All
other code calls its methods. Plans also use kinds and must not import torch, so these files import it inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks.task_set import Example, Examples, TaskSet
from recipes.config.schema import FinetuneConfig

if TYPE_CHECKING:
    import torch
    from torchmetrics import Metric
    from transformers import GPT2Config, GPT2LMHeadModel

    Batch = dict[str, torch.Tensor]

PAD = "[PAD]"
# How texts are encoded: text that looks like a special token is encoded as text.
AS_TEXT: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}

# Beginning of the example code on the card of a model with a head.
LOADING_CODE = """\
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Model

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = GPT2Model.from_pretrained(folder).eval()
head = load_file(f"{folder}/head.safetensors")["weight"]
"""


@dataclass(frozen=True)
class Encoded:
    """An encoded example.

    Attributes:
        sequences: token ids of one or several sequences, depending on the kind.
        label: right answer, in the form that the kind's `collate_labels` reads.
        truncated: whether the example was too long, and so was cut or divided into windows.
    """

    sequences: tuple[tuple[int, ...], ...]
    label: Any
    truncated: bool


class Encoder:
    """Encodes the examples of one kind of task.

    Sequences are padded on the right with [PAD], a separate entry of the tokenizer, because end-of-text has a meaning
    and may be a target. Only the kind's format adds special tokens: `<|endoftext|>` or `[SEP]` in an example is encoded
    as text, as in the shards.

    Args:
        tokenizer: tokenizer with the tokens that `Kind.add_tokens` adds.
        kind: kind of the task.
        seq_len: longest sequence, in tokens.
        labels: labels of the head's rows, in their order; empty if the rows have no labels.

    Attributes:
        added: ids of the kind's own tokens, in their order.
        numbers: label -> its index.
    """

    def __init__(self, tokenizer: Any, kind: Kind, seq_len: int, labels: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.seq_len = seq_len
        self.labels = tuple(labels)
        self.numbers = {label: number for number, label in enumerate(labels)}
        self.pad_id = int(tokenizer.pad_token_id)
        self.added = [int(tokenizer.convert_tokens_to_ids(token)) for token in kind.added_tokens]

    def __call__(self, example: Example) -> Encoded:
        """Encode one example.

        Raises:
            BadInput: a part that must not be cut (an option, the question of a verdict, a target, a word) does not fit.
        """
        return self.kind.encode(example, self)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self.tokenizer(text, **AS_TEXT)["input_ids"]

    def room(self, tokens: int, what: str, where: str) -> int:
        """Number of tokens that are left in a sequence after a part that must not be cut.

        Args:
            tokens: number of tokens of that part.
            what: name of that part, for the message.
            where: file and line of the example, for the message.

        Raises:
            BadInput: no token is left.
        """
        if (room := self.seq_len - tokens) < 1:
            raise BadInput(f"{where}: its {what} takes {tokens} tokens, but seq_len = {self.seq_len}; raise seq_len")
        return room

    def collate(self, examples: Sequence[tuple[int, Encoded]]) -> Batch:
        """Make a batch of B examples, given with their numbers, with at most O sequences of at most T tokens.

        Returns:
            `input_ids` (B, O, T); `lengths` (B, O), which are 0 for missing sequences; `labels` in the kind's form,
            with one row for each example; and `sample_ids` (B,).
        """
        import torch

        encoded = [example for _, example in examples]
        width = max(len(sequence) for example in encoded for sequence in example.sequences)
        most = max(len(example.sequences) for example in encoded)
        input_ids = torch.full((len(examples), most, width), self.pad_id)
        lengths = torch.zeros(len(examples), most, dtype=torch.int64)
        for row, example in enumerate(encoded):
            for column, sequence in enumerate(example.sequences):
                input_ids[row, column, : len(sequence)] = torch.tensor(sequence)
                lengths[row, column] = len(sequence)
        return {
            "input_ids": input_ids,
            "lengths": lengths,
            "labels": self.kind.collate_labels(encoded, input_ids),
            "sample_ids": torch.tensor([index for index, _ in examples]),
        }


class Kind(ABC):
    """A kind of task. It holds no state.

    Attributes:
        added_tokens: special tokens of the kind, in addition to those of pre-training and [PAD].
        loss_unit: unit of the loss, wherever it is printed or drawn.
        metric: name of the score by which runs are compared. It lies between 0 and 1; 1 is best.
        dev_metric: name of the metric that is logged at each evaluation on dev, computed by `judge` and `add`.
        pipeline_tag: the Hugging Face hub's name of the task.
        does: for the card: what a model does that was tuned on the task.
        card_code: for the card: example code, a Jinja template with the fields `head` (a TaskHead) and `max_length`.
        sequences: largest number of sequences of an example, for the plan of memory.
        if_too_long: for messages: what happens to an example that is longer than a sequence.
        forms: forms of prompts for a base model (recipes/evaluation/prompts.py); empty if a base model is not scored.
        target_start: token after which the model writes its answer; empty if the head chooses an answer.
    """

    added_tokens: ClassVar[tuple[str, ...]]
    loss_unit: ClassVar[str]
    metric: ClassVar[str]
    dev_metric: ClassVar[str]
    pipeline_tag: ClassVar[str]
    does: ClassVar[str]
    card_code: ClassVar[str]
    sequences: ClassVar[int] = 1
    if_too_long: ClassVar[str] = "were cut"
    forms: ClassVar[tuple[str, ...]] = ()
    target_start: ClassVar[str] = ""

    def add_tokens(self, tokenizer: Any) -> None:
        """Add [PAD] and the tokens of this kind to a tokenizer. Existing tokens keep their ids."""
        tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": list(self.added_tokens)})
        tokenizer.padding_side = "right"

    def labels(self, task: TaskSet) -> tuple[str, ...]:
        """Labels of the head's rows, in their order; empty if the rows have no labels."""
        return ()

    def other_answers(self, task: TaskSet, labels: Sequence[str]) -> str:
        """How the answers in the scored split differ from the labels of a model; empty if they do not."""
        return ""

    @abstractmethod
    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """Encode an example as sequences and its right answer.

        Raises:
            BadInput: a part that must not be cut does not fit.
        """

    def collate_labels(self, examples: Sequence[Encoded], input_ids: torch.Tensor) -> torch.Tensor:
        """Right answers of a batch, one row for each example.

        Args:
            examples: examples of the batch.
            input_ids: token ids of the batch, (B, O, T).
        """
        import torch

        return torch.tensor([example.label for example in examples])

    @abstractmethod
    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> torch.nn.Module | None:
        """Make a head with random weights; None if the language model itself writes the answer."""

    @abstractmethod
    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """Compute the model's answers to a batch in fp32, one row for each example, for the loss and for predictions.

        Args:
            gpt2: model that returns its last hidden states for `hidden_alone=True`.
            head: head that `new_head` made.
            batch: batch that `Encoder.collate` made.
        """

    @abstractmethod
    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean loss over examples, which does not depend on how they are divided into microbatches and padded."""

    @abstractmethod
    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """Judge the answers, one row for each example. `add` computes `dev_metric` from the result."""

    def add(self, metric: Metric, judged: torch.Tensor) -> None:
        """Add the results of `judge` for a batch to a MeanMetric."""
        metric.update(judged)

    @abstractmethod
    def predict(
        self, gpt2: GPT2LMHeadModel, head: Any, encoder: Encoder, examples: Examples, cfg: FinetuneConfig
    ) -> list[JsonDict]:
        """Return the model's answers to examples.

        Returns:
            For each example its `id` and `cut`, whether it was too long. Each further value that is a float is a score
            of this example, whose mean is reported in percent.
        """


class KindWithHead(Kind):
    """A kind of task with a head: a linear layer without bias on hidden states."""

    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> torch.nn.Module:
        """Make a head with one row for each label, or a single row if there are no labels."""
        from torch import nn

        head = nn.Linear(config.n_embd, len(labels) or 1, bias=False)
        nn.init.normal_(head.weight, std=config.initializer_range)
        return head

    @abstractmethod
    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """Return the values for one example that `predict` adds to `id` and `cut`.

        Args:
            example: the example.
            answers: row of the example in `answers`.
            right: row of the example in the batch's labels.
            labels: labels of the head's rows.
        """

    def predict(
        self, gpt2: GPT2LMHeadModel, head: Any, encoder: Encoder, examples: Examples, cfg: FinetuneConfig
    ) -> list[JsonDict]:
        """Predict as in `Kind.predict`, in batches."""
        import torch
        from tqdm import tqdm

        records, device = [], gpt2.device
        bar = tqdm(total=len(examples), desc="predict", unit=" examples", disable=None)
        for begin in range(0, len(examples), cfg.device_eval_batch_size):
            part = examples[begin : begin + cfg.device_eval_batch_size]
            encoded = [encoder(example) for example in part]
            batch = encoder.collate(list(enumerate(encoded)))
            with torch.no_grad():
                given = self.answers(gpt2, head, {name: values.to(device) for name, values in batch.items()})
            for example, one, answers, right in zip(part, encoded, given.cpu(), batch["labels"], strict=True):
                about = {"id": example.id, "cut": one.truncated}
                records.append({**about, **self.record(example, answers, right, encoder.labels)})
            bar.update(len(part))
        bar.close()
        return records


def last_hidden(gpt2: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
    """(B · O, n_embd): the hidden state of the last real token of each sequence, after the last LayerNorm.

    Padding is on the right, where causal attention of real tokens does not see it, so no mask is needed.
    """
    import torch

    hidden = gpt2(input_ids=batch["input_ids"].flatten(0, 1), use_cache=False, hidden_alone=True)
    last = (batch["lengths"].flatten() - 1).clamp(min=0)
    return hidden[torch.arange(len(last), device=last.device), last]

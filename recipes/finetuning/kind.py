"""What a kind of task is: all in which fine-tuning on one kind differs from fine-tuning on another.

A kind is a file with a class of `Kind` (choice.py, verdict.py, pairs.py, tags.py) and a line in kinds.py; everything
else asks the kind. A plan asks too, and imports no torch: so these files import it where they compute.
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
# How texts are encoded: what looks like a special token in one is text.
AS_TEXT: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}

# How the code of a card begins where there is a head.
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
    """One example.

    Attributes:
        sequences: token ids: of several sequences where a kind reads an example in several.
        label: what is right, as the kind's `collate_labels` takes it.
        truncated: whether something was cut off to make it fit, or read in windows.
    """

    sequences: tuple[tuple[int, ...], ...]
    label: Any
    truncated: bool


class Encoder:
    """Encodes the examples of one kind of task.

    Sequences are padded on the right with [PAD], an entry of its own: end-of-text has a meaning, and is learned where
    it is a target. Special tokens come from a kind's format alone: `<|endoftext|>` or `[SEP]` in an example is text, as
    in the shards.

    Args:
        tokenizer: with the tokens that `Kind.add_tokens` adds.
        kind: kind of the task.
        seq_len: the longest sequence, in tokens.
        labels: labels of the head's rows, in their order; empty where they stand for none.

    Attributes:
        added: ids of the kind's own tokens, in their order.
        numbers: label -> its place.
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
            BadInput: what must not be cut (an option, a verdict's question, a target, a word) does not fit.
        """
        return self.kind.encode(example, self)

    def ids(self, text: str) -> list[int]:
        """A text's tokens, without any special one."""
        return self.tokenizer(text, **AS_TEXT)["input_ids"]

    def room(self, tokens: int, what: str, where: str) -> int:
        """What is left of the sequence for the rest.

        Args:
            tokens: that must not be cut.
            what: they are of.
            where: file and line.

        Raises:
            BadInput: nothing is left.
        """
        if (room := self.seq_len - tokens) < 1:
            raise BadInput(f"{where}: its {what} takes {tokens} tokens, and seq_len = {self.seq_len}; raise seq_len")
        return room

    def collate(self, examples: Sequence[tuple[int, Encoded]]) -> Batch:
        """A batch of B examples, given with their numbers, with up to O sequences of up to T tokens.

        Returns:
            `input_ids` (B, O, T), `lengths` (B, O), 0 where an example has fewer sequences, `labels` as the kind has
            them, a row an example, and `sample_ids` (B,).
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
    """A kind of task; it holds no state.

    Attributes:
        added_tokens: entries of the tokenizer beside those of pre-training and [PAD].
        loss_unit: what the loss is a mean over, wherever it is printed or drawn.
        metric: name of the score that runs are compared by, of those that predictions get: a share, the best is 1.
        dev_metric: name of what is logged at each evaluation of dev, the mean of `judge`.
        pipeline_tag: what the Hugging Face hub calls it.
        does: what a model does that was tuned on it, as its card says.
        card_code: the card's example of use, a Jinja template that is given `head` (a TaskHead) and `max_length`.
        sequences: number of sequences that an example takes at most, by which the memory is planned.
        if_too_long: what becomes of an example that is longer than a sequence.
        forms: in which a base model is asked (recipes/evaluation/prompts.py); none where it has no score.
        target_start: the token behind which the model writes its answer; empty where it chooses one by its head.
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
        """Add this kind's tokens to a tokenizer, and [PAD]; those that are there stay what they are."""
        tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": list(self.added_tokens)})
        tokenizer.padding_side = "right"

    def labels(self, task: TaskSet) -> tuple[str, ...]:
        """What the rows of the head stand for, in their order; empty where they stand for nothing of the set's."""
        return ()

    def other_answers(self, task: TaskSet, labels: Sequence[str]) -> str:
        """In what the scored split's answers are others than those of a model with these labels; empty: in nothing."""
        return ""

    @abstractmethod
    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """The sequences of an example and what is right.

        Raises:
            BadInput: what must not be cut does not fit.
        """

    def collate_labels(self, examples: Sequence[Encoded], input_ids: torch.Tensor) -> torch.Tensor:
        """What is right, a row an example.

        Args:
            examples: of one batch.
            input_ids: (B, O, T) their tokens.
        """
        import torch

        return torch.tensor([example.label for example in examples])

    @abstractmethod
    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> torch.nn.Module | None:
        """What is learned beside the model, drawn at random; None: the language model itself is what answers."""

    @abstractmethod
    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """What the model makes of a batch, a row an example, in fp32: what loss and predictions are computed of.

        Args:
            gpt2: which gives the last hidden states for `hidden_alone=True`.
            head: of `new_head`.
            batch: of `Encoder.collate`.
        """

    @abstractmethod
    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """A mean over examples, so that it does not depend on how they are split and padded."""

    @abstractmethod
    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """A row an example: what `dev_metric` is made of by `add`."""

    def add(self, metric: Metric, judged: torch.Tensor) -> None:
        """Add what `judge` found in a batch to a MeanMetric."""
        metric.update(judged)

    @abstractmethod
    def predict(
        self, gpt2: GPT2LMHeadModel, head: Any, encoder: Encoder, examples: Examples, cfg: FinetuneConfig
    ) -> list[JsonDict]:
        """What the model answers to each example.

        Returns:
            For each its `id`, and `cut`, whether it was too long to be read; each further value that is a float is a
            score of this example, of which the mean is told in percent.
        """


class KindWithHead(Kind):
    """A kind that is answered by a linear map without bias on hidden states."""

    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> torch.nn.Module:
        """A row a label, or one where there are none."""
        from torch import nn

        head = nn.Linear(config.n_embd, len(labels) or 1, bias=False)
        nn.init.normal_(head.weight, std=config.initializer_range)
        return head

    @abstractmethod
    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """What is told of one example, beside `id` and `cut`: as in `predict`.

        Args:
            example: that was asked.
            answers: its row of `answers`.
            right: its row of the batch's labels.
            labels: of the head's rows.
        """

    def predict(
        self, gpt2: GPT2LMHeadModel, head: Any, encoder: Encoder, examples: Examples, cfg: FinetuneConfig
    ) -> list[JsonDict]:
        """As `Kind.predict`: the examples are read in batches."""
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

    Padding is on the right, so causal attention keeps it from every real token, and no mask is needed.
    """
    import torch

    hidden = gpt2(input_ids=batch["input_ids"].flatten(0, 1), use_cache=False, hidden_alone=True)
    last = (batch["lengths"].flatten() - 1).clamp(min=0)
    return hidden[torch.arange(len(last), device=last.device), last]

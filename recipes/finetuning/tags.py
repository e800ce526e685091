"""A tag for each word of a sentence: `<|endoftext|> word word …`, one sequence, or more of a long sentence.

Each word is encoded by itself with a space before it, as in running text, so that it is known which tokens are its own.
Its tag is told at its last token, the first position from which a causal model sees the whole word; of what follows it
sees nothing. End-of-text comes first, as before a document in pre-training, so that the first word has something to its
left. A sentence that is longer than seq_len is read in windows cut between words: each word is tagged in one of them,
and all but the first window give half of their length to words that came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks import token_classification
from data_prep.tasks.task_set import Example, Sentence, TaskSet
from recipes.finetuning.kind import AS_TEXT, LOADING_CODE, Encoded, Encoder, KindWithHead

if TYPE_CHECKING:
    import torch
    from torchmetrics import Metric
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.kind import Batch

NO_TAG = -100  # what cross entropy passes over: positions that no tag is told at
CARD_CODE = (
    LOADING_CODE
    + """\
labels = {{ head.labels | list | tojson }}
words = ["Aspirin", "inhibits", "COX-1"]
ids, last_tokens = [tokenizer.eos_token_id], []
for word in words:
    ids += tokenizer(f" {word}")["input_ids"]
    last_tokens.append(len(ids) - 1)
with torch.no_grad():
    scores = model(torch.tensor([ids])).last_hidden_state[0, last_tokens] @ head.T
print([labels[n] for n in scores.argmax(-1)])
"""
)


class Tags(KindWithHead):
    """Tagged sentences; `label` is as long as the sequences: a tag's index at the last token of its word, else NO_TAG.

    The head gives a score a tag at each position.
    """

    added_tokens = ()
    loss_unit = "nats/word"
    metric = "f1"
    dev_metric = "F1"
    if_too_long = "are read in windows"
    pipeline_tag = "token-classification"
    does = "tags the words of a sentence"
    card_code = CARD_CODE

    def labels(self, task: TaskSet) -> tuple[str, ...]:
        """The tags that train makes possible."""
        return token_classification.labels(task.sentences("train"))

    def other_answers(self, task: TaskSet, labels: Sequence[str]) -> str:
        """The first tag that is none of the model's."""
        for sentence in task.sentences(task.scored):
            if unknown := sorted({*sentence.tags} - {*labels}):
                return f"whose tags are {', '.join(labels)}; {sentence.where} has {unknown[0]}"
        return ""

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """A sequence, or several windows.

        Raises:
            BadInput: a word does not fit, or the tokenizer makes no token of it.
        """
        assert isinstance(example, Sentence)
        spaced = [f" {word}" for word in example.words]
        words = encoder.tokenizer(spaced, **AS_TEXT)["input_ids"]
        for n, ids in enumerate(words):
            if not ids:
                raise BadInput(f"{example.where_of(n)}: the tokenizer makes no token of {example.words[n]!r}")
            encoder.room(len(ids), f"word {example.words[n][:40]!r}", example.where_of(n))
        sequences, tags, room, done = [], [], encoder.seq_len - 1, 0
        while done < len(words):
            first, end, used = done, done, 0
            while end < len(words) and (end == done or used + len(words[end]) <= (room // 2 if done else room)):
                used += len(words[end])
                end += 1
            while first > 0 and used + len(words[first - 1]) <= room:
                first -= 1
                used += len(words[first])
            sequence, labels = [encoder.tokenizer.eos_token_id], [NO_TAG]
            for n in range(first, end):
                sequence += words[n]
                labels += [NO_TAG] * (len(words[n]) - 1)
                labels.append(encoder.numbers[example.tags[n]] if n >= done else NO_TAG)
            sequences.append(tuple(sequence))
            tags.append(tuple(labels))
            done = end
        return Encoded(tuple(sequences), tuple(tags), len(sequences) > 1)

    def collate_labels(self, examples: Sequence[Encoded], input_ids: torch.Tensor) -> torch.Tensor:
        """(B, O, T)."""
        import torch

        labels = torch.full_like(input_ids, NO_TAG)
        for row, example in enumerate(examples):
            for column, tags in enumerate(example.label):
                labels[row, column, : len(tags)] = torch.tensor(tags)
        return labels

    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """(B, O, T, labels) logits."""
        hidden = gpt2(input_ids=batch["input_ids"].flatten(0, 1), use_cache=False, hidden_alone=True)
        return head(hidden).float().unflatten(0, batch["lengths"].shape)

    def losses(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B,): mean cross entropy, in nats a word, of each sentence."""
        import torch.nn.functional as F

        labels = batch["labels"]
        nats = F.cross_entropy(answers.flatten(0, 2), labels.flatten(), ignore_index=NO_TAG, reduction="none")
        return nats.view_as(labels).sum((1, 2)) / (labels != NO_TAG).sum((1, 2))

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean over sentences."""
        return self.losses(answers, batch).mean()

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """(B, 2): of each sentence what F1 = Σ above / Σ below is made of."""
        import torch

        sums = []
        for scores, right_tags in zip(answers.cpu(), batch["labels"].cpu(), strict=True):
            given, right = tagged(scores, right_tags, labels)
            counts = entities(right, given, labels).values()
            sums.append((2 * sum(n[0] for n in counts), sum(n[1] + n[2] for n in counts)))
        return torch.tensor(sums, dtype=torch.float32, device=batch["labels"].device)

    def add(self, metric: Metric, judged: torch.Tensor) -> None:
        """As a mean of ratios, each with what is below it as its weight."""
        above, below = judged.T
        metric.update(above / below.clamp(min=1), below)

    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """`words`, `tags` as the model gives them, `right`, and `entities`: of each type, found exactly, given, there.

        recipes/scoring/bootstrap.py makes precision, recall and F1 of `entities`.
        """
        assert isinstance(example, Sentence)
        given, wanted = tagged(answers, right, labels)
        record = {"words": example.words, "tags": given, "right": wanted}
        return {**record, "entities": entities(wanted, given, labels)}


def tagged(scores: torch.Tensor, right_tags: torch.Tensor, labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tags of one sentence's words, in their order: those that its scores give, and the right ones.

    Args:
        scores: (O, T, labels) of its windows.
        right_tags: (O, T) indices of the right tags, at the positions that have one.
        labels: the tags.
    """
    where = right_tags != NO_TAG
    given, right = scores.argmax(-1)[where].tolist(), right_tags[where].tolist()
    return [labels[int(n)] for n in given], [labels[int(n)] for n in right]


def entities(right: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> dict[str, list[int]]:
    """For each type of a sentence's entities: found exactly, given, there; by the scheme that the labels are of."""
    scheme = token_classification.scheme_of(dict.fromkeys(labels, "the model's labels"))
    return token_classification.count(right, given, scheme)

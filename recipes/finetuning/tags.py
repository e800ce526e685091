"""A tag for each word of a sentence: `<|endoftext|> word word …`, as one sequence, or several for a long sentence.

Each word is encoded separately, with a space before it as in running text, so that its tokens are known. The tag of a
word is predicted at its last token, which is the first position where a causal model sees the whole word; the model
does not see the words that follow. The sequence starts with end-of-text, like a document in pre-training, so that the
first word also has a token before it. A sentence longer than seq_len is read in windows, which are cut between words.
Each word is tagged in one window; in all windows but the first, half of the length is for the words before.
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

NO_TAG = -100  # label of positions without a tag, which cross entropy ignores
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
    """Tagged sentences. `label` has the index of the tag at the last token of each word, and NO_TAG elsewhere.

    The head gives each tag a score at each position.
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
        """The tags that occur in train, or that follow from its tagging scheme."""
        return token_classification.labels(task.sentences("train"))

    def other_answers(self, task: TaskSet, labels: Sequence[str]) -> str:
        """A text that names the first tag which the model does not know; otherwise empty."""
        for sentence in task.sentences(task.scored):
            if unknown := sorted({*sentence.tags} - {*labels}):
                return f"whose tags are {', '.join(labels)}; {sentence.where} has {unknown[0]}"
        return ""

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """Make one sequence, or several windows of a long sentence.

        Raises:
            BadInput: a word does not fit, or the tokenizer gives no token for it.
        """
        assert isinstance(example, Sentence)
        spaced = [f" {word}" for word in example.words]
        words = encoder.tokenizer(spaced, **AS_TEXT)["input_ids"]
        for n, ids in enumerate(words):
            if not ids:
                raise BadInput(f"{example.where_of(n)}: the tokenizer gives no token for {example.words[n]!r}")
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
        """Index of the tag at each position, (B, O, T); NO_TAG where there is none."""
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
        """(B,): mean cross entropy of each sentence, in nats per word."""
        import torch.nn.functional as F

        labels = batch["labels"]
        nats = F.cross_entropy(answers.flatten(0, 2), labels.flatten(), ignore_index=NO_TAG, reduction="none")
        return nats.view_as(labels).sum((1, 2)) / (labels != NO_TAG).sum((1, 2))

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean over sentences."""
        return self.losses(answers, batch).mean()

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """(B, 2): numerator and denominator of F1 for each sentence, which are summed over sentences."""
        import torch

        sums = []
        for scores, right_tags in zip(answers.cpu(), batch["labels"].cpu(), strict=True):
            given, right = tagged(scores, right_tags, labels)
            counts = entities(right, given, labels).values()
            sums.append((2 * sum(n[0] for n in counts), sum(n[1] + n[2] for n in counts)))
        return torch.tensor(sums, dtype=torch.float32, device=batch["labels"].device)

    def add(self, metric: Metric, judged: torch.Tensor) -> None:
        """Add numerators and denominators to a MeanMetric, as ratios weighted by their denominators."""
        above, below = judged.T
        metric.update(above / below.clamp(min=1), below)

    def record(self, example: Example, answers: torch.Tensor, right: torch.Tensor, labels: Sequence[str]) -> JsonDict:
        """Return `words`; `tags` of the model; `right`, the right tags; and `entities`, counts for each type.

        The counts are those of correct, predicted and true entities. recipes/scoring/bootstrap.py computes precision,
        recall and F1 from them.
        """
        assert isinstance(example, Sentence)
        given, wanted = tagged(answers, right, labels)
        record = {"words": example.words, "tags": given, "right": wanted}
        return {**record, "entities": entities(wanted, given, labels)}


def tagged(scores: torch.Tensor, right_tags: torch.Tensor, labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the predicted tags and the right tags of one sentence's words, in their order.

    Args:
        scores: scores of the windows of the sentence, (O, T, labels).
        right_tags: index of the right tag at each position, (O, T); NO_TAG where there is none.
        labels: all tags.
    """
    where = right_tags != NO_TAG
    given, right = scores.argmax(-1)[where].tolist(), right_tags[where].tolist()
    return [labels[int(n)] for n in given], [labels[int(n)] for n in right]


def entities(right: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> dict[str, list[int]]:
    """Count the entities of a sentence by type, in the scheme of the labels: correct, predicted and true entities."""
    scheme = token_classification.scheme_of(dict.fromkeys(labels, "the model's labels"))
    return token_classification.count(right, given, scheme)

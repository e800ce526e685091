"""The kinds of task, one table: what differs from kind to kind and is no computation."""

from __future__ import annotations

from dataclasses import dataclass

SEP, START = "[SEP]", "<|startoftext|>"
CONTEXT, QUESTION, ANSWER = "<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>"


@dataclass(frozen=True)
class Kind:
    """What a kind of task is trained and judged by.

    Attributes:
        added_tokens: entries of the tokenizer beside those of pre-training and [PAD].
        loss_unit: what the loss is a mean over, wherever it is printed or drawn.
        metric: name of the score that is best, of those that predictions get.
        dev_metric: name of what is logged at each evaluation of dev.
        sequences: that an example takes at most, where it is read whole.
        if_too_long: what becomes of an example that is longer than a sequence.
    """

    added_tokens: tuple[str, ...]
    loss_unit: str
    metric: str
    dev_metric: str
    sequences: int = 1
    if_too_long: str = "were cut"


KINDS = {
    "choice": Kind((SEP,), "nats/question", "acc", "Accuracy", sequences=4),
    "verdict": Kind((CONTEXT, QUESTION, ANSWER), "nats/question", "acc", "Accuracy"),
    "pairs": Kind((START,), "nats/token", "rougeL", "TargetLoss"),
    "tags": Kind((), "nats/word", "f1", "F1", if_too_long="are read in windows"),
}

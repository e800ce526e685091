"""Examples for the tests that every kind of task must pass; a new kind adds an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.common.files import JsonDict
from data_prep.tasks.task_set import Example, Pair, Question, Sentence


@dataclass(frozen=True)
class Asked:
    """Examples of one kind.

    Attributes:
        of_card: the example in the code on the card.
        others: examples of other lengths.
        printed: from the record of `predict` for this example, the output of that code.
        labels: labels of the rows of the head.
    """

    of_card: Example
    others: tuple[Example, ...]
    printed: Callable[[JsonDict], str]
    labels: tuple[str, ...] = ()


def likeliest(*options: str) -> Callable[[JsonDict], str]:
    return lambda record: options[record["scores"].index(max(record["scores"]))]


VERDICTS, DRUGS = ("yes", "no", "maybe"), ("Aspirin", "Insulin")
THINS, HELPS = "Which of these thins the blood?", "Aspirin was given to 9 of 18."
ASKED: dict[str, Asked] = {
    "choice": Asked(
        Question("1", THINS, DRUGS, 0, ""),
        (Question("2", "Why?", ("so", "no", "cyt gen hep"), 1, ""), Question("3", "cyt gen ro?", DRUGS[::-1], 1, "")),
        likeliest(*DRUGS),
    ),
    "verdict": Asked(
        Question("1", "Does it help?", VERDICTS, 0, "", context=HELPS),
        (
            Question("2", "Why?", VERDICTS, 1, "", context="cyt"),
            Question("3", "Is it?", VERDICTS, 2, "", context=THINS),
        ),
        likeliest(*VERDICTS),
        VERDICTS,
    ),
    "pairs": Asked(
        Pair("1", "Aspirin", "x", ""),
        (Pair("2", HELPS, "Aspirin helps", ""), Pair("3", "cyt", THINS, "")),
        lambda record: record["text"],
    ),
    "tags": Asked(
        Sentence("1", ("Aspirin", "inhibits", "COX-1"), ("O", "O", "B-Gene"), "file 1"),
        (
            Sentence("2", ("cyt",), ("O",), "file 5"),
            Sentence("3", tuple(HELPS.split()), ("B-Gene", "I-Gene", *["O"] * 5), "file 7"),
        ),
        lambda record: str(record["tags"]),
        ("O", "B-Gene", "I-Gene"),
    ),
}

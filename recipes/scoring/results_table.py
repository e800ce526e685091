"""Scores with their uncertainty, and the table that sets them beside published ones."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100

# (task, subject): what was published, in percent, as BioMedLM's paper (arXiv 2403.18421) and model card collect it.
PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("medqa", ""): {
        "BioMedLM": 50.3,
        "BioMedLM, MedMCQA added": 54.7,
        "GPT-Neo 2.7B": 37.7,
        "Galactica 120B": 44.4,
        "BioLinkBERT": 45.1,
        "DRAGON": 47.5,
        "GPT-4": 81.4,
    },
    ("medmcqa", ""): {"BioMedLM": 57.3, "Galactica 120B": 52.9, "Flan-PaLM": 57.6, "GPT-4": 72.4},
    ("pubmedqa", ""): {
        "BioMedLM": 74.4,
        "GPT-Neo 2.7B": 66.1,
        "BioLinkBERT": 72.4,
        "BioGPT, extra data": 81.0,
    },
    ("bioasq", ""): {"BioMedLM": 95.7, "GPT-Neo 2.7B": 67.1, "BioLinkBERT": 94.9, "DRAGON": 96.4},
    ("mmlu", "clinical_knowledge"): {"BioMedLM": 59.6, "GPT-4": 86.4},
    ("mmlu", "professional_medicine"): {"BioMedLM": 63.1, "GPT-4": 93.8},
    ("mmlu", "college_biology"): {"BioMedLM": 60.7, "GPT-4": 93.8},
    ("mmlu", "medical_genetics"): {"BioMedLM": 69.0, "GPT-4": 92.0},
}


@dataclass(frozen=True)
class Score:
    """A mean, and the interval that holds 95 % of its bootstrap replicates.

    Attributes:
        value: the mean.
        low: 2.5th percentile.
        high: 97.5th percentile.
        n: how many values it is the mean of.
    """

    value: float
    low: float
    high: float
    n: int


def measures(records: Sequence[dict[str, Any]]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """What a fine-tuned model's predictions are scored by.

    Returns:
        For each name (n,) values and (n,) weights, one a record; the score is Σ values / Σ weights. Numbers of a
        record, such as `acc`, have the weight 1. Of `entities` precision, recall and f1 = 2 found / (given + there)
        over all types, seqeval's micro average; and f1 of each type that is there, if there are several.
    """
    ones = np.ones(len(records))
    numbers = [name for name, value in records[0].items() if isinstance(value, float)]
    measured = {name: (np.array([record[name] for record in records]), ones) for name in numbers}
    if "entities" in records[0]:
        kinds = sorted({kind for record in records for kind in record["entities"]})
        counts = np.zeros((len(kinds), 3, len(records)))
        for n, record in enumerate(records):
            for kind, count in record["entities"].items():
                counts[kinds.index(kind), :, n] = count
        found, given, there = counts.sum(0)
        measured |= {"f1": (2 * found, given + there), "precision": (found, given), "recall": (found, there)}
        held = [(kind, *count) for kind, count in zip(kinds, counts, strict=True) if count[2].any()]
        if len(held) > 1:
            measured |= {f"f1 of {kind}": (2 * found, given + there) for kind, found, given, there in held}
    return dict(sorted(measured.items()))


def ratio(tops: NDArray[np.float64], bottoms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sums over the last axis; 0 where nothing is below, as precision where no entity is given."""
    above, below = tops.sum(-1), bottoms.sum(-1)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    seed: int = 17,
) -> Score:
    """The mean of values, or the ratio Σ values / Σ weights, with its percentile bootstrap interval.

    Args:
        values: (n,) one a question, sentence or document; or (seeds, n), of which the mean over seeds is scored.
        weights: what each is divided by, of the same shape; None: 1.
        seed: of the resampling.
    """
    tops = np.atleast_2d(np.asarray(values, dtype=np.float64))
    bottoms = np.ones_like(tops) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    n = tops.shape[1]
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        index = draw.integers(n, size=(RESAMPLES_AT_ONCE, n))
        means.append(ratio(tops[:, index], bottoms[:, index]).mean(0))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Score(float(ratio(tops, bottoms).mean()), float(low), float(high), n)


def over_seeds(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[Score, NDArray[np.float64], float]:
    """A score over seeds: its mean with the bootstrap interval over questions, each seed's, their standard deviation.

    Args:
        values: (seeds, n) one a seed and question. The interval is of the mean over these seeds, for other questions
            of the kind; how far other seeds lie, the standard deviation tells.
        weights: (seeds, n) what each is divided by.
    """
    each = ratio(values, weights)
    return bootstrap(values, weights), each, float(each.std(ddof=1)) if len(each) > 1 else 0.0


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        task: the set, and the subject if it is of one.
        model: whose score it is.
        how: few-shot form, fine-tuned, …
        score: in percent, with its interval if it is ours.
        published: whether it is a number from the literature.
    """

    task: str
    model: str
    how: str
    score: str
    published: bool


def percent(score: Score) -> str:
    """`44.0 [39.6, 48.4], n = 500`."""
    return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}], n = {score.n:,}"


def published_rows(task: str, subject: str = "") -> list[Row]:
    """What the literature says of a task."""
    name = f"{task}: {subject}" if subject else task
    return [
        Row(name, model, "published", f"{score:.1f}", True)
        for model, score in PUBLISHED.get((task, subject), {}).items()
    ]


HEADER = ("task", "model", "how", "score, % [95 % interval]")
NOTE = (
    "Rows marked published are from the literature (arXiv 2403.18421 and what it cites), most of fine-tuned models; "
    "the others were computed here. Intervals: bootstrap over questions or sentences."
)


def to_markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown; published numbers are in italics."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|---|---|"]
    for row in rows:
        cells = (row.task, row.model, row.how, row.score)
        lines.append("| " + " | ".join(f"*{cell}*" if row.published else cell for cell in cells) + " |")
    return "\n".join([*lines, "", NOTE, ""])


def to_html(rows: Sequence[Row], title: str) -> str:
    """The table as a page of its own; published numbers are grey and in italics."""
    lines = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell)}" for cell in (row.task, row.model, row.how, row.score))
        lines.append(f"<tr{' class=published' if row.published else ''}>{cells}</tr>")
    head = "".join(f"<th>{name}" for name in HEADER)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<meta name=viewport content='width=device-width'>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{text-align:left;padding:.3rem 1.2rem .3rem 0;"
        "border-bottom:1px solid #d8dee8}.published{color:#5a6472;font-style:italic}</style>"
        f"<h1>{html.escape(title)}</h1><table><tr>{head}</tr>{''.join(lines)}</table><p>{html.escape(NOTE)}</p></html>\n"
    )

"""The table that sets scores beside published ones."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.scoring.bootstrap import Score

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
    """`44.0 [39.7, 48.4] Wilson, n = 500`."""
    ends = f"[{100 * score.low:.1f}, {100 * score.high:.1f}] {score.interval}"
    return f"{100 * score.value:.1f} {ends}, n = {score.n:,}"


def cut_of(cut: int, n: int) -> str:
    """What a table says of examples that did not fit the model; nothing where all of them did."""
    return f"{cut:,} of {n:,} cut" if cut else ""


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
    "the others were computed here. Intervals: Wilson's of proportions, each question right or wrong; bootstrap over "
    "questions or sentences of what is none. Cut: did not fit the model, and lost a part."
)


def to_markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown; published numbers are in italics."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|---|---|"]
    for row in rows:
        cells = (row.task, row.model, row.how, row.score)
        cells = tuple(cell.replace("|", "\\|") for cell in cells)
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

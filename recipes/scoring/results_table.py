"""The table that shows scores beside published scores."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.scoring.bootstrap import Score

# (task, subject) -> published scores, in percent, as collected in BioMedLM's paper (arXiv 2403.18421) and model card.
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
        task: question set, with its subject if it has one.
        model: name of the model.
        how: how the model was used, such as its few-shot form or fine-tuned.
        score: score in percent, with its interval if it was computed here.
        published: whether the score is from the literature.
    """

    task: str
    model: str
    how: str
    score: str
    published: bool


def percent(score: Score) -> str:
    """Write a score as `44.0 [39.7, 48.4] Wilson, n = 500`."""
    ends = f"[{100 * score.low:.1f}, {100 * score.high:.1f}] {score.interval}"
    return f"{100 * score.value:.1f} {ends}, n = {score.n:,}"


def cut_of(cut: int, n: int) -> str:
    """Note on examples that were cut because they did not fit the model; empty if all fitted."""
    return f"{cut:,} of {n:,} cut" if cut else ""


def published_rows(task: str, subject: str = "") -> list[Row]:
    """Rows of the scores that the literature reports for a task."""
    name = f"{task}: {subject}" if subject else task
    return [
        Row(name, model, "published", f"{score:.1f}", True)
        for model, score in PUBLISHED.get((task, subject), {}).items()
    ]


HEADER = ("task", "model", "how", "score, % [95 % interval]")
NOTE = (
    "Rows marked published are from the literature (arXiv 2403.18421 and its references), most of them of fine-tuned "
    "models; the others were computed here. Intervals: Wilson for proportions, where each answer is right or wrong; "
    "bootstrap over questions or sentences for other scores. Cut: examples that were too long for the model, and lost "
    "a part."
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
    """The table as an HTML page; published numbers are grey and in italics."""
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

"""The model card of a fine-tuned model: what it answers, how it is loaded, what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.files import JsonDict, read_json, write_text
from data_prep.tasks.task_set import Splits
from recipes.checkpointing.trained_model import Source
from recipes.config.schema import FinetuneConfig
from recipes.runs.model_card import CARD, LICENSE, PROMPT_TOKENS, commits, is_about_pubmed, render, stated_license
from recipes.runs.names import METRICS, RECORD
from recipes.runs.reading import EVAL, read_metrics

if TYPE_CHECKING:
    from recipes.finetuning.heads import TaskHead

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Kind of task -> what the hub calls it, and what the model does.
KINDS = {
    "choice": ("question-answering", "chooses among the options of a question"),
    "verdict": ("text-classification", "answers a question about a text with one of its labels"),
    "pairs": ("text-generation", "writes a target after a source"),
    "tags": ("token-classification", "tags the words of a sentence"),
}


def write_model_card(
    folder: Path, cfg: FinetuneConfig, source: Source, head: TaskHead, parts: Splits, facts: JsonDict
) -> None:
    """README.md of a fine-tuned model.

    Args:
        folder: the model's.
        cfg: the run's configuration.
        source: the base model.
        head: what the model is for.
        parts: the examples: how many were trained on.
        facts: of the model: `n_parameters`, `n_positions`, `dtype`; `batch` of its checkpoint; `difference` from the
            trained model's answers, as a share of the largest.
    """
    run = Path(cfg.run_dir)
    record = read_json(run / RECORD)
    pipeline_tag, answers = KINDS[head.kind]
    logged, batch = read_metrics(run / METRICS).metrics, facts["batch"]
    on_dev = {
        name.removeprefix(EVAL): values[batch]
        for name, values in logged.items()
        if name.startswith(EVAL) and batch in values
    }
    card = render(
        TEMPLATE,
        cfg=cfg,
        head=head,
        base=f"{source.run.name}, checkpoint {source.weights.name}" if source.run else source.weights.absolute().name,
        base_sha256=source.sha256,
        license=LICENSE if source.run else stated_license(source.weights),
        about_pubmed=bool(source.run) and is_about_pubmed(read_json(source.run / RECORD)),
        pipeline_tag=pipeline_tag,
        answers=answers,
        examples={split: len(part) for split, part in parts.items()},
        plan=record["plan"],
        on_dev=on_dev,
        commits=commits(record),
        max_length=min(PROMPT_TOKENS, head.seq_len),
        **facts,
    )
    write_text(folder / CARD, card)

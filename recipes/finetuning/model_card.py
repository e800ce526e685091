"""The model card of a fine-tuned model: its task, how to load it, and how it was trained."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.files import JsonDict, write_text
from data_prep.tasks.task_set import Splits
from recipes.checkpointing.trained_model import Source
from recipes.config.schema import FinetuneConfig
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import TaskHead
from recipes.runs.card_metadata import metadata
from recipes.runs.model_card import (
    CARD,
    LICENSE,
    PROMPT_TOKENS,
    commits,
    is_about_pubmed,
    render,
    render_text,
    stated_license,
)
from recipes.runs.names import METRICS, RECORD
from recipes.runs.reading import EVAL, read_metrics
from recipes.runs.record import read_told_record
from recipes.runs.spent import spent

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def write_model_card(
    folder: Path, cfg: FinetuneConfig, source: Source, head: TaskHead, parts: Splits, facts: JsonDict
) -> None:
    """Write README.md of a fine-tuned model.

    Args:
        folder: folder of the model.
        cfg: configuration of the run.
        source: the base model.
        head: task of the model.
        parts: examples of each split.
        facts: facts of the model: `n_parameters`, `n_positions`, `dtype`; `batch` of its checkpoint; `difference` from
            the trained model's answers, as a share of the largest answer.
    """
    run = Path(cfg.run_dir)
    record = read_told_record(run / RECORD)
    kind = KINDS[head.kind]
    logged, batch = read_metrics(run / METRICS).metrics, facts["batch"]
    on_dev = {
        name.removeprefix(EVAL): values[batch]
        for name, values in logged.items()
        if name.startswith(EVAL) and batch in values
    }
    license = LICENSE if source.run else stated_license(source.weights)
    about_pubmed = bool(source.run) and is_about_pubmed(read_told_record(source.run / RECORD))
    card = render(
        TEMPLATE,
        metadata=metadata(license, kind.pipeline_tag, about_pubmed),
        cfg=cfg,
        head=head,
        base=f"{source.run.name}, checkpoint {source.weights.name}" if source.run else source.weights.absolute().name,
        base_sha256=source.sha256,
        license=license,
        about_pubmed=about_pubmed,
        answers=kind.does,
        code=render_text(kind.card_code, head=head, max_length=min(PROMPT_TOKENS, head.seq_len)),
        examples={split: len(part) for split, part in parts.items()},
        plan=record["plan"],
        on_dev=on_dev,
        commits=commits(record),
        spent=spent(run / METRICS, batch),
        **facts,
    )
    write_text(folder / CARD, card)

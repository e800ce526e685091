"""The model card of an exported model: what its run was, intended use and limits, licence."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.files import JsonDict, read_json
from recipes.config.loading import load_recorded_config
from recipes.runs.logged_lines import read_lines
from recipes.runs.names import CONFIG, METRICS, RECORD
from recipes.runs.reading import EVAL_BITS

CARD = Path(__file__).with_name("model_card.md.jinja")


def write_model_card(
    folder: Path, weights: Path, run: Path | None, differences: dict[str, float], dtype: str, n_parameters: int
) -> None:
    """README.md of the model: the run's facts, intended use and limits, licence.

    Args:
        folder: the exported model's.
        weights: the checkpoint or model folder that was exported.
        run: the run folder of the checkpoint; None for a model folder.
        differences: attention backend -> largest difference of logits, as a share of the largest.
        dtype: of the exported weights.
        n_parameters: of the model.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    facts: JsonDict = {"run": None}
    if run:
        facts = {
            "run": read_json(run / RECORD),
            "cfg": load_recorded_config(run / CONFIG),
            "evaluation": last_evaluation(run / METRICS),
        }
    environment = Environment(loader=FileSystemLoader(CARD.parent), undefined=StrictUndefined, trim_blocks=True)
    card = environment.get_template(CARD.name).render(
        checkpoint=weights.name, differences=differences, dtype=dtype, n_parameters=n_parameters, **facts
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def last_evaluation(metrics: Path) -> JsonDict | None:
    """The line of the last evaluation in a metrics.jsonl, None if there was none."""
    found = None
    for line in read_lines(metrics):
        if EVAL_BITS in line:
            found = line
    return found

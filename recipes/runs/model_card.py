"""The model card of an exported model: its run, how to load it, scores, intended use, limits and licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError, safe_load

from data_prep.common.files import JsonDict, write_text
from data_prep.sources.document import ABSTRACTS, ARTICLES
from recipes.config.loading import load_recorded_config
from recipes.runs.card_metadata import emissions, metadata, model_index
from recipes.runs.mixed_data import mixed_in, text_of
from recipes.runs.names import CONFIG, METRICS, RECORD
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS, changed_settings, hardware, read_metrics
from recipes.runs.record import read_told_record
from recipes.runs.spent import Spent, spent

if TYPE_CHECKING:
    from jinja2 import Environment

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LICENSE = "bigscience-bloom-rail-1.0"  # licence of weights that this recipe trains, the same as BioMedLM's
PROMPT_TOKENS = 50  # largest number of tokens in the card's example, prompt included


@dataclass(frozen=True)
class Stated:
    """Facts for the card that the user states, because no record holds them.

    Attributes:
        base_model: `owner/name` on the hub of the model that training began with.
        device_watts: watts that one device and its share of the machine took, cooling included.
        grid_g_per_kwh: grams of CO2-equivalent for each kWh of the grid.
    """

    base_model: str | None = None
    device_watts: float | None = None
    grid_g_per_kwh: float | None = None


NOTHING_STATED = Stated()


def write_model_card(
    folder: Path,
    weights: Path,
    run: Path | None,
    batch: int,
    differences: Mapping[str, float],
    facts: Mapping[str, Any],
    stated: Stated = NOTHING_STATED,
    scores: Sequence[JsonDict] = (),
) -> None:
    """Write README.md of the model: head for the hub, facts of the run, loading, scores, use, limits and licence.

    Args:
        folder: folder of the exported model.
        weights: checkpoint or model folder that was exported.
        run: run folder of the checkpoint; None for a model folder.
        batch: batch of the checkpoint; 0 for a model folder.
        differences: attention backend -> largest difference of logits, as a share of the largest logit.
        facts: facts of the model: `dtype`, `n_parameters`, `n_positions`, `tied` (embedding and head are one weight).
        stated: facts that the user states.
        scores: scores of these weights, each with `task`, `how`, `score`, and `result` for the hub.
    """
    of_run: JsonDict = {"run": None, "license": stated_license(weights), "about_pubmed": False}
    name, known = weights.absolute().name, {}
    if run:
        record, metrics = read_told_record(run / RECORD), read_metrics(run / METRICS).metrics
        of_run = {
            "run": record,
            "cfg": load_recorded_config(run / CONFIG),
            "origin": record.get("origin"),
            "license": (record.get("origin") or {}).get("license", LICENSE),
            "about_pubmed": is_about_pubmed(record),
            "corpus": text_of(record["data"]["corpus"]),
            "mixed": mixed_in(record, lambda metric: metrics.get(metric, {}).get(batch)),
            "seen": seen(record["plan"], batch),
            "evaluation": evaluation(run / METRICS, batch, (EVAL_LOSS, EVAL_BITS)),
            "commits": commits(record),
            "changed": changed_settings(record),
            "spent": (took := spent(run / METRICS, batch)),
            "hardware": hardware(record["starts"][-1]),
            "grams": None,
            **asdict(stated),
        }
        name = of_run["cfg"].run_name
        if stated.device_watts is not None and stated.grid_g_per_kwh is not None:
            of_run["grams"] = emitted_g(took, stated.device_watts, stated.grid_g_per_kwh)
            basis = (
                f"{took.device_hours:.4g} device-hours x {stated.device_watts:g} W x {stated.grid_g_per_kwh:g} g/kWh"
            )
            known = emissions(of_run["grams"], f"{basis}; watts and grid as stated, not measured", of_run["hardware"])
    known |= model_index(name, [score["result"] for score in scores])
    head = metadata(of_run["license"], "text-generation", of_run["about_pubmed"], base_model=stated.base_model, **known)
    length = min(PROMPT_TOKENS, facts["n_positions"])
    card = render(
        TEMPLATE, metadata=head, name=name, checkpoint=weights.name, differences=differences, max_length=length,
        scores=scores, **facts, **of_run,
    )  # fmt: skip
    write_text(folder / CARD, card)


def emitted_g(took: Spent, device_watts: float, grid_g_per_kwh: float) -> float:
    """Grams of CO2-equivalent of a run."""
    return took.device_hours * device_watts / 1000 * grid_g_per_kwh


def render(template: Path, **fields: Any) -> str:
    """Fill in the template of a card; a missing field is an error."""
    return _environment(template.parent).get_template(template.name).render(fields)


def render_text(template: str, **fields: Any) -> str:
    """Fill in a template that is given as text; a missing field is an error."""
    return _environment().from_string(template).render(fields)


def _environment(*folders: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATE.parent]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def stated_license(folder: Path) -> str | None:
    """The licence in the card of a model folder; None if there is none."""
    card = folder / CARD
    _, _, rest = (card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "").partition("---\n")
    try:
        head = safe_load(rest.partition("\n---")[0])
    except YAMLError:
        return None
    license = head.get("license") if isinstance(head, dict) else None
    return license if isinstance(license, str) else None


def is_about_pubmed(record: JsonDict) -> bool:
    """Whether the training text of a pre-training run contains abstracts or articles of PubMed."""
    data = record["data"]
    corpora = [data["corpus"], *(of["corpus"] for of in data.get("mix", {}).values())]
    return any({ABSTRACTS, ARTICLES} & text_of(corpus)["sources"].keys() for corpus in corpora)


def seen(plan: JsonDict, batch: int) -> JsonDict:
    """How much a checkpoint of a pre-training run was trained: `batch`, `tokens`, `passes` over the training split."""
    tokens = batch * plan["tokens_per_batch"]
    return {"batch": batch, "tokens": tokens, "passes": tokens / plan["train_tokens"]}


def evaluation(metrics: Path, batch: int, names: tuple[str, ...]) -> dict[str, float] | None:
    """Metrics that a run logged at the batch of a checkpoint; None if the run was not evaluated at that batch.

    Args:
        metrics: metrics.jsonl of the run.
        batch: batch of the checkpoint.
        names: names of the metrics, which must all be there.
    """
    log = read_metrics(metrics).metrics
    values = {name: log[name][batch] for name in names if batch in log.get(name, {})}
    return values if values.keys() == set(names) else None


def commits(record: JsonDict) -> list[str]:
    """The commits of the code that trained a run, in order and without repetition."""
    names = [
        f"{start['commit'] or 'unknown'}{', with uncommitted changes' if start['uncommitted'] else ''}"
        for start in record["starts"]
    ]
    return list(dict.fromkeys(names))

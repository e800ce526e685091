"""The corpus card, which describes the corpus in words and tables for users of models trained on it."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.files import JsonDict
from data_prep.sources.document import ABSTRACTS, ARTICLES

TEMPLATE = Path(__file__).with_name("corpus_card.md.jinja")
# The reasons for which entries are dropped, in the order of the rules. A source may have more reasons, which come
# first.
STEPS = (
    "superseded",
    "bad records",
    "duplicates",
    "held out by PMID",
    "abstracts of articles",
    "without a date, so not known to be after --dated-after",
    "not known to be after --dated-after",
    "before or after --recent-after",
    "same text",
    "near-duplicates",
    "overlap with evaluation texts",
)


def step_of(reason: str) -> int:
    """The index of a reason in `STEPS`; -1 for a source's own reason, which comes first."""
    return STEPS.index(reason) if reason in STEPS else -1


def corpus_card(manifest: JsonDict) -> str:
    """Render the corpus card from the corpus' manifest, as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    left = manifest["entries"]
    funnel = []
    for reason, out in manifest["dropped"].items():
        left -= out
        funnel.append({"reason": reason, "out": out, "left": left})
    names = {name for counts in manifest["counts"].values() for name in counts["sources"]}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE.name).render(
        **manifest,
        dated_after=manifest["arguments"].get("dated_after"),
        documents=sum(counts["documents"] for counts in manifest["counts"].values()),
        bytes=sum(counts["bytes"] for counts in manifest["counts"].values()),
        funnel=funnel,
        nlm=bool(names & {ABSTRACTS, ARTICLES}),
    )

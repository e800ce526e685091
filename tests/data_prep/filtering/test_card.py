"""Every field of the corpus card depends on something in the build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.filtering import card
from data_prep.filtering.build_corpus import CARD, build_corpus
from data_prep.sources.pile import Pile
from data_prep.sources.text import Text
from traced import fields_of, shown, write_marked

LEAK = "a question of at least thirteen words that an evaluation set holds and a document too"
PHRASE = "this sentence of eight words stands everywhere here"
Change = Callable[[dict[str, Any]], object]


def records(n: int = 40) -> list[dict[str, Any]]:
    """Own texts with dates, licences and numbers, and one text for each filter."""
    lines: list[dict[str, Any]] = [
        {
            "id": f"d{i}",
            "text": f"text {i} {PHRASE if i < 15 else ''}",
            "date": "2020-02",
            "license": "CC BY",
            "pmid": i,
        }
        for i in range(n)
    ]
    lines += [{"id": f"u{i}", "text": f"no date, no number, no licence {i}"} for i in range(5)]
    lines += [{"id": "leak", "text": f"{LEAK}."}, {"id": "recent", "text": "text of late", "date": "2022"}]
    lines += [{"id": "copy", "text": "TEXT 20"}, {"id": "odd", "text": "soft hy\xadphen"}]
    return lines


def build(folder: Path, change: Change | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Fields of the card of a small corpus; `change` alters one thing that the corpus is made from."""
    made: dict[str, Any] = {
        "records": records(), "pile": None, "set_name": "notes", "pmids": [0, 1], "evaluation": [LEAK, PHRASE, "short"],
        "fraction": 0.3, "recent_after": "2021-01-01",
        "keep_characters": False, "dated_after": None,
    }  # fmt: skip
    if change:
        change(made)
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made["records"]))
    (folder / "held.txt").write_text("\n".join(map(str, made["pmids"])))
    (folder / "eval.txt").write_text("\n\n".join(made["evaluation"]))
    sources: dict[str, Any] = {"text": (Text(set_name=made["set_name"]), [str(folder / "a.jsonl")])}
    for name in made["pile"] or ():
        meta = {"pile_set_name": "PubMed Abstracts"}
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"of the Pile, {name}", "meta": meta}) + "\n")
        sources["pile"] = (Pile(), [str(folder / f"{name}.jsonl") for name in made["pile"]])
    template = card.TEMPLATE
    with monkeypatch.context() as patch:
        patch.setattr(card, "TEMPLATE", write_marked(template, folder / "marked.jinja"))
        build_corpus(
            sources,
            folder / "corpus",
            made["fraction"],
            exclude_pmids=[str(folder / "held.txt")] if made["pmids"] else [],
            decontaminate=[str(folder / "eval.txt")] if made["evaluation"] else [],
            recent_after=made["recent_after"],
            dated_after=made["dated_after"],
            keep_characters=made["keep_characters"],
        )
    return shown(template, (folder / "corpus" / CARD).read_text(encoding="utf-8"))


def more(**changes: Any) -> Change:
    return lambda made: made["records"].append({"id": "more", "text": "one text more", **changes})


def setting(**changes: Any) -> Change:
    return lambda made: made.update(changes)


ONE_MORE, LONGER, PILE = more(), more(text="long " * 9000), setting(pile=["00", "val"])
NO_RECENT = setting(recent_after=None)
# For each field, a change of its cause.
CAUSES: dict[str, Change] = {
    '"{:,}".format(documents)': ONE_MORE,
    '"{:,.2f}".format(bytes / 1e6)': LONGER,
    "dates.first": more(date="1999"),
    "dates.last": more(date="2031-05"),
    "split": NO_RECENT,
    "name": setting(set_name="letters"),
    '"{:,}".format(n.documents)': ONE_MORE,
    '"{:,.2f}".format(n.bytes / 1e6)': LONGER,
    "arguments.val_fraction": setting(fraction=0.4),
    "dated_after": setting(dated_after="2000-01-01"),
    "if dated_after": setting(dated_after="2000-01-01"),
    "arguments.recent_after": setting(recent_after="2021-06-01"),
    '"{:,}".format(undated)': ONE_MORE,
    '"{:,}".format(files.files)': PILE,
    '"{:,.2f}".format(files.bytes / 1e6)': LONGER,
    "files.sha256[:16]": ONE_MORE,
    '"{:,}".format(entries)': ONE_MORE,
    "step.reason": setting(pmids=[]),
    '"{:,}".format(step.out)': more(pmid=1),
    '"{:,}".format(step.left)': ONE_MORE,
    '"{:,}".format(decontamination.grams)': setting(evaluation=[LEAK, PHRASE, "short", f"{LEAK} more words"]),
    '"{:,}".format(decontamination.texts)': setting(evaluation=[LEAK, PHRASE, "short", "shorter"]),
    '"{:,}".format(decontamination.too_short)': setting(evaluation=[LEAK, PHRASE]),
    '"{:,}".format(decontamination.common_grams)': setting(evaluation=[LEAK, "short"]),
    '"{:,}".format(file.texts)': setting(evaluation=[LEAK, PHRASE, "short", "shorter"]),
    '"{:,}".format(file.too_short)': setting(evaluation=[LEAK, PHRASE]),
    '"{:,}".format(file.documents)': more(text=f"so {LEAK}"),
    "rule": more(text="zero\u200bwidth"),
    '"{:,}".format(count)': more(text="one more soft hy\xadphen"),
    "if arguments.keep_characters": setting(keep_characters=True),
    '"{:,}".format(without_pmid)': ONE_MORE,
    '"{:,}".format(n)': more(license="CC BY"),
    "if dates.first": lambda made: (
        [record.pop("date", None) for record in made["records"]] + [made.update(recent_after=None)]
    ),
    "if own_splits": PILE,
    "if arguments.recent_after": NO_RECENT,
    "if decontamination": setting(evaluation=[]),
    "if arguments.exclude_pmids and without_pmid": setting(pmids=[]),
    "if nlm": PILE,
}


def test_every_field_of_the_corpus_card_follows_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new field of the template fails here until its cause is listed."""
    assert set(fields_of(card.TEMPLATE)) == CAUSES.keys()
    before = build(tmp_path / "before", None, monkeypatch)
    assert build(tmp_path / "again", None, monkeypatch) == before, "without a change, all fields stay the same"
    after = {change: build(tmp_path / f"{n}", change, monkeypatch) for n, change in enumerate(set(CAUSES.values()))}
    assert not [field for field, change in CAUSES.items() if after[change][field] == before[field]]

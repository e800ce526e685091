"""results.json of an evaluation: what each score is of, and the scores of a model for its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json, sha256_file
from data_prep.common.json_text import check_shape
from data_prep.common.manifest import outputs_of, read_manifest
from recipes.scoring.bootstrap import Score
from recipes.scoring.results_table import cut_of, percent

STAGE = "evaluation"
RESULTS, WEIGHTS = "results.json", "weights_sha256"
_SCORE = {"value": (int, float), "low": (int, float), "high": (int, float), "n": int, "interval": str}
_SHAPE = {
    WEIGHTS: str,
    "tasks": {
        "*": {
            "split": str,
            "counts": {"*": int},
            "scored": int,
            "how": {"*": str},
            "cut": {"*": int},
            "forms": {"*": {"all": {"*": _SCORE}}},
        }
    },
}


def how_asked(result: JsonDict, form: str, part: str, metric: str) -> str:
    """What a score is of: form, shots, metric and questions; empty for one that says nothing beside the others."""
    if form == "letter" and metric != "acc":
        return ""  # all letters are of one length
    label = {"acc": "", "acc_norm": ", by length"}.get(metric, f", {metric}")
    return ", ".join(filter(None, (result["how"][form] + label, *_facts(result, form, part))))


def _facts(result: JsonDict, form: str, part: str) -> tuple[str, str]:
    """What a row says of its questions: that they are a part of the split, and how many of them were cut."""
    total, n = result["counts"][result["split"]], result["scored"]
    of_part = "" if n == total else f"a part, {n:,} of {total:,}"
    return of_part, cut_of(result["cut"][form], n) if part == "all" else ""


def read_scores(folder: Path, weights_sha256: str) -> list[JsonDict]:
    """A row of each score over a whole set: `task`, `how`, `score` as text, and `result` as the hub has it.

    Args:
        folder: folder that `evaluate.py --model … --out` made.
        weights_sha256: of the weights that are released.

    Raises:
        BadInput: it is no such folder, was altered, or has scores of other weights.
    """
    manifest = read_manifest(folder, STAGE, "python recipes/evaluate.py --model MODEL --tasks … --out {folder}")
    path = folder / RESULTS
    listed = outputs_of(manifest, str(folder)).get(RESULTS, {})
    if not path.is_file() or sha256_file(path) != listed.get("sha256"):
        raise BadInput(f"{path} was altered after it was written; evaluate again into another folder")
    results = read_json(path)
    if isinstance(results, dict) and WEIGHTS not in results:
        raise BadInput(f"{path} does not say which weights were scored, or is of runs; evaluate.py --model MODEL does")
    check_shape(results, _SHAPE, str(path))
    if results[WEIGHTS] != weights_sha256:
        raise BadInput(
            f"{path} has scores of other weights (sha256 {results[WEIGHTS][:16]}, these: {weights_sha256[:16]}); "
            "evaluate the exported folder, of the same --dtype"
        )
    return [
        {"task": name, "how": how, "score": percent(Score(**score)), "result": _result(name, task, how, score)}
        for name, task in results["tasks"].items()
        for form, groups in task["forms"].items()
        for metric, score in groups["all"].items()
        if (how := how_asked(task, form, "all", metric))
    ]


def _result(name: str, task: JsonDict, how: str, score: JsonDict) -> dict[str, Any]:
    return {
        "task": {"type": "question-answering"},
        "dataset": {"type": name, "name": name, "split": task["split"]},
        "metrics": [
            {"type": "accuracy", "name": f"accuracy in percent, {how}", "value": round(100 * score["value"], 1)}
        ],
    }

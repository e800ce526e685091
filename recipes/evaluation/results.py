"""Read results.json of an evaluation, describe its scores, and convert them for a model card."""

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
    """Describe a score by form, shots, metric and questions; empty for a score that should not be shown."""
    if form == "letter" and metric != "acc":
        return ""  # all letters have the same length, so acc_norm is equal to acc
    label = {"acc": "", "acc_norm": ", by length"}.get(metric, f", {metric}")
    return ", ".join(filter(None, (result["how"][form] + label, *_facts(result, form, part))))


def _facts(result: JsonDict, form: str, part: str) -> tuple[str, str]:
    """Notes on the questions of a row: whether they are only a part of the split, and how many were cut."""
    total, n = result["counts"][result["split"]], result["scored"]
    of_part = "" if n == total else f"a part, {n:,} of {total:,}"
    return of_part, cut_of(result["cut"][form], n) if part == "all" else ""


def read_scores(folder: Path, weights_sha256: str) -> list[JsonDict]:
    """Read the scores over whole sets: `task`, `how`, the text `score`, and `result`, in the hub's form.

    Args:
        folder: folder that `evaluate.py --model … --out` made.
        weights_sha256: hash of the exported weights.

    Raises:
        BadInput: the folder is not such a folder, was altered, or has scores of other weights.
    """
    manifest = read_manifest(folder, STAGE, "python recipes/evaluate.py --model MODEL --tasks … --out {folder}")
    path = folder / RESULTS
    listed = outputs_of(manifest, str(folder)).get(RESULTS, {})
    if not path.is_file() or sha256_file(path) != listed.get("sha256"):
        raise BadInput(f"{path} was altered after it was written; evaluate again into another folder")
    results = read_json(path)
    if isinstance(results, dict) and WEIGHTS not in results:
        raise BadInput(
            f"{path} does not record which weights were scored, or is of --runs; use a folder of evaluate.py --model"
        )
    check_shape(results, _SHAPE, str(path))
    if results[WEIGHTS] != weights_sha256:
        raise BadInput(
            f"{path} has scores of other weights (sha256 {results[WEIGHTS][:16]}, these: {weights_sha256[:16]}); "
            "evaluate the exported folder, exported with the same --dtype"
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

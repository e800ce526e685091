"""Combine the scores of fine-tuning runs with several seeds: mean, standard deviation and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_prep.common import json_text
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json, sha256_file, write_json, write_text
from data_prep.common.json_text import check_shape
from data_prep.common.manifest import begin, finished, library_versions, publish
from recipes.evaluation.evaluate_model import FORMAT
from recipes.evaluation.results import STAGE
from recipes.finetuning.names import PREDICTIONS, SCORES
from recipes.runs.environment import environment
from recipes.runs.fingerprint import changes, complete
from recipes.runs.names import CONFIG, RECORD
from recipes.runs.record import read_record
from recipes.scoring.bootstrap import measures, over_seeds
from recipes.scoring.results_table import Row, cut_of, percent, published_rows, to_html, to_markdown


def read_predictions(folder: Path) -> tuple[JsonDict, JsonDict, dict[str, JsonDict]]:
    """Read a finished fine-tuning run: its record, its scores.json, and its predictions on test by id.

    Raises:
        BadInput: the folder holds no finished fine-tuning run, or the run has not scored test.
    """
    record = read_record(folder / RECORD) if (folder / RECORD).is_file() else {}
    if not record.get("finished") or not (folder / SCORES).is_file():
        raise BadInput(f"{folder} holds no finished fine-tuning run; recipes/finetune.py makes one")
    check_shape(record, {"identity": {"seed": int, "task": {"name": str}}}, str(folder / RECORD))
    scores = read_json(folder / SCORES)
    check_shape(scores, {"scores": dict}, str(folder / SCORES))
    if "test" not in scores["scores"]:
        raise BadInput(f"{folder} has no scores of test yet: type its command again with score_test=true")
    path = folder / PREDICTIONS.format("test")
    predictions = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prediction = json_text.loads(line)
        except ValueError as error:
            raise BadInput(
                f"{path}, line {number} is not JSON ({error}); it was altered after it was written"
            ) from None
        check_shape(prediction, {"id": str}, f"{path}, line {number}")
        predictions[prediction["id"]] = prediction
    return record, scores, predictions


def evaluate_runs(folders: Sequence[Path], out: Path, name: str | None = None) -> JsonDict:
    """Combine the scores of runs that differ only in their seed, and write a folder with a table of them.

    Args:
        folders: run folders.
        out: folder to make.
        name: name of the runs in the table; None: the name of the first run folder.

    Raises:
        BadInput: the runs differ in more than their seed, or a seed comes twice.
    """
    runs = [read_predictions(folder) for folder in folders]
    newest = {key: value for record, _, _ in runs for key, value in record["identity"].items() if value is not None}
    identities = [
        complete(record["identity"], newest, folder / CONFIG)
        for folder, (record, _, _) in zip(folders, runs, strict=True)
    ]
    first, seeds = identities[0], [identity["seed"] for identity in identities]
    for folder, identity in zip(folders, identities, strict=True):
        if lines := changes(first, {**identity, "seed": first["seed"]}):
            raise BadInput(f"{folder} differs from {folders[0]} in more than its seed:\n  " + "\n  ".join(lines))
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"a seed comes twice among {', '.join(map(str, seeds))}")
    task, ids = first["task"]["name"], sorted(runs[0][2])
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {"runs": [folder.name for folder in folders], "name": name},
        "inputs": {folder.name: sha256_file(folder / PREDICTIONS.format("test")) for folder in folders},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest
    cut = sum(record.get("cut", False) for record in runs[0][2].values())
    facts: JsonDict = {"cut": cut, "identity": first, "seeds": seeds, "environment": environment(1)}
    rows, results = [], {}
    measured = [measures([predictions[id_] for id_ in ids]) for _, _, predictions in runs]
    for metric in measured[0]:
        values, weights = (np.array([run[metric][part] for run in measured]) for part in (0, 1))
        score, each, deviation = over_seeds(values, weights)
        results[metric] = {
            **asdict(score),
            "standard_deviation": deviation,
            "seeds": dict(zip(map(str, seeds), each.tolist(), strict=True)),
        }
        over = f"mean of {len(seeds)} seeds ± {100 * deviation:.1f}" if len(seeds) > 1 else f"seed {seeds[0]}"
        how = ", ".join(filter(None, ("fine-tuned", metric, over, cut_of(cut, len(ids)))))
        rows.append(Row(task, name or folders[0].name, how, percent(score), False))
    if "acc" in results and "answer" in runs[0][2][ids[0]]:
        answers = [runs[0][2][id_]["answer"] for id_ in ids]
        share = 100 * max(map(answers.count, set(answers))) / len(answers)
        rows.append(Row(task, "always the commonest answer", "baseline", f"{share:.1f}", False))
    rows += published_rows(task)
    partial = begin(out)
    write_text(partial / "table.md", to_markdown(rows))
    write_text(partial / "table.html", to_html(rows, f"{task}, {len(seeds)} seeds"))
    write_json(partial / "results.json", {**request, **facts, "scores": results})
    return publish(partial, out, request, {"versions": library_versions("torch", "transformers")})

"""Evaluate a model: write its answers, contamination and perplexity into one folder."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from data_prep.common.files import JsonDict, write_json, write_text
from data_prep.common.manifest import begin, finished, library_versions, manifest_sha256, publish
from data_prep.filtering.decontamination import GRAM_WORDS
from data_prep.tasks.description import label_balance
from data_prep.tasks.task_set import TaskSet, part_by_hash
from recipes.evaluation.answers import Form, answer_by_head, ask, head_sha256
from recipes.evaluation.contamination import Leaks, find_leaks
from recipes.evaluation.perplexity import perplexity
from recipes.evaluation.prompts import HARNESS, make_prompts
from recipes.evaluation.results import RESULTS, STAGE, WEIGHTS, how_asked
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.names import MODEL
from recipes.modeling.model_folder import find_device, folder_sha256, load_pretrained
from recipes.modeling.weights import weights_sha256
from recipes.runs.environment import environment
from recipes.scoring.bootstrap import Score, bootstrap, measures
from recipes.scoring.results_table import Row, percent, published_rows, to_html, to_markdown

FORMAT = 3
DTYPES = ("float32", "bfloat16")
# Question sets, models and prompts are on disk, so the libraries must not contact the Hugging Face hub.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def model_name(folder: Path) -> str:
    """Name of a model in the table: that of its folder, or of its run folder if the folder is called `model`."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == MODEL else folder.name


def summarise(records: Sequence[JsonDict], leaked: Collection[str] | None) -> JsonDict:
    """Score all questions, the questions of each subject and, if leaks were searched, the questions without leaks."""
    groups = {"all": list(records)}
    for record in records:
        if record["subject"]:
            groups.setdefault(record["subject"], []).append(record)
    if leaked is not None:
        groups["clean"] = [record for record in records if record["id"] not in leaked]
    return {
        group: {metric: asdict(bootstrap(*parts)) for metric, parts in measures(members).items()}
        for group, members in groups.items()
        if members
    }


def table(model_name: str, tasks: Sequence[TaskSet], results: JsonDict) -> list[Row]:
    """Make the table, task by task: our scores, the score of always giving the commonest answer, published scores."""
    rows = []
    for task in tasks:
        result = results[task.name]
        subjects = {getattr(example, "subject", "") for example in task.splits[task.scored]} - {""}
        for part in ("all", *sorted(subjects), "clean"):
            subject = part if part not in ("all", "clean") else ""
            name = f"{task.name}: {part}" if part != "all" else task.name
            for form, groups in result["forms"].items():
                for metric, score in groups.get(part, {}).items():
                    if how := how_asked(result, form, part, metric):
                        rows.append(Row(name, model_name, how, percent(Score(**score)), False))
            if part == "all" and result["balance"]:
                majority = 100 * max(result["balance"].values())
                rows.append(Row(name, "always the commonest answer", "baseline", f"{majority:.1f}", False))
            if part != "clean":
                rows += published_rows(task.name, subject)
    return rows


def leak_report(task: TaskSet, leaks: Leaks) -> JsonDict:
    """Report the leaks of one task: counts, ids of leaked questions, and for each what leaked in which documents."""
    ids = {f"{task.name}/{example.id}": example.id for example in task.splits[task.scored]}
    leaked = [
        {"id": ids[name], **leak}
        for name in sorted(leaks.any & ids.keys())
        for leak in (leaks.pmids.get(name), leaks.words.get(name))
        if leak
    ]
    return {
        "questions": len(ids),
        "by_pmid": len(leaks.by_pmid & ids.keys()),
        f"by_{GRAM_WORDS}_words": len(leaks.by_words & ids.keys()),
        "without_pmid": len(leaks.without_pmid & ids.keys()),
        "too_short_for_words": len(leaks.too_short & ids.keys()),
        "common_runs": leaks.common_runs,
        "documents_searched": leaks.documents,
        "ids": sorted(ids[name] for name in leaks.any & ids.keys()),
        "found": leaked,
    }


def evaluate(arguments: argparse.Namespace, tasks: Sequence[TaskSet], head: JsonDict | None) -> JsonDict:
    """Evaluate into the folder `arguments.out`, unless it is up to date. Return its manifest.

    Args:
        arguments: arguments of the command line.
        tasks: task sets to score.
        head: task of a fine-tuned model; None for a base model.

    Raises:
        BadInput: the model, a set or the corpus cannot be used.
    """
    settings = ("shots", "limit", "dtype", "batch_size", "text_documents")
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {name: getattr(arguments, name) for name in settings} | {"tasks": [task.name for task in tasks]},
        "inputs": {
            "model": folder_sha256(arguments.model),
            "head": head and {**head, "sha256": head_sha256(arguments.model)},
            "corpus": manifest_sha256(arguments.corpus) if arguments.corpus else None,
            "tasks": {task.name: task.files for task in tasks},
        },
    }
    if manifest := finished(arguments.out, request):
        print(f"{arguments.out} is up to date")
        return manifest
    if head is None:  # raises an error, before minutes of work, if there are too few questions for the shots
        for task in tasks:
            make_prompts(task, KINDS[task.kind].forms[0], arguments.shots, arguments.limit)
    os.environ |= OFFLINE
    facts = environment(1)

    device = find_device(arguments.device)
    leaks = None
    if arguments.corpus:
        wanted = {f"{task.name}/{e.id}": e for task in tasks for e in task.splits[task.scored]}
        leaks = find_leaks(wanted, arguments.corpus)
    partial = begin(arguments.out)  # partial results remain there if the evaluation ends early
    results: JsonDict = {task.name: _nothing_yet(task, leaks, arguments.limit) for task in tasks}
    if head is None:
        model, tokenizer = load_pretrained(arguments.model, arguments.dtype, device)
        answers = ask(arguments, tasks, model, tokenizer, partial / HARNESS)
    else:
        from recipes.finetuning import heads

        tuned, tokenizer = heads.load(arguments.model, device)
        model, answers = tuned.model, answer_by_head(arguments, tasks, tuned, tokenizer)
    tokenizer.split_special_tokens = True  # `<|endoftext|>` in a text is encoded as text, as in the shards
    for name, form, answered in answers:
        _record(results[name], name, form, answered, partial)
    text = None
    if arguments.corpus and arguments.text_documents:
        text = perplexity(model, tokenizer, arguments.corpus, arguments.text_documents, arguments.batch_size)
    name = model_name(arguments.model)
    rows = table(name, tasks, results)
    write_text(partial / "table.md", to_markdown(rows))
    write_text(partial / "table.html", to_html(rows, f"Scores of {name}"))
    write_json(
        partial / RESULTS,
        {
            **request,
            "model": name,
            WEIGHTS: weights_sha256(arguments.model),
            "tasks": results,
            "text": text,
            "environment": facts,
        },
    )
    versions = library_versions("torch", "transformers", "lm-eval")
    return publish(partial, arguments.out, request, {"versions": versions})


def _nothing_yet(task: TaskSet, leaks: Leaks | None, limit: int | None) -> JsonDict:
    """The result of a set before any question was answered."""
    return {
        "split": task.scored,
        "counts": {split: len(examples) for split, examples in task.splits.items()},
        "scored": len(part_by_hash(task.splits[task.scored], limit)),
        "balance": label_balance(task, part_by_hash(task.questions(task.scored), limit)),
        "leaks": leak_report(task, leaks) if leaks else None,
        "forms": {},
        "how": {},
        "cut": {},
    }


def _record(result: JsonDict, name: str, form: str, answered: Form, folder: Path) -> None:
    """Add the scores of one form of prompts to the result of a set, and write the answers to a file."""
    result["forms"][form] = summarise(answered.records, result["leaks"]["ids"] if result["leaks"] else None)
    result["how"][form], result["cut"][form] = answered.how, answered.cut
    if answered.cut:
        n = len(answered.records)
        print(f"{name}, {form}: {answered.cut:,} of {n:,} did not fit the model and were cut", flush=True)
    lines = "".join(json.dumps(record) + "\n" for record in answered.records)
    write_text(folder / f"{name}-{form}.jsonl", lines)

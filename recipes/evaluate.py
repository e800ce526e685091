"""Evaluate: scores of a base model on question sets, perplexity on held-out text, and what the training text leaked.

    python recipes/evaluate.py --model runs/smoke/model --tasks pubmedqa,mmlu --data data/tasks --out runs/smoke/scores
    python recipes/evaluate.py --model biomedlm --tasks mmlu --data data/tasks --out scores-5shot --shots 5
    python recipes/evaluate.py --model biomedlm --tasks pubmedqa --data data/tasks --out scores \\
        --corpus data/pubmed/corpus --text-documents 2000         # leak report; perplexity by source and year
    python recipes/evaluate.py --tasks medqa,bioasq --data data/tasks --check       # read the sets, print, stop
    python recipes/evaluate.py --runs runs/pubmedqa-1 runs/pubmedqa-2 runs/pubmedqa-3 --out scores  # over seeds

DATA holds a folder a task; which files: data_prep/tasks/__init__.py. OUT gets results.json with all that is needed to
repeat it, table.md, table.html, every question's log-probabilities, and the prompts as tasks of lm-eval-harness.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep import corpus
from data_prep.overlap import GRAM_WORDS
from data_prep.stage import (
    BadInput,
    JsonDict,
    begin,
    difference,
    finished,
    library_versions,
    manifest_sha256,
    publish,
    read_json,
    run,
    sha256_file,
    write_json,
    write_text,
)
from data_prep.tasks import TaskSet, describe, label_balance, load
from recipes.leaks import Leaks, find_leaks
from recipes.pretrained import check_folder, folder_sha256, load_pretrained
from recipes.prompts import FORMS, HARNESS, Prompt, make_prompts, write_harness_task
from recipes.run_folder import RECORD, environment
from recipes.scores import Row, Score, bootstrap, measures, over_seeds, percent, published_rows, to_html, to_markdown

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

STAGE = "evaluation"
FORMAT = 1
DTYPES = ("float32", "bfloat16")
PREDICTIONS = "predictions-test.jsonl"  # of recipes/finetune.py


def score_choices(model: GPT2LMHeadModel, tokenizer: Any, prompts: Sequence[Prompt], batch_size: int) -> list[JsonDict]:
    """Every prompt's choices, scored as lm-eval-harness does.

    Returns:
        For each prompt `id`, `answer`, `log_probs` of its choices in nats, and whether it is right: `acc` by the
        largest log-probability, `acc_norm` by the largest for its length in characters.
    """
    from recipes.likelihood import encode_pair, log_probs

    n_positions = model.config.n_positions
    windows = [
        encode_pair(tokenizer, prompt.text, f" {choice}", n_positions)
        for prompt in prompts
        for choice in prompt.choices
    ]
    sums = iter(log_probs(model, windows, batch_size, "score"))
    records = []
    for prompt in prompts:
        scores = list(itertools.islice(sums, len(prompt.choices)))
        by_length = [score / len(choice) for score, choice in zip(scores, prompt.choices, strict=True)]
        answer = prompt.question.answer
        records.append(
            {
                "id": prompt.question.id,
                "subject": prompt.question.subject,
                "answer": answer,
                "log_probs": scores,
                "acc": float(scores.index(max(scores)) == answer),
                "acc_norm": float(by_length.index(max(by_length)) == answer),
            }
        )
    return records


def summarise(records: Sequence[JsonDict], leaked: Collection[str] | None) -> JsonDict:
    """`acc` and `acc_norm` of the whole, of each subject and, if leaks were looked for, of what did not leak."""
    groups = {"all": list(records)}
    for record in records:
        if record["subject"]:
            groups.setdefault(record["subject"], []).append(record)
    if leaked is not None:
        groups["clean"] = [record for record in records if record["id"] not in leaked]
    return {
        group: {metric: asdict(bootstrap([r[metric] for r in members])) for metric in ("acc", "acc_norm")}
        for group, members in groups.items()
        if members
    }


def perplexity(
    model: GPT2LMHeadModel, tokenizer: Any, corpus_folder: Path, n_documents: int, batch_size: int
) -> JsonDict:
    """Perplexity and bits per byte of the first documents of a corpus' val split, which are a random sample of it.

    Returns:
        For `all`, each `source` and each `year`: documents, tokens, bytes, nats, perplexity, bits_per_byte with its
        bootstrap interval over documents.
    """
    from recipes.likelihood import document_windows, log_probs

    documents = list(itertools.islice(corpus.read_documents(corpus_folder, "val"), n_documents))
    windows, owners = [], []
    eos, n_positions = tokenizer.eos_token_id, model.config.n_positions
    for number, document in enumerate(documents):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        found = list(document_windows(ids, eos, n_positions))
        windows += found
        owners += [number] * len(found)
    nats, tokens = [0.0] * len(documents), [0] * len(documents)
    for owner, window, sum_ in zip(owners, windows, log_probs(model, windows, batch_size, "perplexity"), strict=True):
        nats[owner] -= sum_
        tokens[owner] += len(window.targets)

    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        year = document.date[:4] if document.date else "unknown"
        for key in (("all", "all"), ("source", document.source), ("year", year)):
            groups[key].append(number)
    results: JsonDict = {"all": {}, "source": {}, "year": {}}
    for (kind, name), members in sorted(groups.items()):
        n_bytes = [len(documents[n].text.encode()) for n in members]
        sum_nats, sum_tokens = sum(nats[n] for n in members), sum(tokens[n] for n in members)
        results[kind][name] = {
            "documents": len(members),
            "tokens": sum_tokens,
            "bytes": sum(n_bytes),
            "nats": sum_nats,
            "perplexity": math.exp(min(sum_nats / sum_tokens, 50.0)),
            "bits_per_byte": asdict(bootstrap([nats[n] / math.log(2) for n in members], n_bytes)),
        }
    return results


def table(model_name: str, tasks: Sequence[TaskSet], results: JsonDict, n_shots: int) -> list[Row]:
    """Our scores, what always answering the commonest label gives, and what was published, task by task."""
    rows = []
    for task in tasks:
        result = results[task.name]
        parts = dict.fromkeys(["all", *sorted({q.subject for q in task.questions(task.scored)} - {""}), "clean"])
        for part in parts:
            subject = part if part not in ("all", "clean") else ""
            name = f"{task.name}: {part}" if part != "all" else task.name
            for form, groups in result["forms"].items():
                if part in groups:
                    how = f"{n_shots}-shot, {form}"
                    for metric in ("acc",) if form == "letter" else ("acc", "acc_norm"):
                        label = how if metric == "acc" else f"{how}, by length"
                        rows.append(Row(name, model_name, label, percent(Score(**groups[part][metric])), False))
            if part == "all":
                majority = 100 * max(result["balance"].values())
                rows.append(Row(name, "always the commonest answer", "baseline", f"{majority:.1f}", False))
            if part != "clean":
                rows += published_rows(task.name, subject)
    return rows


def leak_report(task: TaskSet, leaks: Leaks) -> JsonDict:
    """Counts for one task; ids of what leaked, so that another run can leave it out."""
    names = {f"{task.name}/{question.id}" for question in task.questions(task.scored)}
    ids = sorted(name.partition("/")[2] for name in leaks.any & names)
    return {
        "questions": len(names),
        "by_pmid": len(leaks.by_pmid & names),
        f"by_{GRAM_WORDS}_words": len(leaks.by_words & names),
        "too_short_for_words": len(leaks.too_short & names),
        "documents_searched": leaks.documents,
        "ids": ids,
    }


def evaluate(arguments: argparse.Namespace, tasks: Sequence[TaskSet]) -> JsonDict:
    """Make the folder `arguments.out`, or find it made; its manifest.

    Raises:
        BadInput: the model, a set or the corpus cannot be used.
    """
    if not arguments.model:
        raise BadInput("--model is missing: the folder of the model to evaluate")
    check_folder(arguments.model)
    settings = ("shots", "limit", "dtype", "batch_size", "text_documents")
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {name: getattr(arguments, name) for name in settings} | {"tasks": [task.name for task in tasks]},
        "inputs": {
            "model": folder_sha256(arguments.model),
            "corpus": manifest_sha256(arguments.corpus) if arguments.corpus else None,
            "tasks": {task.name: task.files for task in tasks},
        },
    }
    if manifest := finished(arguments.out, request):
        print(f"{arguments.out} is up to date")
        return manifest
    prompts = {
        (task.name, form): make_prompts(task, form, arguments.shots, arguments.limit)
        for task in tasks
        for form in FORMS[task.kind]
    }

    import torch

    leaks = None
    if arguments.corpus:
        wanted = {f"{task.name}/{q.id}": q for task in tasks for q in task.questions(task.scored)}
        leaks = find_leaks(wanted, arguments.corpus)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_pretrained(arguments.model, arguments.dtype, device)
    partial = begin(arguments.out)
    try:
        results: JsonDict = {}
        for task in tasks:
            questions = task.questions(task.scored)
            results[task.name] = {
                "split": task.scored,
                "counts": {split: len(examples) for split, examples in task.splits.items()},
                "balance": label_balance(task, questions),
                "leaks": leak_report(task, leaks) if leaks else None,
                "forms": {},
            }
            leaked = results[task.name]["leaks"]["ids"] if leaks else None
            for form in FORMS[task.kind]:
                records = score_choices(model, tokenizer, prompts[task.name, form], arguments.batch_size)
                results[task.name]["forms"][form] = summarise(records, leaked)
                lines = "".join(json.dumps(record) + "\n" for record in records)
                write_text(partial / f"{task.name}-{form}.jsonl", lines)
                write_harness_task(partial / HARNESS, f"{task.name}_{form}", prompts[task.name, form], arguments.out)
        text = None
        if arguments.corpus and arguments.text_documents:
            text = perplexity(model, tokenizer, arguments.corpus, arguments.text_documents, arguments.batch_size)
        rows = table(arguments.model.name, tasks, results, arguments.shots)
        write_text(partial / "table.md", to_markdown(rows))
        write_text(partial / "table.html", to_html(rows, f"Scores of {arguments.model.name}"))
        name = arguments.model.name
        write_json(
            partial / "results.json",
            {**request, "model": name, "tasks": results, "text": text, "environment": environment(1)},
        )
        manifest = publish(partial, arguments.out, request, {"versions": library_versions("torch", "transformers")})
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def read_predictions(folder: Path) -> tuple[JsonDict, JsonDict, dict[str, JsonDict]]:
    """A finished fine-tuning run: its record, its scores.json, and its predictions of test by id.

    Raises:
        BadInput: the folder holds no finished fine-tuning run.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if not record.get("finished") or not (folder / PREDICTIONS).is_file():
        raise BadInput(f"{folder} holds no finished fine-tuning run; recipes/finetune.py makes one")
    lines = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return record, read_json(folder / "scores.json"), {r["id"]: r for r in map(json.loads, lines)}


def evaluate_runs(folders: Sequence[Path], out: Path) -> JsonDict:
    """Put the seeds of one fine-tuning together: mean, standard deviation, interval; a table.

    Raises:
        BadInput: the runs differ in more than their seed, or a seed comes twice.
    """
    runs = [read_predictions(folder) for folder in folders]
    first, seeds = runs[0][0]["identity"], [record["identity"]["seed"] for record, _, _ in runs]
    for folder, (record, _, _) in zip(folders, runs, strict=True):
        if lines := difference(first, {**record["identity"], "seed": first["seed"]}):
            raise BadInput(f"{folder} differs from {folders[0]} in more than its seed:\n  " + "\n  ".join(lines))
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"a seed comes twice among {', '.join(map(str, seeds))}")
    task, ids = first["task"]["name"], sorted(runs[0][2])
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {"runs": [folder.name for folder in folders]},
        "inputs": {folder.name: sha256_file(folder / PREDICTIONS) for folder in folders},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest
    rows, results = [], {}
    measured = [measures([predictions[id_] for id_ in ids]) for _, _, predictions in runs]
    for metric in measured[0]:
        values, weights = (np.array([found[metric][part] for found in measured]) for part in (0, 1))
        score, each, deviation = over_seeds(values, weights)
        results[metric] = {
            **asdict(score),
            "standard_deviation": deviation,
            "seeds": dict(zip(map(str, seeds), each.tolist(), strict=True)),
        }
        how = f"fine-tuned, {metric}, mean of {len(seeds)} seeds ± {100 * deviation:.1f}"
        rows.append(Row(task, folders[0].name, how, percent(score), False))
    if "acc" in results:
        answers = [runs[0][2][id_]["answer"] for id_ in ids]
        share = 100 * max(map(answers.count, set(answers))) / len(answers)
        rows.append(Row(task, "always the commonest answer", "baseline", f"{share:.1f}", False))
    rows += published_rows(task)
    partial = begin(out)
    write_text(partial / "table.md", to_markdown(rows))
    write_text(partial / "table.html", to_html(rows, f"{task}, {len(seeds)} seeds"))
    facts = {"identity": first, "seeds": seeds, "scores": results, "environment": environment(1)}
    write_json(partial / "results.json", {**request, **facts})
    return publish(partial, out, request, {"versions": library_versions("torch", "transformers")})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate, print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="folder that recipes/export.py wrote, or one like BioMedLM's")
    parser.add_argument("--tasks", default="", help="such as medqa,pubmedqa,mmlu")
    parser.add_argument("--data", type=Path, default=Path("data/tasks"), help="holds a folder a task")
    parser.add_argument("--runs", type=Path, nargs="+", help="run folders of one fine-tuning with several seeds")
    parser.add_argument("--out", type=Path, help="the folder to make")
    parser.add_argument("--check", action="store_true", help="read the sets, print what they hold, and stop")
    parser.add_argument("--shots", type=int, default=0, help="answered questions before each (default: 0)")
    parser.add_argument("--limit", type=int, help="score the first so many questions of each set alone, for a trial")
    parser.add_argument("--corpus", type=Path, help="training corpus: report what it leaks")
    parser.add_argument(
        "--text-documents",
        type=int,
        default=0,
        help="documents of the corpus' val to compute perplexity of (default: 0)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sequences at a time (default: 8)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation (default: float32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    arguments = parser.parse_args(argv)
    for name, least in (("shots", 0), ("batch_size", 1), ("limit", 1), ("text_documents", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise BadInput(f"--{name.replace('_', '-')} {value} is below {least}")
    if arguments.text_documents and not arguments.corpus:
        raise BadInput("--text-documents needs --corpus, of whose val split they are")
    if arguments.runs:
        if not arguments.out:
            raise BadInput("--out is missing: the folder to make")
        evaluate_runs(arguments.runs, arguments.out)
        print((arguments.out / "table.md").read_text(encoding="utf-8"), end="")
        return
    tasks = []
    for name in dict.fromkeys(filter(None, arguments.tasks.split(","))):
        task = load(name, arguments.data)
        print(describe(task), flush=True)
        if task.kind not in FORMS and not arguments.check:
            raise BadInput(f"{name} is a set of {task.kind}: a base model has no score on it; fine-tune it")
        tasks.append(task)
    if not tasks:
        raise BadInput("--tasks is empty")
    if arguments.check:
        return
    if not arguments.out:
        raise BadInput("--out is missing: the folder to make")
    evaluate(arguments, tasks)
    print((arguments.out / "table.md").read_text(encoding="utf-8"), end="")
    print(f"{arguments.out / 'results.json'}, {arguments.out / 'table.html'}")


if __name__ == "__main__":
    run(main)

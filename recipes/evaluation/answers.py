"""Evaluate: scores of a model on question sets, perplexity on held-out text, and what the training text leaked.

    python recipes/evaluate.py --model runs/smoke/model --tasks pubmedqa,mmlu --data data/tasks --out runs/smoke/scores
    python recipes/evaluate.py --model biomedlm --tasks mmlu --data data/tasks --out scores-5shot --shots 5
    python recipes/evaluate.py --model biomedlm --tasks pubmedqa --data data/tasks --out scores \\
        --corpus data/pubmed/corpus --text-documents 2000         # leak report; perplexity by source and year
    python recipes/evaluate.py --model runs/medqa-1/model --tasks mmlu --data data/tasks --out scores   # fine-tuned
    python recipes/evaluate.py --tasks medqa,bioasq --data data/tasks --check       # read the sets, print, stop
    python recipes/evaluate.py --runs runs/pubmedqa-1 runs/pubmedqa-2 runs/pubmedqa-3 --out scores  # over seeds

DATA holds a folder a task; which files: data_prep/tasks/__init__.py. OUT gets results.json with all that is needed to
repeat it, table.md, table.html, every question's log-probabilities, and the prompts as the tasks that lm-eval-harness
scored. A fine-tuned model answers with its head, on sets of the kind that it was tuned on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep import corpus
from data_prep.filtering.overlap import GRAM_WORDS
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
from data_prep.tasks import Sentence, TaskSet, describe, label_balance, load
from recipes.evaluation.leaks import Leaks, find_leaks
from recipes.evaluation.prompts import FORMS, HARNESS, make_prompts, write_harness_task
from recipes.modeling.pretrained import check_folder, folder_sha256, load_pretrained
from recipes.runs.run_folder import RECORD, environment
from recipes.scoring.scores import (
    Row,
    Score,
    bootstrap,
    measures,
    over_seeds,
    percent,
    published_rows,
    to_html,
    to_markdown,
)

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.finetuned import FineTuned

STAGE = "evaluation"
FORMAT = 2
DTYPES = ("float32", "bfloat16")
# Sets, models and prompts lie on disk; what the libraries below would ask the hub for, they do not.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Of recipes/finetune.py and finetuned.py, which import torch.
PREDICTIONS, SCORES, MODEL = "predictions-test.jsonl", "scores.json", "model"
HEAD_FACTS, HEAD_WEIGHTS = "task.json", "head.safetensors"


@dataclass(frozen=True)
class Form:
    """A set's questions asked in one way, and what came of them.

    Attributes:
        how: the way, for the table.
        records: one a question, with its metrics as floats.
        cut: how many did not fit into the model's context and lost their beginning.
    """

    how: str
    records: list[JsonDict]
    cut: int


def model_name(folder: Path) -> str:
    """What the table calls a model: the folder's name, or the run's whose `model/` it is."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == MODEL else folder.name


def read_head(folder: Path) -> JsonDict | None:
    """What a fine-tuned model is for (`task`, `kind`, `labels`, `seq_len`); None for a base model."""
    return read_json(folder / HEAD_FACTS) if (folder / HEAD_FACTS).is_file() else None


def check_answerable(task: TaskSet, head: JsonDict | None, model: Path | None) -> None:
    """Refuse a set that a base model, or the head of a fine-tuned one, cannot be scored on.

    Raises:
        BadInput: it is of another kind, or has other labels.
    """
    if head is None:
        if task.kind not in FORMS:
            raise BadInput(f"{task.name} is of kind {task.kind!r}: a base model has no score on it; fine-tune it")
        return
    tuned = f"{model} was fine-tuned on {head['task']}"
    way_out = "score the base model on it, or fine-tune one with recipes/finetune.py"
    if task.kind != head["kind"]:
        raise BadInput(f"{tuned}, of kind {head['kind']!r}; {task.name} is of kind {task.kind!r}: {way_out}")
    if task.kind == "verdict":
        labels = task.questions(task.scored)[0].options
        if list(labels) != head["labels"]:
            raise BadInput(
                f"{tuned}, whose answers are {', '.join(head['labels'])}; those of {task.name} are "
                f"{', '.join(labels)}: {way_out}"
            )
    if task.kind == "tags":
        for sentence in task.splits[task.scored]:
            assert isinstance(sentence, Sentence)
            if unknown := sorted({*sentence.tags} - {*head["labels"]}):
                known = ", ".join(head["labels"])
                raise BadInput(f"{tuned}, whose tags are {known}; {sentence.where} has {unknown[0]}: {way_out}")


def head_sha256(model: Path) -> str | None:
    """The hash of a fine-tuned model's head; None where the language model itself is what was tuned."""
    return sha256_file(model / HEAD_WEIGHTS) if (model / HEAD_WEIGHTS).is_file() else None


def answer_by_head(
    arguments: argparse.Namespace, tasks: Sequence[TaskSet], model: FineTuned, tokenizer: Any
) -> Iterator[tuple[str, str, Form]]:
    """A set's name, `head`, and what a fine-tuned model answers, in the sequences that it was tuned on.

    Raises:
        BadInput: a question cannot be cut to fit.
    """
    from recipes.config.schema import FinetuneConfig
    from recipes.finetune import predict
    from recipes.finetuning.examples import Encoder

    head, cfg = model.task_head, FinetuneConfig(device_eval_batch_size=arguments.batch_size)
    encoder = Encoder(tokenizer, head.kind, head.seq_len, head.labels)
    for task in tasks:
        examples = task.splits[task.scored][: arguments.limit]
        cut = sum(encoder(example).truncated for example in examples)
        records = predict(model, tokenizer, examples, cfg)
        for record, example in zip(records, examples, strict=True):
            record["subject"] = getattr(example, "subject", "")
        yield task.name, "head", Form(f"fine-tuned on {head.task}", records, cut)


def summarise(records: Sequence[JsonDict], leaked: Collection[str] | None) -> JsonDict:
    """Every metric of the whole, of each subject and, if leaks were looked for, of what did not leak."""
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


def perplexity(
    model: GPT2LMHeadModel, tokenizer: Any, corpus_folder: Path, n_documents: int, batch_size: int
) -> JsonDict:
    """Perplexity and bits per byte of the first documents of a corpus' val split, which are a random sample of it.

    Returns:
        For `all`, each `source` and each `year`: documents, tokens, bytes, nats, perplexity, bits_per_byte with its
        bootstrap interval over documents.
    """
    from recipes.evaluation.likelihood import document_windows, log_probs

    documents = list(itertools.islice(corpus.read_documents(corpus_folder, "val"), n_documents))
    windows, owners = [], []
    eos, n_positions = tokenizer.eos_token_id, model.config.n_positions
    for number, document in enumerate(documents):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        found = list(document_windows(ids, eos, n_positions))
        windows += found
        owners += [number] * len(found)
    nats, tokens = [0.0] * len(documents), [0] * len(documents)
    for owner, window, sum_ in zip(owners, windows, log_probs(model, windows, batch_size), strict=True):
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


def table(model_name: str, tasks: Sequence[TaskSet], results: JsonDict) -> list[Row]:
    """Our scores, what always answering the commonest label gives, and what was published, task by task."""
    rows = []
    for task in tasks:
        result = results[task.name]
        subjects = {getattr(example, "subject", "") for example in task.splits[task.scored]} - {""}
        for part in ("all", *sorted(subjects), "clean"):
            subject = part if part not in ("all", "clean") else ""
            name = f"{task.name}: {part}" if part != "all" else task.name
            for form, groups in result["forms"].items():
                for metric, score in groups.get(part, {}).items():
                    if form == "letter" and metric != "acc":
                        continue  # all letters are of one length
                    label = {"acc": "", "acc_norm": ", by length"}.get(metric, f", {metric}")
                    rows.append(Row(name, model_name, result["how"][form] + label, percent(Score(**score)), False))
            if part == "all" and result["balance"]:
                majority = 100 * max(result["balance"].values())
                rows.append(Row(name, "always the commonest answer", "baseline", f"{majority:.1f}", False))
            if part != "clean":
                rows += published_rows(task.name, subject)
    return rows


def leak_report(task: TaskSet, leaks: Leaks) -> JsonDict:
    """Counts for one task; ids of what leaked, so that another run can leave it out."""
    names = {f"{task.name}/{example.id}" for example in task.splits[task.scored]}
    ids = sorted(name.partition("/")[2] for name in leaks.any & names)
    return {
        "questions": len(names),
        "by_pmid": len(leaks.by_pmid & names),
        f"by_{GRAM_WORDS}_words": len(leaks.by_words & names),
        "too_short_for_words": len(leaks.too_short & names),
        "documents_searched": leaks.documents,
        "ids": ids,
    }


def ask(
    arguments: argparse.Namespace, tasks: Sequence[TaskSet], model: GPT2LMHeadModel, tokenizer: Any, folder: Path
) -> Iterator[tuple[str, str, Form]]:
    """A set's name, a form and what a base model makes of it; the task files go to `folder`.

    Raises:
        BadInput: there is too little to make shots of, or an option is longer than the model's context.
    """
    from recipes.evaluation.harness import count_cut, score_choices

    for task in tasks:
        for form in FORMS[task.kind]:
            prompts, name = make_prompts(task, form, arguments.shots, arguments.limit), f"{task.name}_{form}"
            cut = count_cut(tokenizer, prompts, model.config.n_positions)
            write_harness_task(folder, name, prompts, arguments.out)
            records = score_choices(model, tokenizer, prompts, folder / f"{name}.yaml", arguments.batch_size)
            yield task.name, form, Form(f"{arguments.shots}-shot, {form}", records, cut)


def evaluate(arguments: argparse.Namespace, tasks: Sequence[TaskSet], head: JsonDict | None) -> JsonDict:
    """Make the folder `arguments.out`, or find it made; its manifest.

    Args:
        arguments: of the command line.
        tasks: what is scored.
        head: what the model was fine-tuned for; None for a base model.

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
    if head is None:  # before minutes of work: are there questions enough for the shots?
        for task in tasks:
            make_prompts(task, FORMS[task.kind][0], arguments.shots, arguments.limit)
    os.environ |= OFFLINE

    import torch

    leaks = None
    if arguments.corpus:
        wanted = {f"{task.name}/{e.id}": e for task in tasks for e in task.splits[task.scored]}
        leaks = find_leaks(wanted, arguments.corpus)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    partial = begin(arguments.out)
    try:
        results: JsonDict = {
            task.name: {
                "split": task.scored,
                "counts": {split: len(examples) for split, examples in task.splits.items()},
                "balance": label_balance(task, task.questions(task.scored)[: arguments.limit]),
                "leaks": leak_report(task, leaks) if leaks else None,
                "forms": {},
                "how": {},
                "cut": {},
            }
            for task in tasks
        }
        if head is None:
            model, tokenizer = load_pretrained(arguments.model, arguments.dtype, device)
            answers = ask(arguments, tasks, model, tokenizer, partial / HARNESS)
        else:
            from recipes.finetuning import finetuned

            tuned, tokenizer = finetuned.load(arguments.model, device)
            model, answers = tuned.model, answer_by_head(arguments, tasks, tuned, tokenizer)
        for name, form, answered in answers:
            result = results[name]
            result["forms"][form] = summarise(answered.records, result["leaks"]["ids"] if leaks else None)
            result["how"][form], result["cut"][form] = answered.how, answered.cut
            if answered.cut:
                n = len(answered.records)
                print(f"{name}, {form}: {answered.cut:,} of {n:,} did not fit the model and were cut", flush=True)
            lines = "".join(json.dumps(record) + "\n" for record in answered.records)
            write_text(partial / f"{name}-{form}.jsonl", lines)
        text = None
        if arguments.corpus and arguments.text_documents:
            text = perplexity(model, tokenizer, arguments.corpus, arguments.text_documents, arguments.batch_size)
        name = model_name(arguments.model)
        rows = table(name, tasks, results)
        write_text(partial / "table.md", to_markdown(rows))
        write_text(partial / "table.html", to_html(rows, f"Scores of {name}"))
        write_json(
            partial / "results.json",
            {**request, "model": name, "tasks": results, "text": text, "environment": environment(1)},
        )
        versions = library_versions("torch", "transformers", "lm-eval")
        manifest = publish(partial, arguments.out, request, {"versions": versions})
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
    if not record.get("finished") or not (folder / SCORES).is_file():
        raise BadInput(f"{folder} holds no finished fine-tuning run; recipes/finetune.py makes one")
    if "test" not in read_json(folder / SCORES)["scores"]:
        raise BadInput(f"{folder} has no scores of test yet: type its command again with score_test=true")
    lines = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return record, read_json(folder / SCORES), {r["id"]: r for r in map(json.loads, lines)}


def evaluate_runs(folders: Sequence[Path], out: Path, name: str | None = None) -> JsonDict:
    """Put the seeds of one fine-tuning together: mean, standard deviation, interval; a table.

    Args:
        folders: the runs.
        out: the folder to make.
        name: what the table calls them; None: as the first of them.

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
        "arguments": {"runs": [folder.name for folder in folders], "name": name},
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
        over = f"mean of {len(seeds)} seeds ± {100 * deviation:.1f}" if len(seeds) > 1 else f"seed {seeds[0]}"
        rows.append(Row(task, name or folders[0].name, f"fine-tuned, {metric}, {over}", percent(score), False))
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
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the computation, log-probabilities included (default: float32)",
    )
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
    head = None
    if arguments.model:
        check_folder(arguments.model)
        head = read_head(arguments.model)
    if head and arguments.shots:
        raise BadInput(f"--shots: {arguments.model} was fine-tuned on {head['task']}, and its head reads no shots")
    if head and arguments.dtype != "float32":
        raise BadInput("--dtype: the head of a fine-tuned model is computed in float32")
    tasks = []
    for name in dict.fromkeys(filter(None, arguments.tasks.split(","))):
        task = load(name, arguments.data)
        print(describe(task), flush=True)
        if not arguments.check:
            check_answerable(task, head, arguments.model)
        tasks.append(task)
    if not tasks:
        raise BadInput("--tasks is empty")
    if arguments.check:
        return
    if not arguments.out:
        raise BadInput("--out is missing: the folder to make")
    if not arguments.model:
        raise BadInput("--model is missing: the folder of the model to evaluate")
    evaluate(arguments, tasks, head)
    print((arguments.out / "table.md").read_text(encoding="utf-8"), end="")
    print(f"{arguments.out / 'results.json'}, {arguments.out / 'table.html'}")


if __name__ == "__main__":
    run(main)

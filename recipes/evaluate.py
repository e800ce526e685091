"""Evaluate: score a model on question sets, measure its perplexity, and find test questions in its training text.

    python recipes/evaluate.py --model runs/smoke/model --tasks pubmedqa,mmlu --data data/tasks --out runs/smoke/scores
    python recipes/evaluate.py --model biomedlm --tasks mmlu --data data/tasks --out scores-5shot --shots 5
    python recipes/evaluate.py --model biomedlm --tasks pubmedqa --data data/tasks --out scores \\
        --corpus data/pubmed/corpus --text-documents 2000         # leak report; perplexity by source and year
    python recipes/evaluate.py --model runs/medqa-1/model --tasks mmlu --data data/tasks --out scores   # fine-tuned
    python recipes/evaluate.py --tasks medqa,bioasq --data data/tasks --check       # read the sets, print, stop
    python recipes/evaluate.py --runs runs/pubmedqa-1 runs/pubmedqa-2 runs/pubmedqa-3 --out scores  # over seeds

DATA holds one folder for each task; `python recipes/finetune.py --describe` lists the files of each. The command writes
into OUT: results.json with everything that is needed to repeat the evaluation, table.md, table.html, the
log-probabilities of every question, and the prompts as task files for lm-eval-harness. A fine-tuned model answers with
its head, on sets of the kind that it was tuned on.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, folder_to_make, names, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.last_line import say_made
from data_prep.common.limits import DEVICE, Whole
from data_prep.common.lock import hold
from data_prep.tasks.description import describe
from data_prep.tasks.registry import load
from recipes.evaluation.answers import check_answerable
from recipes.evaluation.evaluate_model import DTYPES, evaluate
from recipes.evaluation.over_seeds import evaluate_runs
from recipes.finetuning.task_head import read_task
from recipes.modeling.model_folder import check_folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate, print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, help="folder that recipes/export.py wrote, or one like BioMedLM's")
    parser.add_argument("--tasks", type=names, default=(), help="such as medqa,pubmedqa,mmlu")
    parser.add_argument(
        "--data", type=Path, default=Path("data/tasks"), help="folder that holds one folder for each task"
    )
    parser.add_argument("--runs", type=Path, nargs="+", help="run folders of one fine-tuning with several seeds")
    parser.add_argument("--out", type=folder_to_make, help="the folder to make")
    parser.add_argument("--check", action="store_true", help="read the sets, print what they hold, and stop")
    parser.add_argument(
        "--shots",
        type=Allowed(Whole(0, 1000)),
        default=0,
        help="answered questions in the prompt before each question (default: 0)",
    )
    parser.add_argument(
        "--limit",
        type=Allowed(Whole(1, 10**9)),
        help="for a trial: score only this number of questions of each set, chosen by hash",
    )
    parser.add_argument("--corpus", type=Path, help="training corpus, to be searched for the questions")
    parser.add_argument(
        "--text-documents",
        type=Allowed(Whole(0, 10**9)),
        default=0,
        help="number of documents of the corpus' val split to compute perplexity on (default: 0)",
    )
    parser.add_argument(
        "--batch-size", type=Allowed(Whole(1, 2**16)), default=8, help="sequences at a time (default: 8)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of the computation, log-probabilities included (default: float32)",
    )
    parser.add_argument("--device", type=Allowed(DEVICE), help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    arguments = parser.parse_args(argv)
    if arguments.text_documents and not arguments.corpus:
        raise BadInput("--text-documents needs --corpus: the documents are taken from its val split")
    if arguments.check and not arguments.runs:
        _evaluate(arguments)
        return
    if not arguments.out:
        raise BadInput("--out is missing: the folder to make")
    with hold(arguments.out):
        _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.runs:
        evaluate_runs(arguments.runs, arguments.out)
        print((arguments.out / "table.md").read_text(encoding="utf-8"), end="")
        report = ("recipes/report.py", *arguments.runs, "--out", arguments.out / "runs.html")
        say_made(arguments.out, f"scores over {len(arguments.runs)} runs", "python", *report)
        return
    head = None
    if arguments.model:
        check_folder(arguments.model)
        head = read_task(arguments.model)
    if head and arguments.shots:
        raise BadInput(f"--shots: {arguments.model} was fine-tuned on {head['task']}, and its head reads no shots")
    if head and arguments.dtype != "float32":
        raise BadInput("--dtype: the head of a fine-tuned model is computed in float32")
    tasks = []
    for name in arguments.tasks:
        task = load(name, arguments.data)
        print(describe(task), flush=True)
        if not arguments.check:
            check_answerable(task, head, arguments.model)
        tasks.append(task)
    if not tasks:
        raise BadInput("--tasks is missing: such as medqa,pubmedqa,mmlu")
    if arguments.check:
        return
    if not arguments.model:
        raise BadInput("--model is missing: the folder of the model to evaluate")
    evaluate(arguments, tasks, head)
    print((arguments.out / "table.md").read_text(encoding="utf-8"), end="")
    more = ("--corpus", arguments.corpus) if arguments.corpus else ()
    again = ("--data", arguments.data, *more, "--out", f"{arguments.out}-5shot", "--shots", 5)
    next_words = ("recipes/evaluate.py", "--model", arguments.model, "--tasks", ",".join(arguments.tasks), *again)
    if head:
        next_words = ("recipes/report.py", arguments.model.parent)
    elif arguments.shots:
        next_words = ("recipes/generate.py", "--model", arguments.model, "--interactive")
    say_made(arguments.out, "results.json, table.md and table.html", "python", *next_words)


if __name__ == "__main__":
    run(main)

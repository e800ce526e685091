"""Sweep: a grid of fine-tuning runs in; the best configuration by dev out, and its score on test, looked at once.

python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks --dry-run   # runs and cost
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks             # one by one
RAY_ADDRESS=head:6379 python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --cluster ray
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --only 3      # run 3 of 0, 1, … and no more

The YAML holds `base`, a configuration of recipes/finetune.py beside it, and `grid`: for each key the values to try.
What follows it holds for all runs. The folder, runs/NAME of the YAML or run_dir=…, gets a run folder and a log for each
run. The same command resumes it: finished runs stay, unfinished ones resume, failed ones are tried again.

No run scores test. When all are finished, the configuration with the best mean over its seeds on dev is written down in
results.json, and then its runs alone score test, once; another grid needs another folder from there on. On Ray, every
node must see the folder, the model and the data under the same paths. With `--only`, which a scheduler's array needs,
nothing is chosen; the command without it does that afterwards.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed
from data_prep.common.errors import BadInput, run
from data_prep.common.files import JsonDict, read_json, write_json, write_text
from data_prep.common.last_line import say_made
from data_prep.common.limits import Whole
from data_prep.common.lock import hold
from recipes.config.command_line import parse_run
from recipes.evaluation.over_seeds import evaluate_runs
from recipes.finetuning.sweep import TEST, Sweep, format_sweep, load_sweep, run_all, run_only
from recipes.finetuning.sweep_results import choose, draw, to_markdown
from recipes.runs.environment import environment
from recipes.runs.fingerprint import changes, complete
from recipes.runs.lock import running
from recipes.runs.names import RECORD
from recipes.runs.signals import leave_at_once_when_told

RESULTS, TABLE, PICTURE = "results.json", "table.md", "dev.png"


def _changes(recorded: JsonDict, wanted: JsonDict) -> list[str]:
    """Lines `run.key: recorded -> wanted` of the fingerprints of two sweeps' runs."""
    return changes({name: complete(one, wanted.get(name, {})) for name, one in recorded.items()}, wanted)


def run_sweep(sweep: Sweep, cluster: str | None, without_failed: bool) -> JsonDict:
    """Run what is not finished, choose, score test of the best; what results.json holds.

    Args:
        sweep: the sweep.
        cluster: `ray`, or None for this machine, one run after another.
        without_failed: choose among the others if runs fail.

    Raises:
        BadInput: the folder holds another sweep that has chosen already.
        SystemExit: runs failed (1), or this process was preempted (75).
    """
    folder, path = sweep.folder, sweep.folder / RESULTS
    if (folder / RECORD).exists():
        raise BadInput(f"{folder} is the folder of a run; give this sweep another run_name=…")
    facts = environment(1)  # before the runs
    with running(folder, "give this sweep a name of its own (run_name=…)"):
        results = read_json(path) if path.is_file() else None
        if results is not None and (lines := _changes(results["identity"], sweep.identity)):
            raise BadInput(
                f"{folder} holds a sweep that has chosen its best and looked at test:\n  "
                + "\n  ".join(lines[:5])
                + "\n"
                "To choose again after that is to choose by test. Give this one a name of its own (run_name=…)"
            )
        if results is None:
            failed = run_all(sweep, [job for job in sweep.jobs if not job.scores], False, cluster)
            results = choose(sweep, failed)
            if failed and not (without_failed and results["compared"]):
                print(
                    f"{len(failed)} of {len(sweep.jobs)} runs failed: {', '.join(job.name for job in failed)}\n"
                    "Nothing is chosen yet. Type the same command to try them again, take them out of the grid, or add "
                    "--without-failed to choose among the configurations that are whole",
                    flush=True,
                )
                raise SystemExit(1)
            write_json(path, results)  # before test is looked at: from here on the choice stands
        best = results["configurations"][0]
        print(f"the best of {results['compared']} configurations on dev: {best['configuration']}", flush=True)
        if results["test"] is None:
            jobs = [job for job in sweep.jobs if job.name in best["runs"]]
            if failed := run_all(sweep, [job for job in jobs if "test" not in job.scores], True, cluster):
                print(f"test of {', '.join(job.name for job in failed)} failed: type the same command to resume")
                raise SystemExit(1)
            with hold(folder / TEST):
                evaluate_runs([job.folder for job in jobs], folder / TEST, sweep.name)
            results["test"] = read_json(folder / TEST / "results.json")["scores"]
            draw(results, folder / PICTURE)
            test_table = (folder / TEST / "table.md").read_text(encoding="utf-8")
            write_text(folder / TABLE, to_markdown(results, test_table))
            results["environment"] = facts
            write_json(path, results)
        return results


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print the runs and their cost, run them."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cluster", choices=("ray",), help="run as Ray tasks, on RAY_ADDRESS or this machine")
        parser.add_argument(
            "--only",
            type=Allowed(Whole(0, 10**6)),
            metavar="N",
            help="do run N of the grid alone, from 0; choose nothing",
        )
        parser.add_argument("--without-failed", action="store_true", help="if runs fail, choose among the others")

    arguments = parse_run(__doc__, "yamls/finetune/pubmedqa-sweep.yaml", "model=biomedlm", argv, add)
    leave_at_once_when_told()
    sweep = load_sweep(Path(arguments.yaml), arguments.overrides)
    print(format_sweep(sweep), flush=True)
    if arguments.dry_run:
        again = ("recipes/sweep.py", arguments.yaml, *arguments.overrides)
        say_made(arguments.yaml, "nothing was run yet", "python", *again)
        return
    if arguments.only is not None:
        run_only(sweep, arguments.only)
        return
    results = run_sweep(sweep, arguments.cluster, arguments.without_failed)
    print((sweep.folder / TABLE).read_text(encoding="utf-8"), end="")
    best = next(job.folder for job in sweep.jobs if job.name in results["configurations"][0]["runs"])
    made = f"{RESULTS}, {TABLE} and {PICTURE} of {len(sweep.jobs)} runs"
    say_made(sweep.folder, made, "python", "recipes/report.py", best)


if __name__ == "__main__":
    run(command_line)

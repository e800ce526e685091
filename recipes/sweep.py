"""Sweep: run a grid of fine-tunings, choose the best configuration on dev, and score it once on test.

python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks --dry-run   # runs and cost
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks             # one by one
RAY_ADDRESS=head:6379 python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --cluster ray
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --only 3      # run 3 of 0, 1, … and no more

The YAML holds `base`, a configuration of recipes/finetune.py, and `grid`, the values to try for each key. Overrides
after the YAML change all runs. The folder of the sweep is runs/NAME, by the name of the YAML, or run_dir=…; it gets a
run folder and a log for each run. The same command resumes the sweep: finished runs are kept, unfinished runs are
resumed, failed runs are tried again.

The runs do not score test. When all are finished, the sweep writes the configuration with the best mean over seeds on
dev into results.json. Only then do the runs of that configuration score test, once; after that, another grid needs
another folder. On Ray, every node must see the folder, the model and the data under the same paths. `--only` is for
the array jobs of a scheduler: it chooses nothing; run the command without it afterwards.
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
    """Differences between the fingerprints of two sweeps' runs, as lines `run.key: recorded -> wanted`."""
    return changes({name: complete(one, wanted.get(name, {})) for name, one in recorded.items()}, wanted)


def run_sweep(sweep: Sweep, cluster: str | None, without_failed: bool) -> JsonDict:
    """Run what is not finished, choose the best, and score it on test. Return the contents of results.json.

    Args:
        sweep: the sweep.
        cluster: `ray`; or None to run on this machine, one run after another.
        without_failed: whether to choose among the finished runs if some fail.

    Raises:
        BadInput: the folder holds another sweep that has already chosen its best.
        SystemExit: runs failed (1), or this process was preempted (75).
    """
    folder, path = sweep.folder, sweep.folder / RESULTS
    if (folder / RECORD).exists():
        raise BadInput(f"{folder} is the folder of a run; give this sweep another run_name=…")
    facts = environment(1)  # as it is before the runs
    with running(folder, "give this sweep a name of its own (run_name=…)"):
        results = read_json(path) if path.is_file() else None
        if results is not None and (lines := _changes(results["identity"], sweep.identity)):
            raise BadInput(
                f"{folder} holds another sweep, which has chosen its best and scored test:\n  "
                + "\n  ".join(lines[:5])
                + "\n"
                "A second choice would be influenced by the test scores. Give this sweep its own name (run_name=…)"
            )
        if results is None:
            failed = run_all(sweep, [job for job in sweep.jobs if not job.scores], False, cluster)
            results = choose(sweep, failed)
            if failed and not (without_failed and results["compared"]):
                print(
                    f"{len(failed)} of {len(sweep.jobs)} runs failed: {', '.join(job.name for job in failed)}\n"
                    "Nothing is chosen yet. Type the same command to try them again, remove them from the grid, or add "
                    "--without-failed to choose among the configurations whose runs all finished",
                    flush=True,
                )
                raise SystemExit(1)
            write_json(path, results)  # before test is scored: the choice is final from here on
        best = results["configurations"][0]
        print(f"the best of {results['compared']} configurations on dev: {best['configuration']}", flush=True)
        if results["test"] is None:
            jobs = [job for job in sweep.jobs if job.name in best["runs"]]
            if failed := run_all(sweep, [job for job in jobs if "test" not in job.scores], True, cluster):
                print(
                    f"scoring test of {', '.join(job.name for job in failed)} failed: type the same command to resume"
                )
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
    """Parse the command line, print the runs and their cost, and run them."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cluster", choices=("ray",), help="run as Ray tasks, on RAY_ADDRESS or this machine")
        parser.add_argument(
            "--only",
            type=Allowed(Whole(0, 10**6)),
            metavar="N",
            help="do only run N of the grid, counted from 0, and choose nothing",
        )
        parser.add_argument("--without-failed", action="store_true", help="if runs fail, choose among the rest")

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

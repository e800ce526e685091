"""Ladder: train small models, smallest first, fit a scaling law to their losses, and predict the loss of a large one.

python recipes/ladder.py yamls/ladder/*.yaml --gpu a100-40gb --dry-run      # rungs, FLOPs, hours; what does not fit
python recipes/ladder.py yamls/ladder/*.yaml                                # run what fits this machine, fit, predict
python recipes/ladder.py yamls/ladder/tiny/*.yaml --predict yamls/smoke-cpu.yaml --out runs/ladder-tiny  # on a CPU

Each rung is a run of recipes/train.py in its own run folder; `key=value` changes all rungs. A rung that is finished,
on this or another machine, is not run again, and the same command resumes a ladder that stopped. The folder --out then
holds ladder.html, ladder.png and ladder.json: the points, the laws, the predictions with intervals, and their limits.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from data_prep.common.command_line import Allowed, folder_to_make, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.last_line import say_made
from data_prep.common.limits import Real
from data_prep.common.lock import hold
from recipes.config.schema import MFU
from recipes.planning.gpus import add_stack, find_gpu
from recipes.planning.run_plan import check_shards
from recipes.runs.names import RECORD
from recipes.runs.processes import ROOT
from recipes.runs.signals import leave_at_once_when_told
from recipes.trials.ladder import LEAST_RUNGS, measure, run_all
from recipes.trials.ladder_page import PAGE, PICTURE, RESULTS, format_results, write_results
from recipes.trials.rungs import (
    MAX_PASSES,
    Machine,
    Rung,
    format_ladder,
    left_out,
    load_rungs,
    on_cpu,
    read_rung,
    this_machine,
)

FLAGSHIP = ROOT / "yamls/biomedlm-2.7b.yaml"


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print the rungs, run those that fit the machine, and fit the law.

    Raises:
        BadInput: fewer than three rungs can be used.
    """
    parser = new_parser(__doc__)
    parser.add_argument("given", nargs="+", metavar="YAML|key=value", help="rungs, and changes to all of them")
    parser.add_argument(
        "--predict",
        action="append",
        type=Path,
        metavar="YAML",
        help=f"run whose loss to predict; can be repeated (default: {FLAGSHIP.name})",
    )
    parser.add_argument(
        "--floor",
        type=Allowed(Real(0, 100)),
        metavar="NATS",
        help="loss that no model can go below (E of the law), if you know it",
    )
    parser.add_argument(
        "--with-repeated",
        action="store_true",
        help=f"also use rungs that read their data more than {MAX_PASSES:g} times",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="print hours and cost on this GPU; with --dry-run, also which rungs fit it"
    )
    add_stack(parser)
    parser.add_argument(
        "--mfu",
        type=Allowed(MFU),
        metavar="SHARE",
        help="MFU that a run of yours reached, such as 0.4 (default: published)",
    )
    parser.add_argument(
        "--out",
        type=folder_to_make,
        default="runs/ladder",
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rungs and their cost, and stop")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.gpu:
        find_gpu(arguments.gpu, arguments.stack)
    yamls = [Path(text) for text in arguments.given if text.endswith((".yaml", ".yml"))]
    overrides = [text for text in arguments.given if not text.endswith((".yaml", ".yml"))]
    if len(yamls) < LEAST_RUNGS:
        raise BadInput(
            f"{len(yamls)} rungs are too few: to fit the two parameters of the law and estimate its error, the command "
            f"needs {LEAST_RUNGS}, such as yamls/ladder/*.yaml"
        )
    leave_at_once_when_told()
    with nullcontext() if arguments.dry_run else hold(arguments.out):
        _climb(arguments, yamls, overrides)


def _climb(arguments: argparse.Namespace, yamls: Sequence[Path], overrides: Sequence[str]) -> None:
    rungs = load_rungs(yamls, overrides)
    targets = [read_rung(path) for path in arguments.predict or [FLAGSHIP]]
    planned_for = arguments.gpu if arguments.dry_run else None
    machine = Machine(0, 0, None) if planned_for or all(map(on_cpu, rungs)) else this_machine()
    reasons = left_out(rungs, machine, planned_for, arguments.with_repeated, arguments.stack)
    stack = arguments.stack if arguments.gpu else None  # a rung that runs here is checked by torch itself at its start
    print(format_ladder(rungs, reasons, arguments.gpu or machine.name, arguments.mfu, stack), flush=True)
    if arguments.dry_run:
        say_made(yamls[0], "nothing was run yet", "python", "recipes/ladder.py", *arguments.given)
        return
    used = [rung for rung in rungs if rung.name not in reasons]
    if len(used) < LEAST_RUNGS:
        raise BadInput(
            f"{len(used)} of {len(rungs)} rungs can be used, but the law needs {LEAST_RUNGS}:\n  "
            + "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
        )
    if floor_too_high(arguments.floor, used):
        raise BadInput(f"--floor {arguments.floor:g} is not below the losses of the rungs")
    for rung in used:
        if rung.shards is None and not rung.finished:
            check_shards(rung.cfg)  # its error names what is missing
    out: Path = arguments.out
    if (out / RECORD).exists():
        raise BadInput(f"{out} is the folder of a run; give this ladder another --out")
    out.mkdir(parents=True, exist_ok=True)
    run_all([rung for rung in used if not rung.finished], out)
    results = write_results(out, rungs, reasons, targets, arguments.floor)
    print(format_results(results))
    plan = ("recipes/train.py", targets[0].yaml, "--dry-run")
    say_made(out, f"{PAGE}, {PICTURE} and {RESULTS} of {len(used)} rungs", "python", *plan)


def floor_too_high(floor: float | None, rungs: Sequence[Rung]) -> bool:
    """Whether the given floor E is not below the loss of every finished rung."""
    return floor is not None and any(measure(rung, True).loss <= floor for rung in rungs if rung.finished)


if __name__ == "__main__":
    run(command_line)

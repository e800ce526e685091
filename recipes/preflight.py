"""Preflight: find in minutes, on the ranks of the run, what would stop the run after an hour.

composer recipes/preflight.py yamls/biomedlm-2.7b.yaml                    # launched as the run will be
python recipes/preflight.py yamls/smoke-cpu.yaml --verify-all             # one process; every shard is read and hashed
python recipes/preflight.py yamls/biomedlm-2.7b.yaml --fake-world 128     # the 128 ranks' parts, on a laptop, no data

Each check prints one line: its result, and how long it took. Preflight trains a few batches, saves a checkpoint and
resumes from it with the run's own code, in a folder beside the run folder, which it removes afterwards. The exit code
is 0 if the run can start; otherwise it is 2, and the output says what to change.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from collections.abc import Sequence
from typing import Any

from data_prep.common.command_line import Allowed
from data_prep.common.errors import run
from data_prep.common.last_line import launcher, say_made
from recipes.checkpointing.origin import load_training_config
from recipes.config.command_line import parse_run
from recipes.config.schema import WORLD_SIZE
from recipes.planning.gpus import GPUS, add_stack, find_gpu
from recipes.runs.signals import leave_with_the_launcher
from recipes.trials.checks import run_checks
from recipes.trials.fake_world import fake_world


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the checks."""

    def add(parser: Any) -> None:
        parser.add_argument("--verify-all", action="store_true", help="read and hash all shards, instead of a few")
        parser.add_argument(
            "--fake-world",
            type=Allowed(WORLD_SIZE),
            metavar="N",
            help="build the model parts of N ranks on this machine; no training",
        )
        parser.add_argument(
            "--gpu",
            metavar="NAME",
            help=f"with --fake-world: also check that the run fits this GPU, one of {', '.join(GPUS)}",
        )
        add_stack(parser)

    arguments = parse_run(__doc__, "yamls/smoke-cpu.yaml", "run_dir=/scratch/run", argv, add)
    cfg = load_training_config(arguments.yaml, arguments.overrides)
    if arguments.gpu:
        find_gpu(arguments.gpu, arguments.stack)
    if arguments.fake_world is not None:
        fake_world(cfg, arguments.fake_world, arguments.gpu, arguments.stack)
        on_the_ranks = ("composer", "recipes/preflight.py", arguments.yaml, *arguments.overrides)
        say_made(arguments.yaml, f"the parts of {arguments.fake_world} ranks can be built", *on_the_ranks)
        return
    leave_with_the_launcher()
    run_checks(cfg, arguments.verify_all)
    start = ("recipes/train.py", arguments.yaml, *arguments.overrides)
    say_made(arguments.yaml, "the run can start", launcher(), *start)


if __name__ == "__main__":
    run(command_line)

"""Preflight: what would stop a run after an hour, found in minutes, on the ranks that will run it.

composer recipes/preflight.py yamls/biomedlm-2.7b.yaml                    # launched as the run will be
python recipes/preflight.py yamls/smoke-cpu.yaml --verify-all             # one process; every shard is read and hashed
python recipes/preflight.py yamls/biomedlm-2.7b.yaml --fake-world 128     # the 128 ranks' parts, on a laptop, no data

One line a check: what was found, and how long it took. Steps, checkpoint and resumption are the run's own, in a folder
beside the run's, which is removed. It ends with code 0 if the run can start, else with 2 and what to mend.
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
    """Parse the command line and check."""

    def add(parser: Any) -> None:
        parser.add_argument("--verify-all", action="store_true", help="read and hash every shard, not a few")
        parser.add_argument(
            "--fake-world", type=Allowed(WORLD_SIZE), metavar="N", help="build the parts of N ranks here; runs nothing"
        )
        parser.add_argument("--gpu", metavar="NAME", help=f"with --fake-world: must fit; one of {', '.join(GPUS)}")
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

"""Train: pre-train a model from one configuration into one run folder. The same command resumes the run.

composer recipes/train.py yamls/biomedlm-2.7b.yaml                       # all GPUs of a node
python recipes/train.py yamls/smoke-cpu.yaml run_name=mine seed=18       # one process, two values changed
composer recipes/train.py yamls/continue/domain.yaml init_from=biomedlm  # start from the weights of a model
python recipes/train.py yamls/biomedlm-2.7b.yaml --dry-run               # print the configuration and plan, stop

docs/configuration.md lists every key.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.errors import run
from data_prep.common.last_line import launcher, say_made
from data_prep.common.manifest import MANIFEST
from data_prep.common.world import world
from recipes.checkpointing.origin import load_training_config
from recipes.config.command_line import parse_run
from recipes.config.loading import to_yaml
from recipes.config.shards_command import shards_words
from recipes.planning.plan_text import format_plan
from recipes.planning.run_plan import check_shards, make_plan
from recipes.runs.signals import leave_at_once_when_told, leave_with_the_launcher
from recipes.training.pretraining import train


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train, or print the plan."""
    arguments = parse_run(__doc__, "yamls/smoke-cpu.yaml", "optimizer.lr=2e-4", argv)
    leave_at_once_when_told()
    leave_with_the_launcher()
    cfg = load_training_config(arguments.yaml, arguments.overrides)
    if not arguments.dry_run:  # with the callbacks of callbacks/registry.py
        train(cfg)
        model = ("--out", Path(cfg.run_dir) / "model")
        say_made(cfg.run_dir, "a trained run", "python", "recipes/export.py", "--checkpoint", cfg.run_dir, *model)
        return
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    print(to_yaml(cfg))
    print(format_plan(make_plan(cfg, world().size if world().launched else cfg.world_size, shards), cfg))
    the_run = [launcher(), "recipes/train.py", arguments.yaml, *arguments.overrides]
    say_made(arguments.yaml, "nothing was run yet", *(the_run if shards or cfg.data.remote else shards_words(cfg)))


if __name__ == "__main__":
    run(command_line)

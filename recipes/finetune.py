"""Fine-tune: train a model on the set of one task, and write a run folder with the tuned model and its scores.

composer recipes/finetune.py yamls/finetune/pubmedqa.yaml model=biomedlm data=data/tasks       # one GPU of 80 GB
python recipes/finetune.py yamls/finetune/medqa.yaml model=biomedlm preset=one-gpu-24gb        # LoRA
python recipes/finetune.py yamls/finetune/pubmedqa.yaml model=runs/smoke preset=cpu seq_len=256 seed=2
python recipes/finetune.py yamls/finetune/ner.yaml task=NCBI-disease model=biomedlm preset=one-gpu-24gb
python recipes/finetune.py yamls/finetune/medqa.yaml model=biomedlm preset=full --dry-run      # print the plan, stop
python recipes/finetune.py --describe                                                          # how a set is written

`model` is a folder of recipes/export.py or of the published BioMedLM, a run folder, or a checkpoint in one. It must be
able to read `seq_len` tokens. The default is 512; the model of `make smoke` reads 256. Type the same command again to
resume the run. Afterwards the run folder holds `model/`, a prediction for every question, pair or sentence of dev and
test, and scores.json. `python recipes/evaluate.py --runs …` combines the scores of several seeds. With
`score_test=false` test is not scored until you type the same command without it. docs/configuration.md lists every key.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.errors import run
from data_prep.common.last_line import launcher, say_made
from data_prep.common.world import world
from data_prep.tasks.registry import formats, load
from recipes.checkpointing.trained_model import find_source
from recipes.config.command_line import parse_run
from recipes.config.loading import load_finetune_config, to_yaml
from recipes.finetuning.names import MODEL
from recipes.finetuning.planning import architecture, format_finetune_plan, make_finetune_plan, splits
from recipes.finetuning.training import finetune
from recipes.runs.signals import leave_at_once_when_told, leave_with_the_launcher


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and fine-tune, or print the plan."""
    arguments = parse_run(__doc__, "yamls/finetune/pubmedqa.yaml", "model=biomedlm", argv, _describe)
    leave_at_once_when_told()
    leave_with_the_launcher()
    cfg = load_finetune_config(arguments.yaml, arguments.overrides)
    if not arguments.dry_run:
        finetune(cfg)
        model, score = Path(cfg.run_dir) / MODEL, ("--tasks", cfg.task, "--data", cfg.data)
        out = ("--out", Path(cfg.run_dir) / "scores")
        say_made(model, f"tuned on {cfg.task}", "python", "recipes/evaluate.py", "--model", model, *score, *out)
        return
    task = load(cfg.task, Path(cfg.data))
    model = architecture(find_source(Path(cfg.model), None))
    world_size = world().size if world().launched else cfg.world_size
    print(to_yaml(cfg))
    print(format_finetune_plan(make_finetune_plan(cfg, model, task, len(splits(task)["train"]), world_size), cfg))
    again = ("recipes/finetune.py", arguments.yaml, *arguments.overrides)
    say_made(arguments.yaml, "nothing was run yet", launcher(), *again)


def _describe(parser: argparse.ArgumentParser) -> None:
    describe = "print which files hold a question set, with an example of each form for sets of your own, and stop"
    parser.add_argument("--describe", action="version", version=formats(), help=describe)


if __name__ == "__main__":
    run(command_line)

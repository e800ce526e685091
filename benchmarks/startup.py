"""Measure the phases of a run's start, from the command to the end of the first batch.

python benchmarks/startup.py                                              # the smoke preset; some minutes
python benchmarks/startup.py --yaml yamls/smoke-gpu.yaml kernels.compile=true

Each round starts a new process. "The launcher's imports" are those of the program `composer`, which imports Composer
before the ranks do so again. If the configuration compiles the blocks, this happens in the first batch: a "cold" start
has no compile cache, and a "warm" start has the cache of the cold one, as a resumed run has in its folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import Enough, Phases, machine, measured, result_of, say_result
from data_prep.common.errors import BadInput, run
from recipes.config.loading import load_config
from recipes.planning.run_plan import check_shards, make_plan

LAUNCHER = "import composer.cli.launcher"


def one(yaml: str, overrides: Sequence[str], folder: Path) -> None:
    """Train one batch in this process; at the end, print the seconds of each phase as JSON."""
    phases = Phases()
    timed = phases.timed

    def checks() -> Any:
        cfg = replace(load_config(yaml, overrides), run_dir=str(folder / "run"), progress_bar=False)
        return cfg, check_shards(cfg)

    timed("import torch", import_module)("torch")
    for name in ("recipes.dataloading.loader", "recipes.modeling.gpt2", "recipes.training.trainer"):
        timed("import Composer, Streaming, transformers", import_module)(name)
    from composer import Callback, Logger, State, Trainer

    from callbacks.attention_parity import AttentionParity
    from recipes.dataloading import loader
    from recipes.modeling.gpt2 import BioMedLM
    from recipes.training import pretraining, trainer

    class FirstBatch(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            raise Enough

    cfg, shards = timed("configuration, shards' manifest", checks)()
    plan = make_plan(cfg, 1, shards)
    Path(cfg.run_dir).mkdir(exist_ok=True)
    timed("join the ranks", trainer.connect)(cfg)
    with (
        patch.object(BioMedLM, "__init__", timed("draw the weights", BioMedLM.__init__)),
        patch.object(loader, "build_dataloader", timed("open the shards", loader.build_dataloader)),
        patch.object(Trainer, "__init__", timed("Composer's Trainer", Trainer.__init__)),
        patch.object(AttentionParity, "fit_start", timed("attention gate", AttentionParity.fit_start)),
        patch.object(Trainer, "_train_loop", timed("first batch, loader processes", Trainer._train_loop)),
        suppress(Enough),
    ):
        timed("callbacks, loggers, all else", pretraining.fit)(cfg, plan, shards, [FirstBatch()])
    say_result(phases.spent_s)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--yaml", default="yamls/smoke-cpu.yaml", help="configuration (default yamls/smoke-cpu.yaml)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    args = parser.parse_intermixed_args(argv)
    if args.rounds < 1:
        raise BadInput(f"--rounds {args.rounds} must be above 0")
    overrides = ["loggers.wandb=null", "callbacks.generate_samples=null", *args.overrides]
    if args.one:
        one(args.yaml, overrides, args.one)
        return
    compiles = load_config(args.yaml, overrides).kernels.compile
    kinds = ("cold", "warm") if compiles else ("",)
    by_kind: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for n in range(args.rounds):
        folder = Path(tempfile.mkdtemp(prefix="startup-"))
        try:
            for kind, phases in by_kind.items():
                phases.append(seconds(args.yaml, overrides, folder))
                print(f"round {n + 1} {kind}: {sum(phases[-1].values()):.1f} s", file=sys.stderr, flush=True)
                shutil.rmtree(folder / "run")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "transformers"))
    print(f"{args.yaml} {' '.join(args.overrides)}; {args.rounds} rounds, median; {machine()}; {versions}.\n")
    print("| phase | " + " | ".join(f"seconds {kind}".strip() for kind in kinds) + " |")
    print("| --- |" + " ---: |" * len(kinds))
    names = list(by_kind[kinds[0]][0])
    for name in names:
        row = [f"{statistics.median(phases[name] for phases in by_kind[kind]):.2f}" for kind in kinds]
        print(f"| {name} | {' | '.join(row)} |")
    totals = [f"{statistics.median(sum(phases.values()) for phases in by_kind[kind]):.1f}" for kind in kinds]
    print(f"| all | {' | '.join(totals)} |")


def seconds(yaml: str, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Measure one start: the seconds of the launcher's imports and of each phase.

    Raises:
        BadInput: the run failed.
    """
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", LAUNCHER], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    launcher_s = time.perf_counter() - begin_s
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(folder), "--yaml", yaml, *overrides]
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")
    }  # an empty cache, whatever the user's cache holds
    taken = measured(command, min(2, len(os.sched_getaffinity(0))), environment)
    return {"the launcher's imports": launcher_s, **result_of(taken)}


if __name__ == "__main__":
    run(main)

"""Measure the time of saving a checkpoint, resuming and exporting, and compare it with the rate of the disk.

python benchmarks/checkpoint.py model.n_embd=768 model.n_layer=12 model.n_head=6 --ranks 1 2  # 1.3 GB, some minutes
python benchmarks/checkpoint.py model.n_layer=4 --yaml yamls/biomedlm-2.7b.yaml --ranks 8 --folder /scratch

A run saves after every second batch. Alternately before or after a save, each rank writes a plain file of the same size
as its part of the checkpoint, to measure the rate of the disk at that moment. No file is removed meanwhile, because the
memory that a removed file frees would make the next file faster; so --folder needs room for twice as many checkpoints
as there are saves. The first save is not timed. Then the same command resumes from the newest checkpoint, and the model
is exported. Before each of the two, the files are dropped from the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

from data_prep.common.world import world

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import Enough, Phases, launched, machine, measured, result_of, say_result
from data_prep.common.errors import BadInput, run
from recipes.checkpointing.checkpoint import MONOLITH, complete_checkpoints
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.planning.run_plan import check_shards, make_plan
from recipes.runs.names import CHECKPOINTS

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 2  # batches between two saves
BLOCK_BYTES = 16 << 20  # bytes of a plain file that are read or written at a time


def configuration(yaml: str, overrides: Sequence[str], folder: Path) -> TrainConfig:
    """The configuration of the YAML with a save every `INTERVAL` batches, and nothing else besides training."""
    cfg = load_config(yaml, overrides)
    return replace(
        cfg, run_dir=str(folder / "run"), max_duration="1000ba", scheduler=replace(cfg.scheduler, t_warmup="1ba"),
        eval_interval="1000ba", save_interval=f"{INTERVAL}ba", save_num_checkpoints_to_keep=-1,
        save_permanent_interval=None, save_remote=None, progress_bar=False, stall_timeout_s=None,
        loggers=replace(cfg.loggers, wandb=None),
        callbacks=replace(cfg.callbacks, generate_samples=None, spike_guard=None),
    )  # fmt: skip


def one(what: str, cfg: TrainConfig, saves: int) -> None:
    """Save `saves` times, or resume from the last save, on this rank; at the end, rank 0 prints seconds per phase."""
    from composer import Callback, Logger, State
    from composer.utils import checkpoint as composer_checkpoint

    from callbacks import checkpoint_writer
    from callbacks.checkpoint_writer import CheckpointWriter
    from recipes.checkpointing import checkpoint as checkpoints
    from recipes.checkpointing import resume
    from recipes.training import pretraining, trainer

    world_size, rank = world().size, world().rank
    shards = check_shards(cfg)
    plan = make_plan(cfg, world_size, shards)
    Path(cfg.run_dir).mkdir(exist_ok=True)
    measured: list[dict[str, float]] = []
    save = CheckpointWriter.save

    def watched_save(writer: CheckpointWriter, state: State) -> None:
        saved = complete_checkpoints(writer.folder)
        if not saved:  # the first save also imports modules, and its size is not known beforehand
            save(writer, state)
            return
        size_bytes = sum(path.stat().st_size for path in own_files(saved[-1], rank))
        plain = writer.folder.parent / f"plain-{rank}-{len(saved)}"
        first = len(saved) % 2 == 0
        plain_s = write_plain(plain, size_bytes) if first else 0.0
        phases = Phases()
        with (
            patch.object(checkpoint_writer, "_write", phases.timed("writing", checkpoint_writer._write)),
            patch.object(checkpoints, "own_outputs", phases.timed("hashing", checkpoints.own_outputs)),
            patch.object(checkpoints, "publish", phases.timed("hashing", checkpoints.publish)),
        ):
            phases.timed("else", save)(writer, state)
        measured.append({**phases.spent_s, "plain": plain_s if first else write_plain(plain, size_bytes)})

    class Watch(Callback):
        def fit_start(self, state: State, logger: Logger) -> None:
            if what == "load":
                raise Enough

        def batch_start(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch == (saves + 1) * INTERVAL:
                raise Enough

    phases = Phases()
    load = composer_checkpoint.load_checkpoint
    with (
        patch.object(CheckpointWriter, "save", watched_save),  # never called in a run that only loads
        patch.object(resume, "newest_intact", phases.timed("verifying", resume.newest_intact)),
        patch.object(composer_checkpoint, "load_checkpoint", phases.timed("loading", load)),
        suppress(Enough),
    ):
        trainer.connect(cfg)
        pretraining.fit(cfg, plan, shards, [Watch()])
    if rank == 0:
        say_result({"saves": measured, "parameters": plan.parameters, **phases.spent_s})


def own_files(checkpoint: Path, rank: int) -> list[Path]:
    """The files of a checkpoint that a rank wrote."""
    return [*checkpoint.glob(f"__{rank}_*"), *(checkpoint.glob(MONOLITH) if rank == 0 else ())]


def write_plain(path: Path, size_bytes: int) -> float:
    """Seconds until all ranks have written `size_bytes` each and flushed them to disk."""
    from composer.utils import dist

    block = memoryview(os.urandom(BLOCK_BYTES))
    dist.barrier()
    begin_s = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size_bytes, BLOCK_BYTES):
            file.write(block[: size_bytes - start])
        os.fsync(file.fileno())
    dist.barrier()
    return time.perf_counter() - begin_s


def read_plain(paths: Sequence[Path]) -> float:
    """Seconds that one process takes to read the files from disk."""
    forget(paths)
    begin_s = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
    return time.perf_counter() - begin_s


def forget(paths: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--yaml", default="yamls/smoke-cpu.yaml", help="configuration (default yamls/smoke-cpu.yaml)")
    parser.add_argument(
        "--ranks", nargs="+", type=int, default=[1], help="numbers of ranks to measure, one after another (default 1)"
    )
    parser.add_argument("--saves", type=int, default=3, help="number of timed saves (default 3)")
    parser.add_argument(
        "--folder", type=Path, help="folder on the disk to measure (default: the folder of temporary files)"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    args = parser.parse_intermixed_args(argv)
    if args.saves < 1 or min(args.ranks) < 1:
        raise BadInput(f"--saves {args.saves} and --ranks {args.ranks} must be above 0")
    if args.one:
        one(args.one[0], configuration(args.yaml, args.overrides, Path(args.one[1])), args.saves)
        return
    batch = [f"global_train_batch_size={max(args.ranks)}", "device_train_microbatch_size=1"]
    rows, exports = [], []
    for ranks in args.ranks:
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.folder))
        try:
            more_rows, export = measure(args, ranks, [*batch, *args.overrides], folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows += more_rows
        exports.append(export)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "transformers"))
    print(f"{args.yaml} {' '.join(args.overrides)}; {args.saves} saves, median; {machine()}; {versions}.\n")
    print("| | ranks | GB | seconds | GB/s | time / plain file's |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))
    print("\n| export | model in fp32, GB | seconds | peak memory, GB | peak / model |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(exports))


def measure(args: argparse.Namespace, ranks: int, overrides: Sequence[str], folder: Path) -> tuple[list[str], str]:
    """Measure a number of ranks; return the rows of the table and the row of the export.

    Raises:
        BadInput: a command failed.
    """
    cores = min(ranks, len(os.sched_getaffinity(0)))
    command = [
        *launched(ranks),
        str(Path(__file__).resolve()),
        "--yaml",
        args.yaml,
        "--saves",
        str(args.saves),
        *overrides,
    ]

    saved = result_of(measured([*command, "--one", "save", str(folder)], cores))
    checkpoint = complete_checkpoints(folder / "run" / CHECKPOINTS)[-1]
    files = [path for path in checkpoint.iterdir() if path.is_file()]
    size_gb = sum(path.stat().st_size for path in files) / 1e9
    print(f"{ranks} ranks: saved", file=sys.stderr, flush=True)
    read_s = read_plain(files)
    forget(files)
    loaded = result_of(measured([*command, "--one", "load", str(folder)], cores))
    print(f"{ranks} ranks: resumed", file=sys.stderr, flush=True)
    forget(files)
    out = folder / "exported"
    export = [sys.executable, ROOT / "recipes" / "export.py", "--checkpoint", folder / "run", "--out", out]
    exported = measured(export, 1)

    def row(name: str, seconds: Sequence[float], plain_s: Sequence[float]) -> str:
        taken_s = statistics.median(seconds)
        ratios = [one / other for one, other in zip(seconds, plain_s, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        return f"| {name} | {ranks} | {size_gb:.2f} | {taken_s:.2f} | {size_gb / taken_s:.2f} | {ratio} |"

    saves: list[dict[str, float]] = saved["saves"]
    wrote_s = [save["plain"] for save in saves]
    rows = [
        row("save", [save["writing"] + save["hashing"] + save["else"] for save in saves], wrote_s),
        row("save: writing", [save["writing"] for save in saves], wrote_s),
        row("save: hashing and naming", [save["hashing"] for save in saves], wrote_s),
        row("plain file of each rank, written and synced", wrote_s, wrote_s),
        row("resume: all files hashed", [loaded["verifying"]], [read_s]),
        row("resume: loaded by Composer", [loaded["loading"]], [read_s]),
        row("plain read by one process", [read_s], [read_s]),
    ]
    model_gb, peak_gb = 4 * saved["parameters"] / 1e9, exported.largest_process_bytes / 1e9
    source = "one file" if ranks == 1 else f"{ranks} parts"
    numbers = f"{model_gb:.2f} | {exported.wall_s:.1f} | {peak_gb:.2f} | {peak_gb / model_gb:.2f}"
    return rows, f"| of {source} | {numbers} |"


if __name__ == "__main__":
    run(main)

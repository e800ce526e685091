"""Train with injected faults: `inject.py FAULT… -- YAML key=value …` takes the place of recipes/train.py.

A fault is `kind:rank:batch`.
When the batch begins: `kill` (SIGKILL; `kill-all`: on every rank), `SIGTERM`, `SIGUSR1` (the rank signals itself),
`hang`, `small-disk` (from then on, files are limited to 1 MB), `no-folder` (the run folder vanishes).
During the batch: `nan` (its loss), `noise` (random tokens in the samples of this and the next three batches, whenever
these samples are read).
From the samples of the batch on: `no-data` (the workers of the loader deliver nothing).
After the batch: `eval-SIGTERM` (during its evaluation), `save-SIGTERM` (during its save), `lose-part` (the rank's file
of the checkpoint vanishes).
From the start: `own-disk` (the rank has another run folder than the others), `other-torch` (another version, as if on
another host), `no-data-path` (the ranks meet, but no data passes between them), `fsdp1-on-cpu` (the CPU is presented as
a CUDA device), `flip` (one bit of a loaded moment is flipped).
On all ranks, all the time: `impatient` and `patient` (about a remote that does not respond).
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.fsdp._init_utils as fsdp1
from composer import Callback, Logger, State
from composer.utils import dist

from callbacks import checkpoint_writer
from callbacks.checkpoint_writer import CheckpointWriter
from data_prep.common.errors import run
from data_prep.files import object_store
from patience import start_s
from recipes import train
from recipes.dataloading.mds_reader import TokenShard
from recipes.distributed import rank_zero, rendezvous
from recipes.runs import folder as run_folder
from recipes.training import prepared_run, trainer

FOR_EVER_S = 3600.0  # longer than any test waits


def pass_the_cpu_off_as_cuda() -> None:
    """Replace the four places where Composer and torch require a CUDA device before they run FSDP1."""
    choose, empty = prepared_run.parallelism_config, torch.nn.Module.to_empty

    def to_empty(module: torch.nn.Module, *, device: str, recurse: bool = True) -> torch.nn.Module:
        return empty(module, device="cpu", recurse=recurse)

    prepared_run.parallelism_config = lambda fsdp, checkpointing, device: choose(fsdp, checkpointing, "gpu")
    torch.cuda.current_device = lambda: torch.device("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    fsdp1._check_module_states_for_sync_module_states = lambda module_states: None
    setattr(torch.nn.Module, "to_empty", to_empty)  # noqa: B010 (a type checker refuses the plain assignment)


class Fault(Callback):
    run_dir: str

    def __init__(self, kind: str, rank: int, batch: int) -> None:
        self.kind, self.on_this_rank, self.batch = kind, rank == int(os.environ.get("RANK", "0")), batch
        if kind in ("impatient", "patient"):
            rank_zero.POLL_S = 0.2
            object_store.READ_TIMEOUT_S = start_s() / 2 if kind == "impatient" else FOR_EVER_S
            object_store.ATTEMPTS = 2
        if kind == "save-SIGTERM":
            original = CheckpointWriter.save

            def save(writer: CheckpointWriter, state: State) -> None:
                if self._due(state, finished=True):
                    os.kill(os.getpid(), signal.SIGTERM)
                original(writer, state)

            setattr(CheckpointWriter, "save", save)  # noqa: B010 (a type checker refuses the plain assignment)
        elif kind == "no-data":
            original_tokens, seen = TokenShard.tokens, itertools.count(1)

            def tokens(shard: TokenShard, idx: int) -> np.ndarray:
                if (
                    self.on_this_rank and "train" in str(shard._path) and next(seen) > (self.batch - 1) * 4
                ):  # each rank reads four samples a batch
                    time.sleep(FOR_EVER_S)
                return original_tokens(shard, idx)

            setattr(TokenShard, "tokens", tokens)  # noqa: B010
        elif kind == "lose-part":
            write = checkpoint_writer._write

            def lose(state: State, partial: Path) -> None:
                write(state, partial)
                if self._due(state, finished=True):
                    (partial / f"__{rank}_0.distcp").unlink()

            checkpoint_writer._write = lose
        elif kind == "fsdp1-on-cpu":
            pass_the_cpu_off_as_cuda()
        elif kind == "flip" and self.on_this_rank:
            check_loaded = trainer.check_loaded

            def flip(state: State, *more: Any) -> None:
                moment = next(iter(state.optimizers[0].state.values()))["exp_avg"]
                moment = moment.to_local() if hasattr(moment, "to_local") else moment
                moment.view(torch.int32).view(-1)[-1] ^= 1
                check_loaded(state, *more)

            trainer.check_loaded = flip
        elif kind == "other-torch" and self.on_this_rank:
            software = trainer.software
            trainer.software = lambda: {**software(), "versions": {"torch": "2.6.0"}}
        elif kind == "no-data-path" and self.on_this_rank:
            dist.initialize_dist = lambda *_: time.sleep(FOR_EVER_S)
        elif kind == "no-data-path":  # so that always the same rank gives up first
            trainer.data_must_pass = lambda timeout_s: rendezvous.data_must_pass(timeout_s + 3)
        elif kind == "own-disk":
            run_folder.SEEN_WITHIN_S = 1.0
            if self.on_this_rank:
                load, own = train.load_training_config, f"run_dir={tempfile.mkdtemp()}"
                train.load_training_config = lambda yaml, changes: load(yaml, [*changes, own])

    def _due(self, state: State, finished: bool) -> bool:
        return self.on_this_rank and int(state.timestamp.batch) + (not finished) == self.batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.kind == "kill-all" and int(state.timestamp.batch) + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self._due(state, finished=False):
            return
        if self.kind in ("SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, self.kind))
        elif self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "hang":
            print("hangs", flush=True)
            time.sleep(FOR_EVER_S)
        elif self.kind == "small-disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        elif self.kind == "no-folder":
            shutil.rmtree(self.run_dir)

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.kind == "noise":
            loader: Any = state.train_dataloader
            batch_size = loader.batch_size * dist.get_world_size()
            order = loader.dataset.sample_order(0, batch_size)
            self.samples = torch.from_numpy(order[(self.batch - 1) * batch_size :][: 4 * batch_size])

    def after_dataloader(self, state: State, logger: Logger) -> None:
        if self.kind == "noise":
            noisy = torch.isin(state.batch["sample_ids"], self.samples)
            ids = state.batch["input_ids"]
            ids[noisy] = (ids[noisy] * 101 + torch.arange(ids.shape[1]) * 7) % 600

    def before_backward(self, state: State, logger: Logger) -> None:
        if self.kind == "nan" and self._due(state, finished=False):
            state.loss = state.loss * float("nan")  # pyright: ignore[reportOperatorIssue]

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        if self.kind == "eval-SIGTERM" and self._due(state, finished=True) and int(state.eval_timestamp.batch) == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    at = sys.argv.index("--")
    faults: list[Any] = []
    for text in sys.argv[1:at]:
        kind, rank, batch = text.split(":")
        faults.append(Fault(kind, int(rank), int(batch)))
    original = trainer.build_callbacks

    def build_callbacks(cfg: Any, run: Any) -> list[Callback]:
        for fault in faults:
            fault.run_dir = cfg.run_dir
        return [*faults, *original(cfg, run)]

    trainer.build_callbacks = build_callbacks
    train.command_line(sys.argv[at + 1 :])
    print(f"rank {dist.get_global_rank()} ended")


if __name__ == "__main__":
    run(main)

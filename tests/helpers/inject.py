"""Train with a fault built in: `inject.py FAULT… -- YAML key=value …`, in the place of recipes/train.py.

A fault is `what:rank:batch`. As the batch begins: `kill` (SIGKILL; `kill-all`: on every rank), `SIGTERM`, `SIGUSR1`
(each to itself), `hang`, `small-disk` (no file above 1 MB from there on), `no-folder` (the run's folder vanishes). In
it: `nan` (its loss), `noise` (random tokens in the samples that are due in it and in the three batches after it,
whenever they come). From its samples on: `no-data` (the loader's workers deliver nothing). After it: `eval-SIGTERM` (in
its evaluation), `save-SIGTERM` (in the midst of its checkpoint), `lose-part` (its file of the checkpoint vanishes).
From the start: `own-disk` (its run folder is another than that of the others), `other-torch` (another version, as if on
another host), `no-data-path` (the ranks meet and no data passes between them), `fsdp1-on-cpu` (the CPU passes for a
CUDA device), `flip` (one bit of a moment that it has loaded). On all ranks, all the time: `impatient` and `patient`
(with a remote that does not answer).
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
    """At the four places where Composer and torch ask for a CUDA device before they run FSDP1."""
    choose, empty = prepared_run.parallelism_config, torch.nn.Module.to_empty

    def to_empty(module: torch.nn.Module, *, device: str, recurse: bool = True) -> torch.nn.Module:
        return empty(module, device="cpu", recurse=recurse)

    prepared_run.parallelism_config = lambda fsdp, checkpointing, device: choose(fsdp, checkpointing, "gpu")
    torch.cuda.current_device = lambda: torch.device("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    fsdp1._check_module_states_for_sync_module_states = lambda module_states: None
    setattr(torch.nn.Module, "to_empty", to_empty)  # noqa: B010 (a type checker refuses the plain assignment)


class Fault(Callback):
    run_dir: str

    def __init__(self, what: str, rank: int, batch: int) -> None:
        self.what, self.here, self.batch = what, rank == int(os.environ.get("RANK", "0")), batch
        if what in ("impatient", "patient"):
            rank_zero.POLL_S = 0.2
            object_store.READ_TIMEOUT_S = start_s() / 2 if what == "impatient" else FOR_EVER_S
            object_store.ATTEMPTS = 2
        if what == "save-SIGTERM":
            original = CheckpointWriter.save

            def save(writer: CheckpointWriter, state: State) -> None:
                if self._due(state, finished=True):
                    os.kill(os.getpid(), signal.SIGTERM)
                original(writer, state)

            setattr(CheckpointWriter, "save", save)  # noqa: B010 (a type checker refuses the plain assignment)
        elif what == "no-data":
            original_tokens, seen = TokenShard.tokens, itertools.count(1)

            def tokens(shard: TokenShard, idx: int) -> np.ndarray:
                if self.here and "train" in str(shard._path) and next(seen) > (self.batch - 1) * 4:  # four a rank
                    time.sleep(FOR_EVER_S)
                return original_tokens(shard, idx)

            setattr(TokenShard, "tokens", tokens)  # noqa: B010
        elif what == "lose-part":
            write = checkpoint_writer._write

            def lose(state: State, partial: Path) -> None:
                write(state, partial)
                if self._due(state, finished=True):
                    (partial / f"__{rank}_0.distcp").unlink()

            checkpoint_writer._write = lose
        elif what == "fsdp1-on-cpu":
            pass_the_cpu_off_as_cuda()
        elif what == "flip" and self.here:
            check_loaded = trainer.check_loaded

            def flip(state: State, *more: Any) -> None:
                moment = next(iter(state.optimizers[0].state.values()))["exp_avg"]
                moment = moment.to_local() if hasattr(moment, "to_local") else moment
                moment.view(torch.int32).view(-1)[-1] ^= 1
                check_loaded(state, *more)

            trainer.check_loaded = flip
        elif what == "other-torch" and self.here:
            software = trainer.software
            trainer.software = lambda: {**software(), "versions": {"torch": "2.6.0"}}
        elif what == "no-data-path" and self.here:
            dist.initialize_dist = lambda *_: time.sleep(FOR_EVER_S)
        elif what == "no-data-path":  # so that it is always the same rank that gives up first
            trainer.data_must_pass = lambda timeout_s: rendezvous.data_must_pass(timeout_s + 3)
        elif what == "own-disk":
            run_folder.SEEN_WITHIN_S = 1.0
            if self.here:
                load, own = train.load_training_config, f"run_dir={tempfile.mkdtemp()}"
                train.load_training_config = lambda yaml, changes: load(yaml, [*changes, own])

    def _due(self, state: State, finished: bool) -> bool:
        return self.here and int(state.timestamp.batch) + (not finished) == self.batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.what == "kill-all" and int(state.timestamp.batch) + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self._due(state, finished=False):
            return
        if self.what in ("SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, self.what))
        elif self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "hang":
            print("hangs", flush=True)
            time.sleep(FOR_EVER_S)
        elif self.what == "small-disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        elif self.what == "no-folder":
            shutil.rmtree(self.run_dir)

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.what == "noise":
            loader: Any = state.train_dataloader
            batch_size = loader.batch_size * dist.get_world_size()
            order = loader.dataset.sample_order(0, batch_size)
            self.samples = torch.from_numpy(order[(self.batch - 1) * batch_size :][: 4 * batch_size])

    def after_dataloader(self, state: State, logger: Logger) -> None:
        if self.what == "noise":
            noisy = torch.isin(state.batch["sample_ids"], self.samples)
            ids = state.batch["input_ids"]
            ids[noisy] = (ids[noisy] * 101 + torch.arange(ids.shape[1]) * 7) % 600

    def before_backward(self, state: State, logger: Logger) -> None:
        if self.what == "nan" and self._due(state, finished=False):
            state.loss = state.loss * float("nan")  # pyright: ignore[reportOperatorIssue]

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        if self.what == "eval-SIGTERM" and self._due(state, finished=True) and int(state.eval_timestamp.batch) == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    at = sys.argv.index("--")
    faults: list[Any] = []
    for text in sys.argv[1:at]:
        what, rank, batch = text.split(":")
        faults.append(Fault(what, int(rank), int(batch)))
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

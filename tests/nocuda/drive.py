"""Runs a command of the recipe under the no-op CUDA: `drive.py recipes/train.py yamls/smoke-gpu.yaml key=value …`.

Replaced are only the numbers that a kernel would have computed and that decide how the run goes on: whether an epoch is
over (Composer adds 1 to a tensor on the device), and how far the attention's logits lie apart (all of them are 0 here).
What computes them runs all the same. `count-waits` as the first argument prints which lines of one batch wait for the
device.
"""

from __future__ import annotations

import collections
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from composer import Trainer
from composer.core import Event
from composer.trainer.trainer import TrainerMode
from composer.utils import dist

import recipes.attention

COUNTED_BATCH = 3  # the first two compile, connect and fill caches; monitors are due later


def batches(trainer: Any, mode: TrainerMode) -> Iterator[Any]:
    """Composer's Trainer._iter_dataloader (0.32.1); the flag that ranks share is made on the CPU."""
    loader = iter(trainer.state.dataloader)
    left = trainer.state.dataloader_len
    left = None if left is None else int(left)
    while True:
        if mode == TrainerMode.TRAIN:
            trainer.engine.run_event(Event.BEFORE_DATALOADER)
        batch = next(loader, None) if left is None or left > 0 else None
        if batch is None and mode == TrainerMode.TRAIN:
            trainer.engine.run_marker_only_event(Event.AFTER_DATALOADER)
        finished = trainer.state.device.tensor_to_device(torch.tensor([batch is None], dtype=torch.uint8))
        dist.all_reduce(finished, reduce_operation="MAX")
        if finished.item() == 1:
            return
        left = None if left is None else left - 1
        yield batch


def parity(model: Any, *arguments: Any) -> recipes.attention.Parity:
    """The comparison as it is computed, and then numbers that let the run start."""
    found = compared(model, *arguments)
    return replace(found, difference=1e-7, difference_unscaled=1.0)


def count_waits(train_batch: Callable[..., Any]) -> Callable[..., Any]:
    """Trainer._train_batch that has one batch, from its start to the start of the next, counted."""
    seen: collections.Counter[str] = collections.Counter()
    calls = 0

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            ours = ("/composer/", "/recipes/", "/callbacks/", "/torch/nn/utils/", "/torch/optim/")
            frame = [frame for frame in traceback.extract_stack() if any(part in frame.filename for part in ours)][-1]
            seen[f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.line}"] += 1

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == COUNTED_BATCH:
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
        elif calls == COUNTED_BATCH + 1:
            torch.cuda.set_sync_debug_mode("default")
            for line, times in seen.most_common():
                print(f"wait: {times} {line}", flush=True)
        return train_batch(*arguments, **more)

    return counted


if __name__ == "__main__":
    compared = recipes.attention.attention_parity
    recipes.attention.attention_parity = parity
    Trainer._iter_dataloader = batches  # pyright: ignore[reportAttributeAccessIssue]
    del sys.argv[0]
    if sys.argv[0] == "count-waits":
        del sys.argv[0]
        Trainer._train_batch = count_waits(Trainer._train_batch)  # pyright: ignore[reportAttributeAccessIssue]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Spike guard: after a loss spike, rewind the run to an earlier checkpoint and skip the data of the spike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from composer import Callback, Logger, State
from composer.utils import dist
from torch.utils.data import DataLoader

from callbacks.checkpoint_writer import CheckpointWriter
from data_prep.common.exit_codes import BAD_NUMBERS
from data_prep.common.files import JsonDict
from data_prep.sharding.shard_format import DOCUMENTS
from recipes.dataloading import skipped_data
from recipes.dataloading.token_dataset import TokenShards
from recipes.distributed.rank_zero import on_rank_zero

TRAIN_LOSS = "loss/train/total"
# The standard deviation of a normal distribution, in median absolute deviations.
SIGMAS_A_DEVIATION = 1.4826
MORE_REWINDS = "a higher callbacks.spike_guard.max_rewinds allows more"


class Rewind(Exception):
    """Raised on every rank after the skipped data was recorded: the run must start again from an earlier checkpoint."""


class TooManyRewinds(SystemExit):
    """Raised on every rank at a spike after `max_rewinds` rewinds; ends the process with exit code BAD_NUMBERS."""

    def __init__(self) -> None:
        super().__init__(BAD_NUMBERS)


class SpikeGuard(Callback):
    """Rewinds the run to the newest checkpoint before a loss spike, and skips the data that was read since.

    A batch spikes if its loss is above the median of the last `window_batches` that did not spike, by at least
    `threshold` robust standard deviations and by at least `min_rise`. PaLM was rewound in this way by hand (arXiv
    2204.02311, section 5.1): about 100 steps back, 200 to 500 batches skipped, and the spike did not come again. The
    skipped samples are recorded in skipped.jsonl.

    | key              | unit                                               |
    |------------------|----------------------------------------------------|
    | guard/loss_limit | nats per token; a loss above this limit is a spike |

    Args:
        window_batches: number of batches for the median; no batch is judged before there are that many.
        threshold: smallest rise above the median, in robust standard deviations (1.4826 median absolute deviations).
        min_rise: smallest rise above the median, in nats per token.
        patience_batches: number of spiking batches in a row that causes a rewind; a shorter spike is ignored.
        max_rewinds: number of rewinds after which a further spike ends the run.
        folder: the run folder.
        writer: writer of the checkpoints.
    """

    def __init__(
        self,
        window_batches: int,
        threshold: float,
        min_rise: float,
        patience_batches: int,
        max_rewinds: int,
        folder: Path,
        writer: CheckpointWriter,
    ) -> None:
        self.threshold = threshold
        self.min_rise = min_rise
        self.patience_batches = patience_batches
        self.max_rewinds = max_rewinds
        self.folder = folder
        self.writer = writer
        self._losses: deque[float] = deque(maxlen=window_batches)
        self._spiking: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """The losses that the next batch is compared with, so that a resumed run judges like an uninterrupted one."""
        return {"losses": list(self._losses), "spiking": list(self._spiking)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the losses of a checkpoint; if `window_batches` is smaller now, only the newest are kept."""
        self._losses.extend(state["losses"])
        self._spiking = list(state["spiking"])

    def fit_start(self, state: State, logger: Logger) -> None:
        """Warn if the next spike will end the run. Rewinds are counted over all starts of a run."""
        rewinds = len(skipped_data.read(self.folder))
        if rewinds >= self.max_rewinds and dist.get_global_rank() == 0:
            print(
                f"warning: this run was rewound {rewinds} times; the next spike ends the run; {MORE_REWINDS}",
                flush=True,
            )

    def _limit(self) -> float:
        """The loss above which a batch spikes."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return math.inf
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(self.threshold * SIGMAS_A_DEVIATION * deviation, self.min_rise)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Judge the loss of the batch. It is the same number on all ranks, so all ranks decide alike."""
        loss, limit = float(state.total_loss_dict[TRAIN_LOSS]), self._limit()
        if math.isfinite(limit):
            logger.log_metrics({"guard/loss_limit": limit})
        if loss <= limit:
            self._losses.append(loss)
            self._spiking.clear()
        elif math.isfinite(limit):
            self._spiking.append(loss)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Rewind if due: after the metrics of the batch were written, before it is saved and evaluated.

        Raises:
            Rewind: the loss spiked for `patience_batches`.
            TooManyRewinds: the same, but the run was already rewound `max_rewinds` times.
        """
        self._leave_if_spiking(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Do the same as `eval_before_all`, for a batch that is not evaluated."""
        self._leave_if_spiking(state)

    def _leave_if_spiking(self, state: State) -> None:
        if len(self._spiking) < self.patience_batches:
            return
        self.writer.wait_for_upload()
        raise Rewind if on_rank_zero(lambda: self._rewind(state)) else TooManyRewinds

    def _rewind(self, state: State) -> bool:
        """On rank 0: make the next start begin before the spike and skip its data. False after too many rewinds."""
        batch = int(state.timestamp.batch)
        first = batch - len(self._spiking) + 1
        spike = f"batches {first} to {batch} have losses of {', '.join(f'{loss:.3g}' for loss in self._spiking)}"
        spike = f"loss spike: {spike}, above {self._limit():.3g}"
        entries = skipped_data.read(self.folder)
        if len(entries) >= self.max_rewinds:
            print(
                f"error: {spike}, after {len(entries)} rewinds. The same command resumes from the newest checkpoint, "
                f"and the next spike ends the run again; {MORE_REWINDS}, or see docs/operations.md, exit code 3",
                flush=True,
            )
            return False
        loader = cast(DataLoader[Any], state.train_dataloader)
        data = cast(TokenShards, loader.dataset)
        batch_size = int(loader.batch_size or 0) * dist.get_world_size()
        goal = self.writer.saved_before(first)
        now = {"epoch": int(state.timestamp.epoch), "sample_in_epoch": int(state.timestamp.sample_in_epoch)}
        windows = _between(goal, now, data.skipped, data.epoch_size // batch_size * batch_size)
        samples = [
            int(sample)
            for epoch, begin, end in windows
            for position, sample in enumerate(data.sample_order(epoch, batch_size)[begin:end], begin)
            if not skipped_data.is_skipped(data.skipped, epoch, position)
        ]
        left_out = {
            folder: _with_documents(folder, places.tolist(), state.batch["input_ids"].shape[1])
            for folder, places in data.by_folder(np.array(samples, np.int64)).items()
        }
        # Discard first: if the run is killed here, it meets the spike again, and does not resume after it.
        self.writer.discard_from(first)
        entry = {"from_batch": batch, "to_batch": goal["batch"], "losses": list(self._spiking), "limit": self._limit()}
        skipped_data.append(self.folder, {**entry, "windows": windows}, left_out)
        documents = sum(len(ids) for _, ids in left_out.values())
        print(
            f"warning: {spike}: back to batch {goal['batch']}, skipping {len(samples):,} samples of "
            f"{documents:,} documents ({self.folder / skipped_data.LEDGER})",
            flush=True,
        )
        return True


def _with_documents(folder: Path, samples: list[int], seq_len: int) -> tuple[list[int], list[str]]:
    """The samples, and the ids of their documents; no ids if the shards were fetched from a remote without the list."""
    there = (folder / DOCUMENTS).is_file()
    return samples, skipped_data.documents_of(folder, samples, seq_len) if there else []


def _between(
    goal: JsonDict, end: JsonDict, skipped: Sequence[skipped_data.Window], epoch_end: int
) -> list[skipped_data.Window]:
    """Positions in the data from `goal` to `end`, each with `epoch` and `sample_in_epoch`, in trained samples."""
    windows = []
    for epoch in range(goal["epoch"], end["epoch"] + 1):
        begin = skipped_data.position(skipped, epoch, goal["sample_in_epoch"]) if epoch == goal["epoch"] else 0
        last = (
            skipped_data.position(skipped, epoch, end["sample_in_epoch"] - 1)
            if epoch == end["epoch"]
            else epoch_end - 1
        )
        windows.append((epoch, begin, last + 1))
    return skipped_data.merge(windows)

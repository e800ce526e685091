"""A run whose loss jumps up and stays there goes back, and around the data that it met."""

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
# Of a normal distribution, the standard deviation is this many median absolute deviations.
SIGMAS_A_DEVIATION = 1.4826
MORE_REWINDS = "a higher callbacks.spike_guard.max_rewinds allows more"


class Rewind(Exception):
    """Raised on every rank once the ledger is written: the run is to be started again, from an earlier checkpoint."""


class TooManyRewinds(SystemExit):
    """Raised on every rank when the loss spikes once more; ends the process with BAD_NUMBERS."""

    def __init__(self) -> None:
        super().__init__(BAD_NUMBERS)


class SpikeGuard(Callback):
    """Rewinds the run when its loss spikes: back to the newest checkpoint before, past the data read since.

    A batch spikes when its loss is above the median of the last `window_batches` that did not, by `threshold` robust
    standard deviations and by `min_rise` at the least; as PaLM did it by hand (arXiv 2204.02311, 5.1: back by some 100
    steps, 200 to 500 batches left out, and the spike did not come again). What is left out stands in the ledger.

    | key              | unit                                               |
    |------------------|----------------------------------------------------|
    | guard/loss_limit | nats a token; a loss above it is a spike           |

    Args:
        window_batches: batches that the median is taken over; none is judged before there are so many.
        threshold: robust standard deviations (1.4826 median absolute deviations) above the median.
        min_rise: nats a token above the median.
        patience_batches: a spike of fewer batches passes by itself.
        max_rewinds: a further spike ends the run.
        folder: the run folder.
        writer: writer of its checkpoints.
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
        """The losses that the next batch is judged by, so that a resumed run judges as the uninterrupted one."""
        return {"losses": list(self._losses), "spiking": list(self._spiking)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was saved; with another `window_batches`, of the newest losses."""
        self._losses.extend(state["losses"])
        self._spiking = list(state["spiking"])

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say so if the next spike ends the run: rewinds are counted over all starts of a run."""
        rewinds = len(skipped_data.read(self.folder))
        if rewinds >= self.max_rewinds and dist.get_global_rank() == 0:
            print(f"warning: this run was rewound {rewinds} times; the next spike ends it; {MORE_REWINDS}", flush=True)

    def _limit(self) -> float:
        """The loss above which a batch spikes."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return math.inf
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(self.threshold * SIGMAS_A_DEVIATION * deviation, self.min_rise)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Judge the batch. Its loss is the same number on all ranks, so they agree."""
        loss, limit = float(state.total_loss_dict[TRAIN_LOSS]), self._limit()
        if math.isfinite(limit):
            logger.log_metrics({"guard/loss_limit": limit})
        if loss <= limit:
            self._losses.append(loss)
            self._spiking.clear()
        elif math.isfinite(limit):
            self._spiking.append(loss)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Before the batch is saved and evaluated, and after its metrics were written.

        Raises:
            Rewind: the loss spiked for `patience_batches`.
            TooManyRewinds: and it did so too often.
        """
        self._leave_if_spiking(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """As `eval_before_all`, where the batch is not evaluated."""
        self._leave_if_spiking(state)

    def _leave_if_spiking(self, state: State) -> None:
        if len(self._spiking) < self.patience_batches:
            return
        self.writer.wait_for_upload()
        raise Rewind if on_rank_zero(lambda: self._rewind(state)) else TooManyRewinds

    def _rewind(self, state: State) -> bool:
        """On rank 0: have the next start begin before the spike and leave its data out; False if that was too often."""
        batch = int(state.timestamp.batch)
        first = batch - len(self._spiking) + 1
        spike = f"batches {first} to {batch} have losses of {', '.join(f'{loss:.3g}' for loss in self._spiking)}"
        spike = f"loss spike: {spike}, above {self._limit():.3g}"
        entries = skipped_data.read(self.folder)
        if len(entries) >= self.max_rewinds:
            print(
                f"error: {spike}, after {len(entries)} rewinds. The same command resumes from the newest checkpoint, "
                f"and the next spike ends it again; {MORE_REWINDS}, or see docs/operations.md, exit code 3",
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
        # First, so that a run that is killed here meets the spike again, and does not continue behind it.
        self.writer.discard_from(first)
        entry = {"from_batch": batch, "to_batch": goal["batch"], "losses": list(self._spiking), "limit": self._limit()}
        skipped_data.append(self.folder, {**entry, "windows": windows}, left_out)
        documents = sum(len(ids) for _, ids in left_out.values())
        print(
            f"warning: {spike}: back to batch {goal['batch']}, leaving out {len(samples):,} samples of "
            f"{documents:,} documents ({self.folder / skipped_data.LEDGER})",
            flush=True,
        )
        return True


def _with_documents(folder: Path, samples: list[int], seq_len: int) -> tuple[list[int], list[str]]:
    """Samples of a split, and the ids of their documents; none where shards that are fetched come without the list."""
    there = (folder / DOCUMENTS).is_file()
    return samples, skipped_data.documents_of(folder, samples, seq_len) if there else []


def _between(
    goal: JsonDict, end: JsonDict, skipped: Sequence[skipped_data.Window], epoch_end: int
) -> list[skipped_data.Window]:
    """The positions from `goal` to `here`; both say `epoch` and `sample_in_epoch`, in samples that were trained on."""
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

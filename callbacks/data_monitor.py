"""Log how long the run waits for data, how many passes it has made, and which share comes from which folder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from recipes.planning.mixing import ShardFolder


class DataMonitor(Callback):
    """Logs these metrics every `interval_batches`.

    | key                        | unit                                                              |
    |----------------------------|-------------------------------------------------------------------|
    | throughput/data_wait_share | share of the time in batches, 0 to 1, that was spent waiting for  |
    |                            | data, on the rank that waited longest                             |
    | time/passes                | passes over the training split                                    |
    | data/share/NAME            | share of the interval's samples, 0 to 1, that came from the       |
    |                            | folder NAME of data.mix                                           |

    Args:
        interval_batches: number of batches between two values.
        folders: folders of token shards that the run reads.
    """

    def __init__(self, interval_batches: int, folders: Sequence[ShardFolder]) -> None:
        self.interval_batches, self.folders = interval_batches, folders
        self.train_tokens = sum(folder.samples_a_pass for folder in folders) * folders[0].info.seq_len
        # The sample numbers of a folder follow those of the folder before it.
        ends = torch.tensor([folder.info.counts["train"].samples for folder in folders]).cumsum(0)
        self._first_of_next, self._read = ends[:-1], torch.zeros(len(folders), dtype=torch.int64)
        self._asked_s = time.monotonic()
        self._waited_s = self._batches_s = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Note the time at which the Trainer asks for a batch."""
        self._asked_s = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Add the time until the batch arrived."""
        self._waited_s += time.monotonic() - self._asked_s

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the metrics at the end of an interval. Evaluations and saves come later and are not counted."""
        self._batches_s += time.monotonic() - self._asked_s
        of = torch.bucketize(state.batch["sample_ids"].cpu(), self._first_of_next, right=True)
        self._read += torch.bincount(of, minlength=len(self.folders))
        if int(state.timestamp.batch) % self.interval_batches:
            return
        waited_s = state.device.tensor_to_device(torch.tensor([self._waited_s]))
        dist.all_reduce(waited_s, reduce_operation="MAX")
        passes = int(state.timestamp.token) / self.train_tokens
        share = min(1.0, waited_s.item() / max(self._batches_s, 1e-9))
        logger.log_metrics({"throughput/data_wait_share": share, "time/passes": passes, **self._shares(state)})
        self._waited_s = self._batches_s = 0.0
        self._read = torch.zeros_like(self._read)

    def _shares(self, state: State) -> dict[str, float]:
        """Share of the interval's samples, on all ranks, that came from each folder that is mixed in."""
        if len(self.folders) == 1:
            return {}
        read = state.device.tensor_to_device(self._read)
        dist.all_reduce(read)
        shares = (read / read.sum()).tolist()
        return {f"data/share/{of.name}": share for of, share in zip(self.folders, shares, strict=True) if of.name}

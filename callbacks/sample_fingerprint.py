"""Log one number that identifies the samples of each batch."""

from __future__ import annotations

import torch
from composer import Callback, Logger, State

from callbacks.rank_sums import RankSums

# Odd multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as int64.
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


class SampleFingerprint(Callback):
    """Logs a hash of the set of training samples in each global batch.

    Equal numbers mean equal samples. In metrics.jsonl one can thus compare a resumed run with the interrupted run, or a
    run on two ranks with a run on eight. The number is the sum of a hash of each sample's id, so it does not depend on
    which rank had which sample.

    | key                      | unit                                  |
    |--------------------------|---------------------------------------|
    | data/batch_fingerprint   | integer of 52 bits, exact in a float  |

    Args:
        sums: sums the hashes over the ranks.
    """

    def __init__(self, sums: RankSums) -> None:
        self.sums = sums
        sums.ask("fingerprint", self._of_rank)

    def _of_rank(self, state: State) -> int:
        """Sum of hashes on this rank, an int64. The Trainer keeps the tensors of `state.batch` on the CPU."""
        return _mixed(state.batch["sample_ids"].cpu())

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the fingerprint of the batch."""
        logger.log_metrics({"data/batch_fingerprint": of_sum(self.sums.of["fingerprint"])})


def of_samples(ids: torch.Tensor) -> int:
    """Fingerprint of a batch with these sample ids."""
    return of_sum(_mixed(ids))


def _mixed(ids: torch.Tensor) -> int:
    """Sum of the hashes of sample ids, an int64; it wraps around on purpose."""
    mixed = (ids + 1) * _FIRST
    mixed = (mixed ^ (mixed >> 27)) * _SECOND
    return int((mixed ^ (mixed >> 31)).sum())


def of_sum(mixed: int) -> int:
    """Fingerprint of a batch, from the sum of hashes over all ranks."""
    return mixed & (1 << 52) - 1

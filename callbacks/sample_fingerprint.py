"""Which samples made up each batch, as one number."""

from __future__ import annotations

import torch
from composer import Callback, Logger, State

from callbacks.rank_sums import RankSums

# Odd multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as int64.
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


class SampleFingerprint(Callback):
    """Logs a hash of the set of training samples in each global batch.

    Equal numbers, equal samples: a resumed run can be compared with the run that it resumes, and a run on two
    ranks with one on eight, in metrics.jsonl. Each sample's id is mixed, and the sum does not depend on which rank had
    the sample.

    | key                      | unit                          |
    |--------------------------|-------------------------------|
    | data/batch_fingerprint   | 52 bits, exact in a float     |

    Args:
        sums: adds up the ranks' parts.
    """

    def __init__(self, sums: RankSums) -> None:
        self.sums = sums
        sums.ask("fingerprint", self._of_rank)

    def _of_rank(self, state: State) -> int:
        """This rank's part, an int64. Trainer keeps a batch's own tensors on the CPU."""
        return _mixed(state.batch["sample_ids"].cpu())

    def batch_end(self, state: State, logger: Logger) -> None:
        """The number of the batch that has been trained on."""
        logger.log_metrics({"data/batch_fingerprint": of_sum(self.sums.of["fingerprint"])})


def of_samples(ids: torch.Tensor) -> int:
    """The number of a batch of these samples."""
    return of_sum(_mixed(ids))


def _mixed(ids: torch.Tensor) -> int:
    """The sum of mixed ids, an int64; wrapping around is meant."""
    mixed = (ids + 1) * _FIRST
    mixed = (mixed ^ (mixed >> 27)) * _SECOND
    return int((mixed ^ (mixed >> 31)).sum())


def of_sum(mixed: int) -> int:
    """The number of a batch, whose mixed ids of all ranks add up to this."""
    return mixed & (1 << 52) - 1

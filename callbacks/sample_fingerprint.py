"""Which samples made up each batch, as one number."""

from __future__ import annotations

from composer import Callback, Logger, State
from composer.utils import dist

# Odd multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as int64.
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


class SampleFingerprint(Callback):
    """Logs a hash of the set of training samples in each global batch.

    Equal numbers, equal samples: a resumed run can be compared with the run that it goes on from, and a run on two
    ranks with one on eight, in metrics.jsonl. Each sample's id is mixed, and the sum does not depend on which rank had
    the sample.

    | key                      | unit                          |
    |--------------------------|-------------------------------|
    | data/batch_fingerprint   | 52 bits, exact in a float     |
    """

    def batch_end(self, state: State, logger: Logger) -> None:
        """One integer a rank is summed; wrapping around is meant."""
        ids = state.batch["sample_ids"]
        mixed = (ids + 1) * _FIRST
        mixed = (mixed ^ (mixed >> 27)) * _SECOND
        total = (mixed ^ (mixed >> 31)).sum().reshape(1)
        dist.all_reduce(total)
        logger.log_metrics({"data/batch_fingerprint": int(total.item()) & (1 << 52) - 1})

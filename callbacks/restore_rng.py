"""Restore the random state of a checkpoint, so that a resumed run draws the dropout masks of an uninterrupted one."""

from __future__ import annotations

from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility

from data_prep.common.errors import BadInput

ALTERED = "the checkpoint was altered after it was written; remove it, and the run resumes from the one before"


class RestoreRNG(Callback):
    """Restores the random state of a checkpoint, which Composer 0.32.1 does not do in our case.

    The Trainer restores the random state in a loop that it skips if the dataset resumes by itself, as StreamingDataset
    does. Dropout masks would then start again from the seed. `rng` is set from the Trainer after it has loaded a
    checkpoint.
    """

    def __init__(self) -> None:
        self.rng: list[dict[str, Any]] | None = None

    def after_load(self, state: State, logger: Logger) -> None:
        """Check the seed of the checkpoint, before Composer seeds all generators with it.

        Raises:
            BadInput: the seed is not a valid seed.
        """
        seed: object = state.rank_zero_seed
        if type(seed) is not int or not 0 <= seed < 2**32 - dist.get_world_size():
            raise BadInput(f"the seed of the checkpoint is {str(seed)[:80]!r}; {ALTERED}")

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Restore the state at the start of an epoch, before the loader draws its base seed."""
        self._restore()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Restore the state in the middle of an epoch, before the first resumed batch."""
        self._restore()

    def _restore(self) -> None:
        if self.rng is not None:
            try:
                reproducibility.load_rng_state(self.rng)
            except (TypeError, ValueError, RuntimeError, LookupError) as error:
                raise BadInput(f"the random state of the checkpoint cannot be restored ({error}); {ALTERED}") from None
            self.rng = None

"""Dropout continues where it stopped when a run is resumed."""

from __future__ import annotations

from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility

from data_prep.common.errors import BadInput

ALTERED = "it was altered after it was written; remove that checkpoint, and the one before it is resumed"


class RestoreRNG(Callback):
    """Restores the random state of a checkpoint, which Composer 0.32.1 does not.

    Trainer restores it in a loop that it skips when the dataset resumes itself, as StreamingDataset does, so that
    dropout masks would start again from the seed. `rng` is set from the Trainer after it has loaded a checkpoint.
    """

    def __init__(self) -> None:
        self.rng: list[dict[str, Any]] | None = None

    def after_load(self, state: State, logger: Logger) -> None:
        """Before Composer seeds everything anew with what it has loaded.

        Raises:
            BadInput: the seed of the checkpoint is none.
        """
        seed: object = state.rank_zero_seed
        if type(seed) is not int or not 0 <= seed < 2**32 - dist.get_world_size():
            raise BadInput(f"the seed of the checkpoint is {str(seed)[:80]!r}; {ALTERED}")

    def epoch_start(self, state: State, logger: Logger) -> None:
        """At an epoch's start, before the loader draws its base seed."""
        self._restore()

    def batch_start(self, state: State, logger: Logger) -> None:
        """In the middle of an epoch, before the first resumed batch."""
        self._restore()

    def _restore(self) -> None:
        if self.rng is not None:
            try:
                reproducibility.load_rng_state(self.rng)
            except (TypeError, ValueError, RuntimeError, LookupError) as error:
                raise BadInput(f"the random state of the checkpoint cannot be restored ({error}); {ALTERED}") from None
            self.rng = None

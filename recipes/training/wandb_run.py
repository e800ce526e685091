"""The run on Weights & Biases: Composer's logger, with one step for one batch, and a run that does not end for it."""

from __future__ import annotations

import sys
from typing import Any

from composer import Logger, State
from composer.loggers import WandBLogger

from data_prep.common.errors import BadInput
from recipes.config.wandb_account import WAY_OUT
from recipes.training.batch_metrics import BatchMetrics


class WandBRun(BatchMetrics, WandBLogger):
    """A run there, or its files here for `wandb sync`.

    Args:
        resumed: whether the run began earlier; if W&B then refuses it, it is logged offline.
        arguments: WandBLogger's.
    """

    def __init__(self, resumed: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._resumed = resumed

    def init(self, state: State, logger: Logger) -> None:
        """Begin it.

        Raises:
            BadInput: W&B refuses the run, which is new.
        """
        import wandb

        try:
            super().init(state, logger)
        except wandb.Error as error:
            if not self._resumed:
                raise BadInput(f"W&B does not take the run ({error}); mend loggers.wandb, {WAY_OUT}") from None
            print(f"warning: W&B does not take the run ({error}); this start logs offline", file=sys.stderr)
            self._init_kwargs["mode"] = "offline"
            super().init(state, logger)

    def write(self, metrics: dict[str, Any], state: State) -> None:
        """At the number of batches."""
        WandBLogger.log_metrics(self, metrics, int(state.timestamp.batch))

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Nothing: W&B's tables ask its server, offline too, and wait for it for ever (wandb 0.18)."""

"""The run on Weights & Biases: Composer's logger, with one step for one batch, and a run that does not end for it."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.loggers import WandBLogger

from data_prep.common.errors import BadInput
from recipes.config.wandb_account import WAY_OUT
from recipes.training import wandb_live
from recipes.training.batch_metrics import BatchMetrics
from recipes.training.wandb_live import redacted_command_line


def _keep_get_url() -> None:
    """Give W&B's run the method that Composer's logger calls, which newer releases of wandb lack."""
    from wandb.sdk.wandb_run import Run

    if not hasattr(Run, "get_url"):
        setattr(Run, "get_url", lambda run: run.url)  # noqa: B010 (pyright knows no such attribute)


class WandBRun(BatchMetrics, WandBLogger):
    """W&B's files of the run here, for `wandb sync`; online, a process beside the training sends the same at once.

    Args:
        metrics: the run's metrics.jsonl.
        online: whether it is sent as it goes.
        resumed: whether the run began earlier; if W&B then refuses it, it is logged offline alone.
        init_kwargs: arguments of `wandb.init`, but for its mode.
        arguments: WandBLogger's.
    """

    def __init__(
        self, metrics: Path, online: bool, resumed: bool, init_kwargs: dict[str, Any], **arguments: Any
    ) -> None:
        # The same id here and there, so that `wandb sync` completes the run that was sent.
        super().__init__(init_kwargs={"id": secrets.token_hex(4), "mode": "offline", **init_kwargs}, **arguments)
        self._metrics, self._online, self._resumed = metrics, online, resumed
        self._live: wandb_live.LiveRun | None = None
        self._files = Path()

    def init(self, state: State, logger: Logger) -> None:
        """Begin it.

        Raises:
            BadInput: W&B refuses the run, which is new.
        """
        os.environ.setdefault("WANDB_SILENT", "true")  # else each half says what holds for itself alone
        if self._on and self._online:
            try:
                name = {"name": state.run_name}
                self._live = wandb_live.LiveRun(self._metrics, {**name, **self._init_kwargs, "mode": "online"})
                print(f"W&B: {self._live.url}", flush=True)
            except ConnectionError as error:
                if not self._resumed:
                    raise BadInput(f"W&B does not take the run ({error}); mend loggers.wandb, {WAY_OUT}") from None
                print(f"warning: W&B does not take the run ({error}); this start logs offline", file=sys.stderr)
        _keep_get_url()
        with redacted_command_line():
            super().init(state, logger)
        if self.run_dir:
            self._files = Path(self.run_dir).parent

    def write(self, metrics: dict[str, Any], state: State) -> None:
        """At the number of batches."""
        WandBLogger.log_metrics(self, metrics, int(state.timestamp.batch))

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Nothing: W&B's tables ask its server, offline too, and wait for it for ever (wandb 0.18)."""

    def post_close(self) -> None:
        """End it; what W&B has not taken in time is kept."""
        super().post_close()
        live, self._live = self._live, None
        if live and not live.end():
            print(
                f"warning: W&B has not taken all of the run within {wandb_live.LAST_S:g} s of its end; its files are "
                f"kept, send them later: wandb sync {shlex.quote(str(self._files))}",
                file=sys.stderr,
                flush=True,
            )

"""Log a run to Weights & Biases: Composer's logger with one step for each batch, which never ends or delays the run."""

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
    """Add `get_url` to the run class of wandb if it is missing: Composer's logger calls it, wandb 0.31 removed it."""
    from wandb.sdk.wandb_run import Run

    if not hasattr(Run, "get_url"):
        setattr(Run, "get_url", lambda run: run.url)  # noqa: B010 (pyright knows no such attribute)


class WandBRun(BatchMetrics, WandBLogger):
    """Writes W&B's offline files, for `wandb sync`. Online, a separate process also sends the metrics to the server.

    Args:
        metrics: metrics.jsonl of the run.
        online: whether metrics are sent during training.
        resumed: whether the run began earlier. If W&B refuses a resumed run, it is only logged offline.
        init_kwargs: arguments of `wandb.init`, without its mode.
        arguments: arguments of WandBLogger.
    """

    def __init__(
        self, metrics: Path, online: bool, resumed: bool, init_kwargs: dict[str, Any], **arguments: Any
    ) -> None:
        # Offline files and server have the same id, so that `wandb sync` completes the run on the server.
        super().__init__(init_kwargs={"id": secrets.token_hex(4), "mode": "offline", **init_kwargs}, **arguments)
        self._metrics, self._online, self._resumed = metrics, online, resumed
        self._live: wandb_live.LiveRun | None = None
        self._files = Path()

    def init(self, state: State, logger: Logger) -> None:
        """Start logging.

        Raises:
            BadInput: W&B refuses the run, and the run is new.
        """
        os.environ.setdefault("WANDB_SILENT", "true")  # W&B's own messages would only describe the offline files
        if self._on and self._online:
            try:
                name = {"name": state.run_name}
                self._live = wandb_live.LiveRun(self._metrics, {**name, **self._init_kwargs, "mode": "online"})
                print(f"W&B: {self._live.url}", flush=True)
            except ConnectionError as error:
                if not self._resumed:
                    raise BadInput(f"W&B refuses the run ({error}); correct loggers.wandb, {WAY_OUT}") from None
                print(
                    f"warning: W&B refuses the run ({error}); until the next start the run logs offline",
                    file=sys.stderr,
                )
        _keep_get_url()
        with redacted_command_line():
            super().init(state, logger)
        if self.run_dir:
            self._files = Path(self.run_dir).parent

    def write(self, metrics: dict[str, Any], state: State) -> None:
        """Log the metrics at the step of the current batch."""
        WandBLogger.log_metrics(self, metrics, int(state.timestamp.batch))

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Do nothing: W&B's tables contact the server even offline, and wait for it without limit (wandb 0.18)."""

    def post_close(self) -> None:
        """End logging. If W&B has not received everything in time, its files are kept."""
        super().post_close()
        live, self._live = self._live, None
        if live and not live.end():
            print(
                f"warning: W&B has not received all of the run within {wandb_live.LAST_S:g} s of its end; the files "
                f"are kept, upload them later: wandb sync {shlex.quote(str(self._files))}",
                file=sys.stderr,
                flush=True,
            )

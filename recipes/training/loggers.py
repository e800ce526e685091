"""The loggers of a run: metrics.jsonl always, and one table of those that the YAML may ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination

from data_prep.common.files import JsonDict
from data_prep.common.redaction import redacted
from recipes.config.schema import RunConfig, batches_of
from recipes.config.wandb_account import problem_online
from recipes.runs.names import CONFIG, METRICS
from recipes.training.console import Console
from recipes.training.metrics_file import MetricsFile
from recipes.training.tensorboard_files import TensorBoardFiles
from recipes.training.wandb_run import WandBRun


def _console(cfg: RunConfig, batches: int, resumed: bool) -> LoggerDestination | None:
    return Console(batches_of(cfg.callbacks.console.interval), batches) if cfg.callbacks.console else None


def _tensorboard(cfg: RunConfig, batches: int, resumed: bool) -> LoggerDestination | None:
    if not cfg.loggers.tensorboard:
        return None
    folder = Path(cfg.run_dir)
    return TensorBoardFiles(folder / "tensorboard", configuration=folder / CONFIG, **asdict(cfg.loggers.tensorboard))


def _wandb(cfg: RunConfig, batches: int, resumed: bool) -> LoggerDestination | None:
    if not cfg.loggers.wandb:
        return None
    arguments = asdict(cfg.loggers.wandb)
    wanted = arguments.pop("mode")
    mode = (
        "offline" if problem_online(cfg) else wanted
    )  # said by `check_account`, which let none but a resumed run pass
    # Its console capture would swallow ours; its closing table repeats metrics.jsonl; online, its link is wanted. The
    # command line, which it keeps, may hold a password.
    settings = {"console": "off", "silent": mode == "offline", "_args": [str(redacted(part)) for part in sys.argv[1:]]}
    return WandBRun(resumed, **arguments, init_kwargs={"mode": mode, "dir": cfg.run_dir, "settings": settings})


LOGGERS: tuple[Callable[[RunConfig, int, bool], LoggerDestination | None], ...] = (
    _console,
    _tensorboard,
    _wandb,
)


def build_loggers(cfg: RunConfig, batches: int, resumed: bool, about_start: JsonDict) -> list[Any]:
    """The loggers of a run.

    Args:
        cfg: the configuration.
        batches: length of the run.
        resumed: whether it is loaded from a checkpoint.
        about_start: what metrics.jsonl says of this start.
    """
    asked_for = [logger for build in LOGGERS if (logger := build(cfg, batches, resumed)) is not None]
    return [MetricsFile(Path(cfg.run_dir) / METRICS, about_start), *asked_for]

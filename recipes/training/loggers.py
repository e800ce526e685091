"""The loggers of a run: metrics.jsonl always, and one table of those that the YAML may ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination, TensorboardLogger, WandBLogger
from composer.utils import dist

from data_prep.common.files import JsonDict
from data_prep.common.redaction import redacted
from recipes.config.schema import RunConfig, batches_of
from recipes.runs.names import METRICS
from recipes.training.console import Console
from recipes.training.metrics_file import MetricsFile


def _console(cfg: RunConfig, batches: int) -> LoggerDestination | None:
    return Console(batches_of(cfg.callbacks.console.interval), batches) if cfg.callbacks.console else None


def _tensorboard(cfg: RunConfig, batches: int) -> LoggerDestination | None:
    if not cfg.loggers.tensorboard or dist.get_global_rank() != 0:  # else every rank begins files with nothing in them
        return None
    return TensorboardLogger(str(Path(cfg.run_dir) / "tensorboard"), **asdict(cfg.loggers.tensorboard))


def _wandb(cfg: RunConfig, batches: int) -> LoggerDestination | None:
    if not cfg.loggers.wandb:
        return None
    arguments = asdict(cfg.loggers.wandb)
    mode = arguments.pop("mode")
    # Its console capture would swallow ours; its closing table repeats metrics.jsonl; online, its link is wanted. The
    # command line, which it keeps, may hold a password.
    settings = {"console": "off", "silent": mode == "offline", "_args": [str(redacted(part)) for part in sys.argv[1:]]}
    return WandBLogger(**arguments, init_kwargs={"mode": mode, "dir": cfg.run_dir, "settings": settings})


LOGGERS: tuple[Callable[[RunConfig, int], LoggerDestination | None], ...] = (
    _console,
    _tensorboard,
    _wandb,
)


def build_loggers(cfg: RunConfig, batches: int, about_start: JsonDict) -> list[Any]:
    """The loggers of a run.

    Args:
        cfg: the configuration.
        batches: length of the run.
        about_start: what metrics.jsonl says of this start.
    """
    asked_for = [logger for build in LOGGERS if (logger := build(cfg, batches)) is not None]
    return [MetricsFile(Path(cfg.run_dir) / METRICS, about_start), *asked_for]

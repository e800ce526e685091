"""The loggers of a run: metrics.jsonl, which every run has, and a table of loggers that a YAML may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination

from data_prep.common.files import JsonDict
from data_prep.common.redaction import without_credentials_within
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
    online = arguments.pop("mode") == "online" and not problem_online(cfg)  # `check_account` has printed a warning
    settings = {"console": "off"}  # W&B would capture our console output
    init = {"dir": cfg.run_dir, "settings": settings, "config": without_credentials_within(asdict(cfg))}
    return WandBRun(Path(cfg.run_dir) / METRICS, online, resumed, init, **arguments)


LOGGERS: tuple[Callable[[RunConfig, int, bool], LoggerDestination | None], ...] = (
    _console,
    _tensorboard,
    _wandb,
)


def build_loggers(cfg: RunConfig, batches: int, resumed: bool, about_start: JsonDict) -> list[Any]:
    """Build the loggers of a run.

    Args:
        cfg: configuration of the run.
        batches: length of the run.
        resumed: whether the run began earlier.
        about_start: facts of this start for its line in metrics.jsonl.
    """
    asked_for = [logger for build in LOGGERS if (logger := build(cfg, batches, resumed)) is not None]
    return [MetricsFile(Path(cfg.run_dir) / METRICS, about_start), *asked_for]

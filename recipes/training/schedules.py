"""Learning-rate schedules, by the names of `scheduler.name`. Each begins with a linear warm-up from 0 to the peak."""

from __future__ import annotations

from collections.abc import Callable

from composer import State
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
)

from recipes.config.schema import SchedulerConfig, batches_of


class WarmupStableDecayScheduler:
    """Keeps the peak until the last part of the run, then falls linearly (Hägele et al. 2024, arXiv 2405.18392).

    Args:
        warmup_batches: number of batches of the warm-up.
        decay_share: share of the run in which the learning rate falls, above 0 to 1.
        alpha_f: learning rate at the end, as a share of the peak.
    """

    def __init__(self, warmup_batches: int, decay_share: float, alpha_f: float) -> None:
        self.warmup_batches, self.decay_share, self.alpha_f = warmup_batches, decay_share, alpha_f

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The learning rate of the next batch, as a share of the peak."""
        assert state.max_duration is not None
        batch, batches = int(state.timestamp.batch), int(state.max_duration.value * ssr)
        if batch < self.warmup_batches:
            return batch / self.warmup_batches
        left = (batches - batch) / (batches * self.decay_share)
        return self.alpha_f + (1 - self.alpha_f) * min(1.0, max(0.0, left))


SCHEDULES: dict[str, Callable[[SchedulerConfig], ComposerScheduler]] = {
    "cosine": lambda cfg: CosineAnnealingWithWarmupScheduler(t_warmup=cfg.t_warmup, alpha_f=cfg.alpha_f),
    "linear": lambda cfg: LinearWithWarmupScheduler(t_warmup=cfg.t_warmup, alpha_f=cfg.alpha_f),
    "constant": lambda cfg: ConstantWithWarmupScheduler(t_warmup=cfg.t_warmup),
    "warmup_stable_decay": lambda cfg: WarmupStableDecayScheduler(
        batches_of(cfg.t_warmup), cfg.decay_share or 0.0, cfg.alpha_f
    ),
}

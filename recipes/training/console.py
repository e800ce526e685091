"""Print one readable line per interval."""

from __future__ import annotations

import time
from typing import Any, cast

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from recipes.planning.mixing import MIXED_EVAL

# Further metrics of a line, which are shown if they are logged.
SHOWN = {
    "throughput/device/mfu": "{:.1%} MFU",
    "throughput/data_wait_share": "data wait {:.1%}",
    "l2_norm/grad/global": "gradient {:.2f}",
    "cost/total": "cost {:,.2f}",
}


class Console(LoggerDestination):
    """Prints batch, loss, learning rate, speed and remaining time on rank 0, every `interval_batches`.

    The speed is that of the last interval, without evaluation and saving. The remaining time includes both.
    """

    def __init__(self, interval_batches: int, batches: int) -> None:
        self.interval_batches = interval_batches
        self.batches = batches
        self._last: dict[str, Any] = {}
        self._train_s = 0.0  # time in batches since the last line
        self._tokens = 0
        self._batch_start_s = self._fit_start_s = 0.0
        self._first_batch = 0
        self._loss_unit = ""
        self._on = dist.get_global_rank() == 0

    def init(self, state: State, logger: Logger) -> None:
        """Get the unit of the loss from the model."""
        self._loss_unit = cast(str, state.model.loss_unit)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember the last value of each metric."""
        self._last.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._fit_start_s, self._first_batch = time.monotonic(), int(state.timestamp.batch)
        self._tokens = int(state.timestamp.token)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Note the time at which the batch starts."""
        self._batch_start_s = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print the line if it is due."""
        self._train_s += time.monotonic() - self._batch_start_s
        batch = int(state.timestamp.batch)
        if not self._on or (batch % self.interval_batches and batch not in (self._first_batch + 1, self.batches)):
            return
        tokens = int(state.timestamp.token)
        speed = (tokens - self._tokens) / max(self._train_s, 1e-9)
        elapsed_s = time.monotonic() - self._fit_start_s
        left_s = elapsed_s / (batch - self._first_batch) * (self.batches - batch)
        loss = float(self._last.get("loss/train/total", float("nan")))
        lr = state.optimizers[0].param_groups[0]["lr"]
        parts = [
            f"batch {batch:>{len(str(self.batches))}}/{self.batches}",
            f"loss {loss:6.3f} {self._loss_unit}",
            f"lr {lr:.2e}",
            f"{speed:,.0f} tokens/s",
            *(text.format(self._last[name]) for name, text in SHOWN.items() if name in self._last),
            f"{tokens:,} tokens",
            f"{_clock(left_s)} left",
        ]
        print(" | ".join(parts), flush=True)
        self._train_s, self._tokens = 0.0, tokens

    def eval_end(self, state: State, logger: Logger) -> None:
        """Print the results of an evaluation: the loss of a language model, or the metrics of a fine-tuned model."""
        label = state.dataloader_label or "eval"
        prefix = f"metrics/{label}/"
        of = f" of {label.removeprefix(MIXED_EVAL)}" if label.startswith(MIXED_EVAL) else ""
        if self._on and f"{prefix}LanguageCrossEntropy" not in self._last:
            losses = (
                f"{name[len(prefix) :]} {float(value):.4f}" for name, value in self._last.items() if prefix in name
            )
            print(f"  validation at batch {int(state.timestamp.batch)}: {', '.join(losses)}", flush=True)
            return
        names = ("LanguageCrossEntropy", "Perplexity", "BitsPerByte")
        loss, perplexity, bits = (float(self._last.get(f"{prefix}{name}", float("nan"))) for name in names)
        if self._on:
            print(
                f"  validation{of} at batch {int(state.timestamp.batch)}: loss {loss:.4f} {self._loss_unit}, "
                f"perplexity {perplexity:.1f}, {bits:.4f} bits/byte",
                flush=True,
            )
            by_source = f"{prefix}BitsPerByte/"
            for name, value in self._last.items():
                if name.startswith(by_source):
                    print(f"    {name[len(by_source) :]}: {float(value):.4f} bits/byte", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + (f"{hours}h " if hours or days else "") + f"{minutes}m {seconds:02d}s"

"""Repeat an evaluation that was cut short when the run stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist

from recipes.distributed.rank_zero import on_rank_zero
from recipes.runs.reading import read_metrics


class MissedEvaluation(Callback):
    """Evaluates a resumed run at once, if the evaluation of its checkpoint's batch is due and not complete.

    A checkpoint is written before the evaluation of its batch, so a kill may cut that evaluation short. metrics.jsonl
    shows whether it was completed. The fields are set from the Trainer after it has loaded a checkpoint.

    Attributes:
        metrics: metrics.jsonl of the run.
        interval_batches: number of batches between two evaluations; the last batch is evaluated, too.
        batches: length of the run.
        evaluate: function that evaluates as the Trainer does after a batch.
    """

    def __init__(self) -> None:
        self.metrics: Path | None = None
        self.interval_batches = 1
        self.batches = 0
        self.evaluate: Callable[[], None] | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Repeat the evaluation before the first batch."""
        self.make_up(state)

    def make_up(self, state: State) -> None:
        """Evaluate if an evaluation is due and is not complete. All ranks must call it."""
        batch, metrics = int(state.timestamp.batch), self.metrics
        due = batch > 0 and (batch % self.interval_batches == 0 or batch == self.batches)
        if not due or metrics is None or self.evaluate is None:
            return
        splits = [evaluator.label for evaluator in state.evaluators]
        if on_rank_zero(lambda: _is_evaluated(metrics, batch, splits)):
            return
        if dist.get_global_rank() == 0:
            print(
                f"the run stopped before the evaluation of batch {batch} was complete: it is repeated now", flush=True
            )
        self.evaluate()


def _is_evaluated(metrics: Path, batch: int, splits: Sequence[str]) -> bool:
    """Whether the metrics of all splits were logged at this batch."""
    logged = [name for name, values in read_metrics(metrics).metrics.items() if batch in values]
    return all(any(name.startswith(f"metrics/{split}/") for name in logged) for split in splits)

"""An evaluation that a run was stopped in is made where the run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist

from recipes.distributed.rank_zero import on_rank_zero
from recipes.runs.reading import read_metrics


class MissedEvaluation(Callback):
    """Evaluates at once where the batch that a run resumes from was to be evaluated and was not.

    A checkpoint is written before the evaluation of its batch, which a kill may then cut short. metrics.jsonl says
    whether it came to its end. The fields are set from the Trainer once it has loaded a checkpoint.

    Attributes:
        metrics: the run's metrics.jsonl.
        interval_batches: batches between two evaluations; the last batch is evaluated, too.
        batches: length of the run.
        evaluate: evaluates as the Trainer does after a batch.
    """

    def __init__(self) -> None:
        self.metrics: Path | None = None
        self.interval_batches = 1
        self.batches = 0
        self.evaluate: Callable[[], None] | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Before the first batch."""
        self.make_up(state)

    def make_up(self, state: State) -> None:
        """Evaluate if that is due and was not done. All ranks must call it."""
        batch, metrics = int(state.timestamp.batch), self.metrics
        due = batch > 0 and (batch % self.interval_batches == 0 or batch == self.batches)
        if not due or metrics is None or self.evaluate is None:
            return
        splits = [evaluator.label for evaluator in state.evaluators]
        if on_rank_zero(lambda: _is_evaluated(metrics, batch, splits)):
            return
        if dist.get_global_rank() == 0:
            print(f"batch {batch} was to be evaluated when the run stopped: that is done now", flush=True)
        self.evaluate()


def _is_evaluated(metrics: Path, batch: int, splits: Sequence[str]) -> bool:
    """Whether the metrics of all splits were logged, one split's after another's."""
    logged = [name for name, values in read_metrics(metrics).metrics.items() if batch in values]
    return all(any(name.startswith(f"metrics/{split}/") for name in logged) for split in splits)

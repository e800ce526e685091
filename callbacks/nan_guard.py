"""NaN guard: skip the optimizer step of a batch whose loss or gradient is NaN or Inf."""

from __future__ import annotations

from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from callbacks.rank_sums import RankSums
from data_prep.common.exit_codes import BAD_NUMBERS


class BadNumbers(SystemExit):
    """Raised on every rank after too many bad batches in a row; ends the process with exit code BAD_NUMBERS."""

    def __init__(self) -> None:
        super().__init__(BAD_NUMBERS)


class NanGuard(Callback):
    """Skips the optimizer step, on every rank, of a batch whose loss or gradient is NaN or Inf on any rank.

    The gradients are discarded, so the weights and Adam's moments do not change; the learning-rate schedule continues.
    The samples of each such batch are printed.

    | key                    | unit                                      |
    |------------------------|-------------------------------------------|
    | guard/skipped_batches  | batches skipped since this process began  |

    Args:
        max_in_a_row: number of bad batches in a row after which the run ends.
        sums: counts the ranks that have a bad number.
    """

    def __init__(self, max_in_a_row: int, sums: RankSums) -> None:
        self.max_in_a_row, self.sums = max_in_a_row, sums
        sums.ask("bad ranks", self._is_bad)
        self.skipped = self.in_a_row = 0
        self._loss: torch.Tensor | None = None

    def after_loss(self, state: State, logger: Logger) -> None:
        """Add up the losses of the microbatches on the device, without waiting for it."""
        loss = torch.as_tensor(state.loss).detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def _is_bad(self, state: State) -> torch.Tensor:
        """1 if the loss or gradient of this rank is not finite, else 0; a tensor on the device."""
        gradients = [_local(p.grad) for p in state.model.parameters() if p.grad is not None]
        assert self._loss is not None
        bad = ~torch.isfinite(self._loss)
        if gradients:
            bad = bad | ~torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
        self._loss = None
        return bad.to(torch.int64).reshape(())

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Skip a bad batch, between the last backward pass and the optimizer step.

        Raises:
            BadNumbers: too many bad batches in a row.
        """
        if not self.sums.of["bad ranks"]:
            self.in_a_row = 0
            return
        for parameter in state.model.parameters():
            parameter.grad = None
        self.skipped += 1
        self.in_a_row += 1
        logger.log_metrics({"guard/skipped_batches": self.skipped})
        samples = sorted(n for ids in dist.all_gather_object(state.batch["sample_ids"].tolist()) for n in ids)
        batch = int(state.timestamp.batch) + 1
        if dist.get_global_rank() == 0:
            print(f"warning: batch {batch} has NaN or Inf and was skipped; training samples {samples}", flush=True)
        if self.in_a_row >= self.max_in_a_row:
            if dist.get_global_rank() == 0:
                print(
                    f"error: {self.in_a_row} bad batches in a row, up to batch {batch}; the last checkpoint is intact. "
                    "See docs/operations.md, exit code 3",
                    flush=True,
                )
            raise BadNumbers


def _local(gradient: Any) -> torch.Tensor:
    """The part of a gradient that this rank holds."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient

"""Prove a resumed run: compute its first batch twice, and compare it with what the interrupted run recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.nn.parallel import DistributedDataParallel

from callbacks.rank_sums import RankSums
from callbacks.sample_fingerprint import of_samples, of_sum
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.checkpointing.bit_sums import WRAPPERS, bits_of
from recipes.checkpointing.computed_with import apart, draws_other_masks, says, tolerance, what_changed
from recipes.checkpointing.probe import Probe, same_random_state_afterwards
from recipes.checkpointing.recorded_losses import RecordedLoss
from recipes.checkpointing.resume import Start
from recipes.dataloading.next_samples import next_samples
from recipes.distributed import hang_detector
from recipes.distributed.rank_zero import on_rank_zero
from recipes.runs.reading import TRAIN_LOSS

WAY_OUT = (
    "Nothing was saved. Type the same command again, if possible on other hardware. If the error comes again, a cause "
    "named here is real, or the checkpoint is wrong: remove that checkpoint, and the run resumes from the one before. "
    "resume.replay=false resumes without this comparison"
)


@dataclass(frozen=True)
class Computed:
    """Losses and gradients of a batch on this rank, before the optimizer step.

    Attributes:
        losses: loss of each microbatch on this rank.
        names: names of the tensors that have a gradient.
        bits: sum over the bits of each gradient, of the part that this rank holds.
        norms: norm of each gradient, of the part that this rank holds.
    """

    losses: list[float]
    names: list[str]
    bits: list[int]
    norms: list[float]

    @property
    def loss(self) -> float:
        """Mean loss over microbatches."""
        return statistics.fmean(self.losses)

    @property
    def norm(self) -> float:
        """Norm of the whole gradient, of the part that this rank holds."""
        return math.hypot(*self.norms)


class FirstBatch(Callback):
    """Checks that a resumed run continues the interrupted run, before it saves anything.

    The checks, in this order:

    1. The fixed batch has the loss that the checkpoint records.
    2. The first batch has the samples that come next in the order of the epoch.
    3. Its forward and backward passes, computed twice from the same random state, give the same bits.
    4. Its loss, and the loss of the second batch, are those in metrics.jsonl, if an earlier start computed them.

    The sums over bits of weights and moments, which are checked when a checkpoint is loaded, cannot find these faults:
    a wrong random state, a wrong position in the data, another kernel or library, moments assigned to other parameters.

    The fields are set from the Trainer after it has loaded a checkpoint.

    Attributes:
        start: where the run started; None: nothing is compared.
        probe: computes the loss of the fixed batch.
        sums: gives the fingerprint of each batch.
        compute: function that computes the forward and backward passes of the current batch without other callbacks. It
            calls its argument after each microbatch.
    """

    def __init__(self) -> None:
        self.start: Start | None = None
        self.probe: Probe | None = None
        self.sums: RankSums | None = None
        self.compute: Callable[[Callable[[], None]], None] | None = None
        self._probed = False
        self._losses: list[torch.Tensor] = []  # losses of the microbatches in the current pass
        self._first: Computed | None = None
        self._compared = False
        self._samples: int | None = None  # fingerprint that the samples of the batch must have
        self._said: list[str] = []

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Compare the fixed batch at the start of an epoch, after the random state was restored."""
        self._compare_probe(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Compare the fixed batch in the middle of an epoch, after the random state was restored."""
        self._compare_probe(state)

    def _compare_probe(self, state: State) -> None:
        """Raise BadInput on all ranks if the loss of the fixed batch differs from the one in the checkpoint."""
        if self.start is None or self.probe is None or self._probed:
            return
        self._probed = True
        if self.start.probe is None:
            self._said.append("the checkpoint records no loss of a fixed batch: an earlier version saved it")
            return
        now, then, losses = self.probe.computed_with, self.start.probe["computed_with"], self.probe.losses(state)
        may_differ, kept = tolerance(now, then), self.start.probe["losses"]
        if may_differ is None:
            self._said.append(f"the fixed batch is not compared: {_why_not(now, then)}")
            return
        pairs = zip(losses, kept, strict=False)  # the number of ranks may differ; the loss is the same on all
        for rank, (one, other) in enumerate(pairs):
            loss, was = (math.nan if value is None else value for value in (one, other))
            if apart(loss, was) > may_differ:
                raise BadInput(
                    f"{self.start.checkpoint}: a fixed batch has the loss {says(loss)} on rank {rank}, but had "
                    f"{says(was)} when the checkpoint was saved{_allowing(may_differ)}: {_suspects(now, then)}. "
                    f"{WAY_OUT}"
                )
        self._said.append(f"a fixed batch has the same loss as when the checkpoint was saved{_within(may_differ)}")

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Compute the batch for the first time."""
        if self.start is None or self.compute is None or self._first is not None:
            return
        if int(state.timestamp.batch) != self.start.batch:
            raise BadInput(
                f"{self.start.checkpoint} holds batch {int(state.timestamp.batch)}, which contradicts its name. "
                f"{WAY_OUT}"
            )
        self._samples = on_rank_zero(lambda: _expected_fingerprint(state))
        with same_random_state_afterwards(state):
            self.compute(lambda: self._losses.append(torch.as_tensor(state.loss).detach()))
        self._first, self._losses = _computed(state, self._losses), []
        hang_detector.alive(f"the first pass of batch {int(state.timestamp.batch) + 1}")

    def after_backward(self, state: State, logger: Logger) -> None:
        """Compare both passes after the last microbatch of the second one, before the gradient is clipped."""
        if self._first is None or self._compared:
            return
        self._losses.append(torch.as_tensor(state.loss).detach())
        if len(self._losses) == len(self._first.losses):
            self._compared = True
            self._compare_twice(state, self._first, _computed(state, self._losses))

    def _compare_twice(self, state: State, first: Computed, second: Computed) -> None:
        """Raises BadInput on all ranks if the two passes differ."""
        assert self.start is not None and self.probe is not None
        computed, batch = self.probe.computed_with, self.start.batch + 1
        of_loss = max(map(apart, first.losses, second.losses))
        of_norm = apart(first.norm, second.norm)
        other = [name for name, a, b in zip(first.names, first.bits, second.bits, strict=True) if a != b]
        # With three or more ranks, DDP averages gradients in another order after it has rebuilt its buckets.
        of_ddp = isinstance(state.model, DistributedDataParallel) and dist.get_world_size() > 2
        rounding: float = computed["tolerance"]
        wrong = of_loss > 0 if computed["repeats"] else of_loss > rounding
        wrong |= bool(other) if computed["repeats"] and not of_ddp else of_norm > rounding
        problem = (
            f"batch {batch}, the first after {self.start.checkpoint}, was computed twice from the same weights, "
            f"samples and random state. Rank {dist.get_global_rank()} got losses of {says(first.loss)} and "
            f"{says(second.loss)}, gradients of norm {says(first.norm)} and {says(second.norm)}; {len(other)} of "
            f"{len(first.names)} gradients differ{f', {other[0]} first' if other else ''}. A processor, its "
            f"memory or a kernel gives different results for the same computation. {WAY_OUT}"
        )
        if message := next((text for text in dist.all_gather_object(problem if wrong else None) if text), None):
            raise BadInput(message)
        same = "the same loss and gradient, bit for bit"
        if other or of_loss:
            same = f"losses that differ by a share of {of_loss:.1e}, and gradient norms by {of_norm:.1e}"
        self._said.append(f"batch {batch} computed twice has {same}")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Compare samples and loss with the expected ones, before the line of metrics.jsonl is written.

        Raises:
            BadInput: on all ranks: the samples or the loss differ.
        """
        if self.start is None or self.probe is None or self.sums is None:
            return
        batch = int(state.timestamp.batch)
        where = f"the {'first' if batch == self.start.batch + 1 else 'second'} after {self.start.checkpoint}"
        fingerprint, loss = of_sum(self.sums.of["fingerprint"]), float(state.total_loss_dict[TRAIN_LOSS])
        recorded = self.start.recorded.get(batch)
        expected = [self._samples, recorded.fingerprint if recorded else None]
        for wanted, source in zip(expected, ("the order of the epoch", "metrics.jsonl"), strict=True):
            if wanted is not None and wanted != fingerprint:
                raise BadInput(
                    f"batch {batch}, {where}, has other samples (fingerprint {fingerprint}, loss {says(loss)}) "
                    f"than {source} has for it (fingerprint {wanted}"
                    f"{f', loss {says(recorded.loss)}' if recorded else ''}): the run would read some of its data "
                    f"twice and some never. {WAY_OUT}"
                )
        if recorded:
            self._compare_recorded(batch, where, loss, recorded)
        if batch == self.start.batch + 1 and dist.get_global_rank() == 0:
            print("; ".join(self._said), flush=True)
        self._samples, self._said = None, []
        if not any(later > batch for later in self.start.recorded):
            self.start = self._first = None

    def _compare_recorded(self, batch: int, where: str, loss: float, recorded: RecordedLoss) -> None:
        assert self.start is not None and self.probe is not None
        now, then, was = self.probe.computed_with, recorded.computed_with, recorded.loss
        first = batch == self.start.batch + 1
        may_differ = tolerance(now, then, of_step=not first)
        if may_differ is None:
            self._said.append(f"its loss is not compared with metrics.jsonl: {_why_not(now, then)}")
        elif apart(loss, was) > may_differ:
            raise BadInput(
                f"batch {batch}, {where}, has the loss {says(loss)}, but metrics.jsonl has "
                f"{says(was)} for the same samples{_allowing(may_differ)}. The resumed run is not the run "
                f"that was interrupted: {_suspects(now, then)}"
                f"{'' if first else ', or moments were assigned to other parameters'}. {WAY_OUT}"
            )
        else:
            self._said.append(f"its loss is that in metrics.jsonl{_within(may_differ)}")


def _computed(state: State, losses: list[torch.Tensor]) -> Computed:
    named = [(WRAPPERS.sub("", n), p.grad) for n, p in state.model.named_parameters() if p.grad is not None]
    local: list[Any] = [g.to_local() if hasattr(g, "to_local") else g for _, g in named]  # pyright: ignore
    return Computed(
        torch.stack([loss.float().mean() for loss in losses]).tolist(),
        [name for name, _ in named],
        torch.stack([bits_of(gradient) for gradient in local]).tolist() if local else [],
        torch.stack(torch._foreach_norm(local)).tolist() if local else [],
    )


def _expected_fingerprint(state: State) -> int | None:
    loader: Any = state.train_dataloader
    batch_size = loader.batch_size * dist.get_world_size()
    samples = next_samples(loader, int(state.timestamp.epoch), int(state.timestamp.sample_in_epoch), batch_size)
    return None if samples is None else of_samples(torch.as_tensor(samples))


def _within(may_differ: float) -> str:
    return "" if may_differ == 0 else f", within {may_differ:.0e} of it"


def _allowing(may_differ: float) -> str:
    return " (the same bits are expected)" if may_differ == 0 else f" (a share of {may_differ:.0e} is rounding)"


def _suspects(now: JsonDict, then: JsonDict) -> str:
    changed = what_changed(now, then)
    return (
        f"a change since then affects the result ({'; '.join(changed)})" if changed
        else "the random state, a kernel, a library or the device differs, or computes wrongly"
    )  # fmt: skip


def _why_not(now: JsonDict, then: JsonDict) -> str:
    if draws_other_masks(now, then):
        return f"dropout draws other masks ({'; '.join(what_changed(now, then))})"
    return "settings that affect it were changed, and that was allowed"

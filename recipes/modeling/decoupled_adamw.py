"""DecoupledAdamW for many parameters: Composer's numbers to the last bit, without its wait for each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from composer import optim
from torch.distributed.tensor import DTensor

from recipes.modeling.size import OPTIMIZER_BUCKET_BYTES


class DecoupledAdamW(optim.DecoupledAdamW):
    """Composer's optimizer under its name, which checkpoints and metrics carry, and with its state.

    Composer (0.32.1, `composer/optim/decoupled_weight_decay.py`) takes one parameter after the other: for each it
    reads the step number off the device, a wait for the GPU, and starts nine operations, each of which goes through
    Python where tensors are sharded (DTensor). Here the same operations in the same order are started for a bucket of
    parameters at once, on what this rank holds of them: no element of a step depends on another.
    `tests/recipes/modeling/test_decoupled_adamw.py` compares bits, docs/performance.md has the times.

    The step numbers lie on the CPU, as those of torch's own AdamW do, so that no step waits for the device to read
    them; what a checkpoint brings from a device is moved.

    Not torch's fused AdamW, which rounds in other places.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, as Composer's; the closure comes first, as it is what computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "step" not in state:
                    moments = ["exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * group["amsgrad"]]
                    state["step"] = torch.zeros((), dtype=torch.float)
                    state.update({moment: torch.zeros_like(parameter) for moment in moments})
                elif state["step"].device.type != "cpu":
                    state["step"] = state["step"].cpu()
        super().step()
        return loss

    @staticmethod
    def adamw(
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        exp_avgs: list[torch.Tensor],
        exp_avg_sqs: list[torch.Tensor],
        max_exp_avg_sqs: list[torch.Tensor],
        state_steps: list[torch.Tensor],
        *,
        amsgrad: bool,
        beta1: float,
        beta2: float,
        lr: float,
        initial_lr: float,
        weight_decay: float,
        eps: float,
    ) -> None:
        """One step of all parameters of a group, in place; arguments as Composer's, which has no other caller."""
        if not params:
            return
        steps = torch.stack(state_steps).tolist()
        for bucket in _buckets(params, steps):
            step = steps[bucket[0]]
            p, g, m, v = ([_here(tensors[i]) for i in bucket] for tensors in (params, grads, exp_avgs, exp_avg_sqs))
            if weight_decay != 0:
                torch._foreach_mul_(p, 1 - (lr / initial_lr if initial_lr else 1.0) * weight_decay)
            torch._foreach_mul_(m, beta1)
            torch._foreach_add_(m, g, alpha=1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, g, g, value=1 - beta2)
            if amsgrad:
                largest = [_here(max_exp_avg_sqs[i]) for i in bucket]
                torch._foreach_maximum_(largest, v)
                v = largest
            denominators = torch._foreach_sqrt(v)
            torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
            torch._foreach_add_(denominators, eps)
            torch._foreach_addcdiv_(p, m, denominators, value=-lr / (1 - beta1**step))


def _buckets(params: Sequence[torch.Tensor], steps: Sequence[float]) -> Iterator[list[int]]:
    """Indices of neighbouring parameters of one step number, up to OPTIMIZER_BUCKET_BYTES of them."""
    bucket: list[int] = []
    held = 0
    for i, param in enumerate(params):
        size = _here(param).nbytes
        if bucket and (held + size > OPTIMIZER_BUCKET_BYTES or steps[i] != steps[bucket[0]]):
            yield bucket
            bucket, held = [], 0
        bucket.append(i)
        held += size
    if bucket:
        yield bucket


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

"""DecoupledAdamW for many parameters: the same bits as Composer's optimizer, without its wait for each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from composer import optim
from torch.distributed.tensor import DTensor

from recipes.modeling.size import OPTIMIZER_BUCKET_BYTES


class DecoupledAdamW(optim.DecoupledAdamW):
    """Composer's optimizer with the same state, and with the same name, which checkpoints and metrics contain.

    Composer (0.32.1, `composer/optim/decoupled_weight_decay.py`) updates one parameter after another. For each it reads
    the step number from the device, which waits for the GPU, and starts nine operations, each of which passes through
    Python if tensors are sharded (DTensor). This class starts the same operations in the same order for a bucket of
    parameters at once, on the part of the parameters that this rank holds. That gives the same result, because all
    operations are elementwise. `tests/recipes/modeling/test_decoupled_adamw.py` compares bits; docs/performance.md has
    the times.

    The step numbers are kept on the CPU, as in torch's own AdamW, so that no step waits for the device. Step numbers
    that a checkpoint loads onto a device are moved. torch's fused AdamW is not used, because it rounds differently.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step, like Composer's. The closure is called first, because it computes the gradients."""
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
        """Make one step of all parameters of a group, in place. Composer's `step` calls it with these arguments."""
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
    """Indices of neighbouring parameters with the same step number, up to OPTIMIZER_BUCKET_BYTES at a time."""
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
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

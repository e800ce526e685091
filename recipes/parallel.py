"""How a model is spread over ranks: FSDP2 through Composer, and one repair for training it on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from composer.utils import FSDP2Config, ParallelismConfig

from recipes.config import FSDPConfig


def parallelism_config(fsdp: FSDPConfig | None, activation_checkpointing: bool, world_size: int) -> Any:
    """Composer's `parallelism_config`: None on one rank, where there is nothing to shard."""
    if fsdp is None or world_size == 1:
        return None
    return ParallelismConfig(
        fsdp2=FSDP2Config(
            mixed_precision=fsdp.mixed_precision,
            reshard_after_forward=fsdp.reshard_after_forward,
            activation_checkpointing=activation_checkpointing,
            state_dict_type="sharded",
        )
    )


def repair_gloo_gradient_average() -> bool:
    """Make FSDP2 average gradients on CPUs. Returns whether a repair was needed. All ranks must call it.

    gloo's `reduce_scatter_tensor(op=AVG)` silently sums in torch 2.7 (it averages in 2.13), so FSDP2's gradients come
    out world_size times too large: Adam hides it, clipping and gradient norms do not. NCCL averages. Whether this
    torch is one of those is asked of it, and where it is, FSDP2 is told to sum and to divide itself.
    """
    if torch.distributed.get_backend() != "gloo" or torch.distributed.get_world_size() == 1:
        return False
    world_size = torch.distributed.get_world_size()
    mean = torch.empty(1)
    torch.distributed.reduce_scatter_tensor(mean, torch.ones(world_size), op=torch.distributed.ReduceOp.AVG)
    if mean.item() == 1.0:
        return False

    import torch.distributed.fsdp._fully_shard._fsdp_collectives as collectives

    original = collectives._get_gradient_divide_factors

    def divide_factors(reduce_scatter_group: Any, all_reduce_group: Any, dtype: Any, device_type: str = "") -> Any:
        if device_type != "cpu":
            return original(reduce_scatter_group, all_reduce_group, dtype, device_type)
        ranks = reduce_scatter_group.size() * (all_reduce_group.size() if all_reduce_group is not None else 1)
        return 1.0, float(ranks)  # divide by 1 before the sum, by the number of ranks after it

    collectives._get_gradient_divide_factors = divide_factors
    return True

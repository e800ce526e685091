"""Repairs for training on CPUs; none is called on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks in place of handing them back to the kernel. Does nothing elsewhere.

    A batch allocates its logits (hundreds of MB at 28,896 entries) anew each time, and the kernel then zeroes every
    page: half of the time of a step in the smoke run, which is 2.5 to 5 times faster with this.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not Linux with glibc
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def repair_gloo_gradient_average() -> bool:
    """Make FSDP2 average gradients on CPUs. Returns whether a repair was needed. All ranks must call it.

    gloo's `reduce_scatter_tensor(op=AVG)` silently sums in torch 2.7 (it averages in 2.13), so FSDP2's gradients come
    out world_size times too large: Adam hides it, clipping and gradient norms do not. NCCL averages. Whether this
    torch is one of those is asked of it, and where it is, FSDP2 is told to sum and to divide itself.
    """
    world_size = torch.distributed.get_world_size()
    if world_size == 1 or torch.distributed.get_backend() != "gloo":
        return False
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


def repair_hybrid_sharding() -> bool:
    """Let FSDP2 all-reduce between replicas on CPUs. Returns whether a repair was needed. All ranks must call it.

    torch 2.7 asserts that the all-reduce has an event to wait for, and CPU streams have none. Without an event there
    is nothing in flight, so there is no input to keep alive either. Whether this torch asserts it, the backward pass of
    one weight shows, which every rank holds.
    """
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(), 1), mesh_dim_names=("replicate", "shard"))
    weight: Any = fully_shard(torch.nn.Linear(1, 1), mesh=mesh)
    try:
        weight(torch.ones(1)).backward()
        return False
    except AssertionError:
        pass

    import torch.distributed.fsdp._fully_shard._fsdp_param_group as param_group

    original: Any = param_group.foreach_reduce

    def foreach_reduce(*arguments: Any) -> Any:
        *others, all_reduce_input, all_reduce_event, partial_output = original(*arguments)
        return *others, all_reduce_input if all_reduce_event is not None else None, all_reduce_event, partial_output

    param_group.foreach_reduce = foreach_reduce
    return True

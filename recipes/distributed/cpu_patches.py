"""Repairs for training on CPUs. None of them is called on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning them to the kernel. Does nothing on other systems.

    Each batch allocates its logits again (hundreds of MB at 28,896 entries), and the kernel then zeroes every page. In
    the smoke run that takes half of the time of a step; the run is 2.5 to 5 times faster with this repair.
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

    In torch 2.7, gloo's `reduce_scatter_tensor(op=AVG)` silently sums (in 2.13 it averages; NCCL always averages). So
    FSDP2's gradients are world_size times too large. Adam hides that, but clipping and gradient norms do not. This
    function tests which result the installed torch gives. If it sums, FSDP2 is changed to divide the sum itself.
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

    torch 2.7 asserts that the all-reduce has an event to wait for, but CPU streams have no events. Without an event, no
    operation is in progress, so its input need not be kept alive either. To find out whether the installed torch has
    this assertion, all ranks compute the gradient of one weight of which each of them has a copy.
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

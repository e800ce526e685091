"""Check whether the planned memory fits this machine."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.world import world
from recipes.config.schema import TrainConfig
from recipes.planning.cluster_estimate import needed_bytes
from recipes.planning.memory import Layout, peak, step_memory
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import Plan


def check_memory(cfg: TrainConfig, plan: Plan) -> str:
    """Compare the planned memory with that of this rank's GPU, or with the available memory of this machine."""
    import torch

    layout = Layout.of(cfg, plan.world_size)
    if torch.cuda.is_available() and cfg.device != "cpu":
        needed = needed_bytes(cfg, plan, layout, plan.device_train_microbatch_size)
        has, where = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory, "the GPU"
    else:
        needed = planned_bytes(cfg, plan) * world().local_size
        has, where = _available_bytes(), "this machine"
    if needed > has:
        raise BadInput(
            f"the plan needs {gigabytes(needed)}, but {where} has {gigabytes(has)}, {gigabytes(needed - has)} too "
            "little; make plan GPU=… shows which microbatch, sharding or activation checkpointing would fit"
        )
    return f"{gigabytes(needed)} planned, {where} has {gigabytes(has)}"


def planned_bytes(cfg: TrainConfig, plan: Plan) -> int:
    """Bytes of all tensors of a rank at the peak of a step."""
    import torch

    gpu = torch.cuda.is_available() and cfg.device != "cpu"
    moments = step_memory(
        cfg,
        Layout.of(cfg, plan.world_size),
        plan.device_train_microbatch_size,
        accumulates=plan.grad_accumulation > 1,
        device="gpu" if gpu else "cpu",
    )
    return peak(moments).total_bytes


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise BadInput("/proc/meminfo does not give the available memory")

"""Traffic of GPUs and nodes for one batch, with ring collectives, which NCCL uses at these sizes.

In a ring of n ranks, an all-gather sends (n - 1) / n of the parameters over each link, a reduce-scatter sends the same
share of the gradients, and an all-reduce sends twice that. FSDP gathers and reduces for each microbatch; DDP reduces
once for each batch.
"""

from __future__ import annotations

from recipes.planning.memory import Layout
from recipes.planning.run_plan import Plan


def _ring_bytes(plan: Plan, layout: Layout, precision: str) -> tuple[float, float]:
    """Bytes over one link of a ring for one batch: between the shards of a copy, and between the copies."""
    shards, copies = layout.shards, layout.ranks // layout.shards
    gathered, reduced = layout.parameter_bytes(precision), layout.reduce_bytes(precision)
    gathers = 2 if layout.reshard_after_forward else 1  # for the forward pass, and again for the backward pass
    times = plan.grad_accumulation if shards > 1 else 1
    between_shards = (shards - 1) / shards * (gathers * gathered + reduced) * plan.parameters * times
    between_copies = 2 * (copies - 1) / copies * reduced * plan.parameters / shards * times
    return between_shards, between_copies


def link_sends_bytes(plan: Plan, layout: Layout, precision: str) -> float:
    """Bytes that a GPU sends to the next GPU of the ring for one batch."""
    return sum(_ring_bytes(plan, layout, precision))


def node_sends_bytes(plan: Plan, layout: Layout, precision: str) -> float:
    """Bytes that each node sends to others for one batch. A ring over several nodes has one link out of each node.

    Args:
        plan: plan of the run.
        layout: layout of the model. If the shards of a copy are within a node, only the copies reduce between nodes.
        precision: precision of the run.
    """
    if plan.world_size <= plan.ranks_per_node:
        return 0.0
    between_shards, between_copies = _ring_bytes(plan, layout, precision)
    rings = min(plan.ranks_per_node, layout.shards)  # one ring for each shard on a node
    return between_copies * rings + (between_shards if layout.shards > plan.ranks_per_node else 0.0)

"""What GPUs and nodes send for one batch, by ring collectives, as NCCL's are at these sizes.

A ring of n ranks carries (n - 1) / n of the parameters past each link in an all-gather, as much of the gradients in a
reduce-scatter, and twice that in an all-reduce. FSDP gathers and reduces for each microbatch; DDP reduces once a batch.
"""

from __future__ import annotations

from recipes.planning.memory import Layout
from recipes.planning.run_plan import Plan


def _ring_bytes(plan: Plan, layout: Layout, precision: str) -> tuple[float, float]:
    """What one ring carries past a link for one batch: between the shards of a copy, and between the copies."""
    shards, copies = layout.shards, layout.ranks // layout.shards
    gathered, reduced = layout.parameter_bytes(precision), layout.reduce_bytes(precision)
    gathers = 2 if layout.reshard_after_forward else 1  # forward, and once more for backward
    times = plan.grad_accumulation if shards > 1 else 1
    between_shards = (shards - 1) / shards * (gathers * gathered + reduced) * plan.parameters * times
    between_copies = 2 * (copies - 1) / copies * reduced * plan.parameters / shards * times
    return between_shards, between_copies


def link_sends_bytes(plan: Plan, layout: Layout, precision: str) -> float:
    """Bytes that a GPU sends for one batch, to whichever GPU is next in the ring."""
    return sum(_ring_bytes(plan, layout, precision))


def node_sends_bytes(plan: Plan, layout: Layout, precision: str) -> float:
    """Bytes that each node sends to others for one batch: every ring that leaves a node has one link out of it.

    Args:
        plan: the run's plan.
        layout: how the model lies on the ranks; with shards within a node, only the copies reduce between nodes.
        precision: precision of the run.
    """
    if plan.world_size <= plan.ranks_per_node:
        return 0.0
    between_shards, between_copies = _ring_bytes(plan, layout, precision)
    rings = min(plan.ranks_per_node, layout.shards)  # one for each shard that a node holds
    return between_copies * rings + (between_shards if layout.shards > plan.ranks_per_node else 0.0)

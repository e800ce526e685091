"""Build the model parts of the first and the last rank of a run on one machine, without the other ranks."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.manifest import MANIFEST
from recipes.config.schema import TrainConfig
from recipes.planning.cluster_estimate import needed_bytes
from recipes.planning.gpus import LOCK, find_gpu
from recipes.planning.memory import Layout, peak, step_memory
from recipes.planning.mixing import ShardFolder, shard_folders
from recipes.planning.plan_text import gigabytes
from recipes.planning.run_plan import check_shards, make_plan


def fake_world(cfg: TrainConfig, world_size: int, gpu: str | None, stack: str = LOCK) -> None:
    """Build the model parts of the first and the last rank without the other ranks, and compare them with the plan.

    Raises:
        BadInput: the run cannot be split over that many ranks, or does not fit `gpu`; `stack` has no code for `gpu`; or
            the plan is wrong.
    """
    from recipes.trials.sharded_size import rank_bytes

    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    plan = make_plan(cfg, world_size, shards)
    nodes = -(-world_size // plan.ranks_per_node)
    layout = Layout.of(cfg, world_size)
    print(
        f"{world_size} ranks on {nodes} nodes, {layout.strategy}: each {plan.device_batch_size} sequences a batch in "
        f"{plan.grad_accumulation} microbatches of {plan.device_train_microbatch_size}"
    )
    parts = [rank_bytes(cfg, rank, world_size) for rank in sorted({0, world_size - 1})]
    memory = peak(step_memory(cfg, layout, plan.device_train_microbatch_size, accumulates=plan.grad_accumulation > 1))
    for rank, part in zip(sorted({0, world_size - 1}), parts, strict=True):
        print(
            f"  rank {rank}: {gigabytes(part)} of parameters, the same of gradients, {gigabytes(2 * part)} of moments"
        )
    planned = plan.parameters * 4 / layout.shards
    print(f"  planned for each rank: {gigabytes(planned)} of parameters, {gigabytes(memory.total_bytes)} at the peak")
    print(f"  checkpoint: {gigabytes(plan.checkpoint_bytes)}, {gigabytes(plan.checkpoint_bytes / world_size)} a rank")
    if shards:
        size = sum(map(_train_bytes_a_pass, shard_folders(cfg, shards)))
        a_node = gigabytes(size / nodes)
        print(f"  token shards: {gigabytes(size)} of train; each of {nodes} nodes reads about {a_node} in a pass")
    else:
        print(f"  token shards: {cfg.data.shards} is not built yet")
    print(f"  can resume on {', '.join(map(str, plan.rank_counts))} ranks with the same samples in each batch")
    if gpu:
        has = find_gpu(gpu, stack).memory_gb * 1e9
        needed = needed_bytes(cfg, plan, layout, plan.device_train_microbatch_size)
        if needed > has:
            raise BadInput(
                f"{gigabytes(needed)} does not fit: {gpu} has {gigabytes(has)}; make plan shows what would fit"
            )
        print(f"  {gigabytes(needed)} with allocator and driver fits into {gpu} with {gigabytes(has)}")
    if not max(parts) >= planned * 0.999 or max(parts) > planned * 1.05 + (1 << 20):
        raise BadInput(f"the parameters of a rank take {gigabytes(max(parts))}, but the plan says {gigabytes(planned)}")
    print(f"ready: the run can be split over {world_size} ranks")


def _train_bytes_a_pass(folder: ShardFolder) -> float:
    outputs = folder.info.manifest["outputs"].items()
    whole = sum(output["bytes"] for name, output in outputs if name.startswith("train/"))
    return whole * folder.samples_a_pass / folder.info.counts["train"].samples

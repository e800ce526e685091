"""Estimate memory, time, cost and network traffic of a run on GPUs of one kind. Pure arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_prep.common.errors import BadInput
from data_prep.sharding.shard_format import token_dtype
from recipes.config.schema import TrainConfig
from recipes.planning.gpus import LOCK, Gpu, find_gpu, utilisations
from recipes.planning.memory import Layout, Memory, reserve_bytes, step_memory, with_reserve
from recipes.planning.network import link_sends_bytes, node_sends_bytes
from recipes.planning.run_plan import Plan

MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
LAUNCHER_GRACE_S = (
    30  # seconds until composer kills the ranks after a stop signal; the last checkpoint must be written by then
)


@dataclass(frozen=True)
class Speed:
    """Time of the training at one MFU, without evaluation, saving and restarts."""

    mfu: float
    basis: str
    tokens_per_s: float
    batch_s: float
    days: float
    gpu_hours: float
    cost: float | None
    energy_kwh: float  # only the GPUs, at their TDP
    network_share: float | None  # traffic between nodes, as a share of a batch's time; None: one node, or not known


@dataclass(frozen=True)
class Choice:
    """One way to lay the model out on ranks, and the memory that it needs for each size of the microbatch."""

    layout: Layout
    needed_bytes: dict[int, int]  # microbatch -> bytes on each GPU
    largest_microbatch: int  # largest microbatch that fits; 0: none fits


@dataclass(frozen=True)
class Forecast:
    """The estimate. Bytes are those of one GPU, unless a comment says otherwise."""

    gpu: str
    gpus: int
    stack: str | None  # software stack, which has code for the GPU; None: not checked
    gpu_bytes: int
    needed_bytes: int
    reserve_bytes: int
    moments: list[Memory]
    layout: Layout
    choices: list[Choice]
    divisor_that_fits: int  # largest microbatch that fits and divides a rank's part of the batch; 0: none fits
    speeds: list[Speed]
    full_speed_days: float  # days at the full peak of the GPUs, a lower bound
    checkpoint_bytes: int  # sum over all ranks
    link_bytes: float  # bytes that a GPU sends to others in one batch
    node_bytes: float  # bytes that a node sends to others in one batch
    network_gbit_s: float | None
    shard_bytes: int | None  # bytes of shards read in a pass; None if the shards are not built
    token_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the memory of the run fits into a GPU."""
        return self.needed_bytes <= self.gpu_bytes


def moments_of(cfg: TrainConfig, plan: Plan, layout: Layout, microbatch: int) -> list[Memory]:
    """The moments of a step on a GPU, with a given layout and microbatch in place of the configuration's."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    return step_memory(cfg, layout, microbatch, accumulates=microbatch < share)


def needed_bytes(cfg: TrainConfig, plan: Plan, layout: Layout, microbatch: int) -> int:
    """Bytes that a GPU must have for tensors, allocator and driver."""
    return with_reserve(moments_of(cfg, plan, layout, microbatch))


def layouts(plan: Plan, layout: Layout) -> list[Layout]:
    """All layouts to compare: every way to shard, with and without recomputation, and that of the configuration."""
    ranks, node = plan.world_size, plan.ranks_per_node
    full = replace(layout, shards=ranks, reshard_after_forward=True)
    ways = [replace(layout, shards=1)]
    if ranks > 1:
        ways += [replace(full, reshard_after_forward=False), full]
    if ranks > node and ranks % node == 0:
        ways.append(replace(full, shards=node))
    own = [replace(way, checkpointing=again) for way in [*ways, layout] for again in (False, True)]
    return list(dict.fromkeys(own))


def largest_microbatch(cfg: TrainConfig, plan: Plan, layout: Layout, gpu_bytes: int) -> int:
    """Largest microbatch that fits, up to a rank's part of the batch; 0 if not even one sequence fits."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    if needed_bytes(cfg, plan, layout, share) <= gpu_bytes:
        return share
    fit, too_many = 0, share
    while too_many - fit > 1:  # memory grows with the microbatch; only the whole part needs less, without accumulation
        middle = (fit + too_many) // 2
        fits = needed_bytes(cfg, plan, layout, middle) <= gpu_bytes
        fit, too_many = (middle, too_many) if fits else (fit, middle)
    return fit


def largest_divisor(cfg: TrainConfig, plan: Plan, layout: Layout, gpu_bytes: int) -> int:
    """Largest microbatch that fits and divides a rank's part of the batch; 0 if there is none."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    most = largest_microbatch(cfg, plan, layout, gpu_bytes)
    return next((n for n in range(most, 0, -1) if share % n == 0), 0)


def make_forecast(
    cfg: TrainConfig, plan: Plan, gpu_name: str, mfu: float | None, price: float | None, network_gbit_s: float | None,
    stack: str | None = LOCK,
) -> Forecast:  # fmt: skip
    """Make the estimate of a run.

    Args:
        cfg: configuration of the run.
        plan: plan of the run for the given number of ranks.
        gpu_name: name of the GPU in `GPUS`.
        mfu: MFU of the run; None: the range of published runs of similar size on this GPU.
        price: price of a GPU-hour.
        network_gbit_s: Gbit/s that a node can send to others; None: that of a usual node with this GPU.
        stack: software stack, a name in `STACKS`; None: not checked.

    Raises:
        BadInput: the GPU is unknown, the stack cannot run it, or the configuration is for CPUs.
    """
    gpu = find_gpu(gpu_name, stack)
    if cfg.device == "cpu" or cfg.precision != "amp_bf16":
        raise BadInput(
            f"device = {cfg.device!r} and precision = {cfg.precision!r}: the plan is for GPUs in bf16 autocast; add "
            "device=gpu precision=amp_bf16"
        )
    layout = Layout.of(cfg, plan.world_size)
    gpu_bytes = int(gpu.memory_gb * 1e9)
    microbatch = plan.device_train_microbatch_size
    moments = moments_of(cfg, plan, layout, microbatch)
    choices = [
        Choice(
            way,
            {n: needed_bytes(cfg, plan, way, n) for n in sorted({*MICROBATCHES, microbatch})},
            largest_microbatch(cfg, plan, way, gpu_bytes),
        )
        for way in layouts(plan, layout)
    ]
    network = network_gbit_s or (gpu.node_network_gbit_s if plan.ranks_per_node == 8 else None)
    node_bytes = node_sends_bytes(plan, layout, cfg.precision)
    network_s = node_bytes * 8 / (network * 1e9) if network and node_bytes else None
    if mfu is not None:
        bases = [(mfu, "given with --mfu")]
    else:
        known = utilisations(gpu_name.lower(), plan.parameters)
        bases = [(run.mfu, f"{run.gpus} GPUs, {run.source}") for run in dict.fromkeys([*known[:1], *known[-1:]])]
    token_bytes = int(token_dtype(cfg.model.vocab_size).removeprefix("uint")) // 8
    return Forecast(
        gpu=gpu_name.lower(),
        gpus=plan.world_size,
        stack=stack,
        gpu_bytes=gpu_bytes,
        needed_bytes=needed_bytes(cfg, plan, layout, microbatch),
        reserve_bytes=reserve_bytes(moments),
        moments=moments,
        layout=layout,
        choices=choices,
        divisor_that_fits=largest_divisor(cfg, plan, layout, gpu_bytes),
        speeds=[speed_at(share, basis, plan, gpu, price, network_s) for share, basis in bases],
        full_speed_days=speed_at(1.0, "", plan, gpu, None, None).days,
        checkpoint_bytes=plan.checkpoint_bytes,
        link_bytes=link_sends_bytes(plan, layout, cfg.precision),
        node_bytes=node_bytes,
        network_gbit_s=network,
        shard_bytes=plan.train_tokens * token_bytes if plan.train_tokens else None,
        token_bytes=token_bytes,
    )


def speed_at(mfu: float, basis: str, plan: Plan, gpu: Gpu, price: float | None, network_s: float | None) -> Speed:
    """Compute time, cost and energy of the training at an MFU."""
    tokens_per_s = mfu * gpu.bf16_flops * plan.world_size / plan.flops_per_token
    hours = plan.tokens / tokens_per_s / 3600
    gpu_hours, batch_s = hours * plan.world_size, plan.tokens_per_batch / tokens_per_s
    return Speed(
        mfu=mfu,
        basis=basis,
        tokens_per_s=tokens_per_s,
        batch_s=batch_s,
        days=hours / 24,
        gpu_hours=gpu_hours,
        cost=None if price is None else price * gpu_hours,
        energy_kwh=gpu_hours * gpu.tdp_w / 1000,
        network_share=None if network_s is None else network_s / batch_s,
    )

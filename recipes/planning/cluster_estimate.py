"""What a run takes of GPUs of one kind: memory, time, money, network. Pure arithmetic on its plan; no torch."""

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
    30  # composer kills the ranks so long after it was told to stop: a last checkpoint is written by then
)


@dataclass(frozen=True)
class Speed:
    """How long the training takes at one utilisation; evaluation, saving and restarts come on top."""

    mfu: float
    basis: str
    tokens_per_s: float
    batch_s: float
    days: float
    gpu_hours: float
    cost: float | None
    energy_kwh: float  # GPUs alone, at their TDP
    network_share: float | None  # of a batch's time that the bytes between nodes take; None: one node, or unknown


@dataclass(frozen=True)
class Choice:
    """A layout, and what it takes at each microbatch."""

    layout: Layout
    needed_bytes: dict[int, int]  # by microbatch
    largest_microbatch: int  # that fits; 0: none does


@dataclass(frozen=True)
class Forecast:
    """What was worked out; bytes are of one GPU unless they say otherwise."""

    gpu: str
    gpus: int
    stack: str | None  # that has code for the GPU; None: not asked
    gpu_bytes: int
    needed_bytes: int
    reserve_bytes: int
    moments: list[Memory]
    layout: Layout
    choices: list[Choice]
    divisor_that_fits: int  # the largest microbatch that fits and divides a rank's share of the batch; 0: none does
    speeds: list[Speed]
    full_speed_days: float  # at all of the peak: no run is faster
    checkpoint_bytes: int  # of all ranks
    link_bytes: float  # that a GPU sends to others for one batch
    node_bytes: float  # that a node sends to others for one batch
    network_gbit_s: float | None
    shard_bytes: int | None  # that a pass reads, if the shards are built
    token_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the run's memory fits into the GPU."""
        return self.needed_bytes <= self.gpu_bytes


def moments_of(cfg: TrainConfig, plan: Plan, layout: Layout, microbatch: int) -> list[Memory]:
    """The moments of a step on a GPU, with another layout or microbatch than the configuration's."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    return step_memory(cfg, layout, microbatch, accumulates=microbatch < share)


def needed_bytes(cfg: TrainConfig, plan: Plan, layout: Layout, microbatch: int) -> int:
    """What a GPU must hold: the tensors of the largest moment, allocator and driver."""
    return with_reserve(moments_of(cfg, plan, layout, microbatch))


def layouts(plan: Plan, layout: Layout) -> list[Layout]:
    """Every way to shard, with and without recomputation, the configuration's own among them."""
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
    """The most sequences that fit at once, up to a rank's share of the batch; 0: not even one."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    if needed_bytes(cfg, plan, layout, share) <= gpu_bytes:
        return share
    fit, too_many = 0, share
    while too_many - fit > 1:  # memory grows with the microbatch, but for the whole share: no gradients wait beside it
        middle = (fit + too_many) // 2
        fits = needed_bytes(cfg, plan, layout, middle) <= gpu_bytes
        fit, too_many = (middle, too_many) if fits else (fit, middle)
    return fit


def largest_divisor(cfg: TrainConfig, plan: Plan, layout: Layout, gpu_bytes: int) -> int:
    """As `largest_microbatch`, of those that divide a rank's share of the batch."""
    share = plan.device_batch_size * plan.world_size // layout.ranks
    most = largest_microbatch(cfg, plan, layout, gpu_bytes)
    return next((n for n in range(most, 0, -1) if share % n == 0), 0)


def make_forecast(
    cfg: TrainConfig, plan: Plan, gpu_name: str, mfu: float | None, price: float | None, network_gbit_s: float | None,
    stack: str | None = LOCK,
) -> Forecast:  # fmt: skip
    """Work it out.

    Args:
        cfg: the configuration.
        plan: its plan on so many ranks.
        gpu_name: a name of `GPUS`.
        mfu: the utilisation to reckon with; None: the range of what runs of this size reached on this GPU.
        price: price of a GPU-hour.
        network_gbit_s: what a node sends to others, one direction; None: what a usual node of this GPU does.
        stack: a name of `STACKS`, the software that is to run; None: not asked.

    Raises:
        BadInput: an unknown GPU, or one that the stack cannot run; a configuration for CPUs.
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
    """Time, cost and energy of the training at a utilisation."""
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

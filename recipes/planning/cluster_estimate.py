"""What a run takes of GPUs of one kind: memory, time, money, network. Pure arithmetic on its plan; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_prep.sharding.shard_format import token_dtype
from data_prep.stage import BadInput
from recipes.config.schema import TrainConfig
from recipes.plan import Plan, gigabytes, make_plan, node_sends_bytes
from recipes.planning.hardware import GPUS, LOCK, STACKS, Gpu, dotted, find_gpu, gpus_of, utilisations
from recipes.planning.memory import DRIVER_BYTES, Layout, Memory, peak, reserve_bytes, step_memory, with_reserve

MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
LAUNCHER_GRACE_S = (
    30  # composer kills the ranks so long after it was told to stop: a last checkpoint is written by then
)
BAR_WIDTH = 60
BAR = {
    "parameters": "P", "optimizer": "O", "gradients": "G", "gathered": "F", "copies": "C", "activations": "A",
    "block": "B", "loss": "L", "temporaries": "T", "evaluated": "E",
}  # fmt: skip


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
    shard_bytes: int | None  # of the training split, if it is built
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


def link_sends_bytes(cfg: TrainConfig, plan: Plan, layout: Layout) -> float:
    """Bytes that a GPU sends for one batch by ring collectives, to whichever GPU is next in the ring.

    FSDP gathers parameters and reduces gradients for each microbatch; DDP reduces once a batch. Replicas of shards
    reduce their shards among each other once more.
    """
    ranks, shards = layout.ranks, layout.shards
    if shards == 1:
        return 2 * (ranks - 1) / ranks * 4 * plan.parameters
    gathers = 2 if layout.reshard_after_forward else 1
    each, reduced = layout.parameter_bytes(cfg.precision), layout.reduce_bytes(cfg.precision)
    replicas = ranks // shards
    sent = (shards - 1) / shards * (gathers * each + reduced) * plan.parameters
    sent += 2 * (replicas - 1) / replicas * reduced * plan.parameters / shards
    return sent * plan.grad_accumulation


def between_nodes_bytes(cfg: TrainConfig, plan: Plan, layout: Layout) -> float:
    """Bytes that a node sends to others for one batch."""
    if plan.world_size <= plan.ranks_per_node:
        return 0.0
    if layout.shards > 1:
        return node_sends_bytes(cfg, plan, layout.shards)
    return link_sends_bytes(cfg, plan, layout)  # one ring leaves the node


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
        price: of a GPU-hour.
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
    node_bytes = between_nodes_bytes(cfg, plan, layout)
    network_s = node_bytes * 8 / (network * 1e9) if network and node_bytes else None
    if mfu is not None:
        bases = [(mfu, "given with --mfu")]
    else:
        found = utilisations(gpu_name.lower(), plan.parameters)
        bases = [(run.mfu, f"{run.gpus} GPUs, {run.source}") for run in dict.fromkeys([*found[:1], *found[-1:]])]
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
        link_bytes=link_sends_bytes(cfg, plan, layout),
        node_bytes=node_bytes,
        network_gbit_s=network,
        shard_bytes=plan.train_tokens * token_bytes if plan.train_tokens else None,
        token_bytes=token_bytes,
    )


def scaling_table(
    cfg: TrainConfig, counts: Sequence[int], gpu_name: str, mfu: float | None, network_gbit_s: float | None,
    ranks_per_node: int, stack: str | None = LOCK,
) -> str:  # fmt: skip
    """What more GPUs bring, as a table in Markdown: sharded over all of them, and within each node (HSDP).

    Efficiency is computing over the batch, from nothing of the network hidden behind it to all of it.

    Args:
        cfg: the configuration, with FSDP.
        counts: numbers of GPUs.
        gpu_name: a name of `GPUS`.
        mfu: the utilisation to reckon with at any number; None: the best that is published for this GPU.
        network_gbit_s: as for `make_forecast`.
        ranks_per_node: GPUs of a node.
        stack: as for `make_forecast`.

    Raises:
        BadInput: as `make_forecast` and `make_plan`; no FSDP, no utilisation or no network that is known.
    """
    if cfg.fsdp is None:
        raise BadInput("fsdp = null: the table is of sharded runs; give fsdp={}")
    names = ["network, s", "efficiency, %", "days", "memory, GB"]
    columns = ["GPUs", "sequences a GPU", "microbatch x accumulation", "computing, s a batch"]
    columns += [f"{kind}: {name}" for kind in ("FSDP", "HSDP") for name in names]
    lines = [f"| {' | '.join(columns)} |", "|" + " ---: |" * len(columns)]
    for count in counts:
        cells: list[str] = []
        for replicas in (1, max(1, count // ranks_per_node)):
            sharded = replace(cfg, fsdp=replace(cfg.fsdp, data_parallel_replicate_degree=replicas))
            plan = make_plan(sharded, count, None, ranks_per_node)
            cast = make_forecast(sharded, plan, gpu_name, mfu, None, network_gbit_s, stack)
            if not cast.speeds:
                raise BadInput(f"no utilisation of {gpu_name} at this size is published here: give --mfu")
            if cast.node_bytes and not cast.network_gbit_s:
                raise BadInput(f"no usual network of a node of {ranks_per_node} {gpu_name} is known: give --network")
            computing_s = cast.speeds[-1].batch_s
            network_s = cast.node_bytes * 8 / ((cast.network_gbit_s or 1) * 1e9)
            hidden_s, exposed_s = max(computing_s, network_s), computing_s + network_s
            days = [plan.batches * s / 86400 for s in (hidden_s, exposed_s)]
            cells = cells or [
                f"{count:,}",
                f"{plan.device_batch_size}",
                f"{plan.device_train_microbatch_size} x {plan.grad_accumulation}",
                f"{computing_s:.3f}",
            ]
            cells += [
                f"{network_s:.3f}",
                _span(100 * computing_s / exposed_s, 100 * computing_s / hidden_s, ".0f", "–"),
                _span(days[0], days[1], ".2f", "–"),
                f"{cast.needed_bytes / 1e9:.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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


def refusal(cast: Forecast, cfg: TrainConfig, plan: Plan) -> str:
    """By how much a run does not fit, and each single change that makes it fit."""
    layout, microbatch, gpu_bytes = cast.layout, plan.device_train_microbatch_size, cast.gpu_bytes
    ways = []
    if cast.divisor_that_fits:
        ways.append(f"device_train_microbatch_size={cast.divisor_that_fits}")
    again, full = replace(layout, checkpointing=True), replace(layout, shards=layout.ranks, reshard_after_forward=True)
    blocks = (replace(again, checkpointing_blocks=n) for n in range(1, cfg.model.n_layer + 1))
    if fewest := next((way for way in blocks if needed_bytes(cfg, plan, way, microbatch) <= gpu_bytes), None):
        ways.append(f"activation_checkpointing=true activation_checkpointing_blocks={fewest.checkpointing_blocks}")
    elif n := largest_divisor(cfg, plan, again, gpu_bytes):
        ways.append(f"activation_checkpointing=true device_train_microbatch_size={n}")
    sharded = dict.fromkeys((full, replace(full, checkpointing=True))) if full != layout else ()
    ways += [
        "fsdp.reshard_after_forward=true fsdp.data_parallel_replicate_degree=1 "
        f"device_train_microbatch_size={min(n, microbatch)}" + " activation_checkpointing=true" * (way != full)
        for way in sharded
        if (n := largest_divisor(cfg, plan, way, gpu_bytes))
    ]
    if not ways:
        for ranks in (count for count in plan.rank_counts if count > layout.ranks):
            more = replace(full, ranks=ranks, shards=ranks, checkpointing=True)
            if n := largest_divisor(cfg, plan, more, gpu_bytes):
                ways.append(
                    f"{ranks} GPUs with FSDP over all of them, activation_checkpointing=true and "
                    f"device_train_microbatch_size={n}"
                )
                break
    if larger := [name for name, gpu in gpus_of(cast.stack).items() if cast.needed_bytes <= gpu.memory_gb * 1e9]:
        ways.append(f"a GPU of more memory ({', '.join(larger)})")
    over = cast.needed_bytes - gpu_bytes
    return (
        f"{cfg.run_name} takes {gigabytes(cast.needed_bytes)} a GPU ({layout.strategy}, microbatch {microbatch}), "
        f"{gigabytes(over)} more than the {gigabytes(gpu_bytes)} of {cast.gpu}; it fits with "
        + ("; or ".join(ways) or "no GPU of recipes/hardware.py: the model is too large for this layout")
    )


def as_json(cast: Forecast) -> dict[str, Any]:
    """All of it, for programs."""
    return {"fits": cast.fits, **asdict(cast)}


def format_forecast(cast: Forecast, cfg: TrainConfig, plan: Plan) -> str:
    """The verdict, then the tables it rests on."""
    sections = [_verdict(cast, cfg), _memory(cast, plan), _choices(cast, plan), _time(cast), _traffic(cast, plan)]
    return "\n\n".join([*sections, _fit_of_numbers(cfg, plan, cast)])


def _verdict(cast: Forecast, cfg: TrainConfig) -> str:
    room = cast.gpu_bytes - cast.needed_bytes
    fits = f"fits, {gigabytes(room)} to spare" if cast.fits else f"DOES NOT FIT, {gigabytes(-room)} too much"
    parts = [f"{cfg.run_name} on {cast.gpus} {cast.gpu}: {fits}"]
    if cast.speeds:
        slow, fast = cast.speeds[0], cast.speeds[-1]
        parts.append(f"{_span(fast.days, slow.days, '.3g')} days")
        parts.append(f"{_span(fast.gpu_hours, slow.gpu_hours, ',.0f')} GPU-hours")
        if slow.cost is not None and fast.cost is not None:
            parts.append(f"cost {_span(fast.cost, slow.cost, ',.0f')}")
    else:
        parts.append(f"days unknown, at least {cast.full_speed_days:.3g} (no published MFU for it here: give --mfu)")
    return "; ".join(parts)


def _span(low: float, high: float, form: str, between: str = " to ") -> str:
    one, other = f"{low:{form}}", f"{high:{form}}"
    return one if one == other else f"{one}{between}{other}"


def _memory(cast: Forecast, plan: Plan) -> str:
    """Parts of each moment, and a bar."""
    top = peak(cast.moments)
    names = list(BAR)
    lines = [
        f"memory a GPU in GB, {cast.gpu_bytes / 1e9:g} there: {cast.layout.strategy}, activation checkpointing "
        f"{'on' if cast.layout.checkpointing else 'off'}, microbatch {plan.device_train_microbatch_size}",
        _row(["moment", *names, "sum"]),
    ]
    for memory in cast.moments:
        sizes = [f"{memory.parts[name] / 1e9:.2f}" for name in names]
        lines.append(_row([memory.moment, *sizes, f"{memory.total_bytes / 1e9:.2f}"]) + "  <- most" * (memory is top))
    lines.append(
        f"  with the caching allocator {(cast.needed_bytes - DRIVER_BYTES) / 1e9:.2f} (of each column its most: what "
        "one part frees seldom fits another; measured without a GPU), with the driver "
        f"{cast.needed_bytes / 1e9:.2f} ({DRIVER_BYTES / 1e9:g} GB, assumed)"
    )
    per_letter = max(cast.gpu_bytes, cast.needed_bytes) / BAR_WIDTH
    bar = "".join(letter * round(top.parts[name] / per_letter) for name, letter in BAR.items())
    bar = f"{bar}{'R' * round(cast.reserve_bytes / per_letter)}".ljust(BAR_WIDTH)
    end = round(cast.gpu_bytes / per_letter)  # of what the GPU has
    letters = " ".join(f"{letter}={name}" for name, letter in BAR.items() if letter in bar)
    return "\n".join([*lines, f"  [{bar[:end]}]{bar[end:]}", f"   {letters} R=allocator, driver"])


def _row(cells: list[str]) -> str:
    return f"  {cells[0]:<28}" + "".join(f"{cell:>12}" for cell in cells[1:])


def _choices(cast: Forecast, plan: Plan) -> str:
    """What every layout takes at every microbatch."""
    columns = list(cast.choices[0].needed_bytes)
    lines = [
        "memory a GPU in GB by sharding and microbatch, allocator and driver included; (in brackets: does not fit)",
        f"  {'sharding':<20}{'recompute':<11}" + "".join(f"{n:>8}" for n in columns) + f"{'largest that fits':>20}",
    ]
    for choice in cast.choices:
        cells = ""
        for needed in choice.needed_bytes.values():
            text = f"{needed / 1e9:.1f}"
            cells += f"{text if needed <= cast.gpu_bytes else f'({text})':>8}"
        mark = ">" if choice.layout == cast.layout else " "
        recompute = "blocks" if choice.layout.checkpointing else "nothing"
        lines.append(f"{mark} {choice.layout.strategy:<20}{recompute:<11}{cells}{choice.largest_microbatch or '–':>20}")
    share = plan.device_batch_size
    lines.append(
        f"  > the configuration, microbatch {plan.device_train_microbatch_size}; the largest that fits and divides a "
        f"rank's {share} sequences of a batch is {cast.divisor_that_fits or 'none'}"
    )
    return "\n".join(lines)


def _time(cast: Forecast) -> str:
    lines = ["training time; evaluation, saving and restarts come on top"]
    for speed in cast.speeds:
        cost = "" if speed.cost is None else f", cost {speed.cost:,.0f}"
        lines += [
            f"  MFU {speed.mfu:.1%}: {speed.tokens_per_s:,.0f} tokens/s, {speed.tokens_per_s / cast.gpus:,.0f} a GPU, "
            f"{speed.batch_s:.3g} s a batch, {speed.days:.3g} days, {speed.gpu_hours:,.0f} GPU-hours{cost}, "
            f"up to {speed.energy_kwh:,.0f} kWh (GPUs at TDP)",
            f"    basis: {speed.basis}",
        ]
    if not cast.speeds:
        lines.append(
            f"  no run of this size on {cast.gpu} is published in recipes/hardware.py, and none was made here: give "
            f"--mfu. At all of its peak it would take {cast.full_speed_days:.3g} days"
        )
    elif len(cast.speeds) > 1:
        lines.append(
            "  published models have fused kernels and mostly no dropout: expect less than the fastest of them"
        )
    return "\n".join(lines)


def _traffic(cast: Forecast, plan: Plan) -> str:
    """Checkpoints, shards, and what GPUs and nodes send."""
    size = cast.checkpoint_bytes
    lines = [
        "disk and network",
        f"  checkpoint     {gigabytes(size)}; saved in {size / 1e9:.0f} s at 1 GB/s, {size / 1e10:.1f} s at 10 GB/s; a "
        f"last one before a node is taken away needs {size / LAUNCHER_GRACE_S / 1e9:.2g} GB/s ({LAUNCHER_GRACE_S} s)",
    ]
    shards = "not built yet" if cast.shard_bytes is None else f"{gigabytes(cast.shard_bytes)} a pass"
    fastest = max((speed.tokens_per_s for speed in cast.speeds), default=None)
    reading = "" if fastest is None else f", at {fastest * cast.token_bytes / 1e6:.3g} MB/s of all nodes together"
    lines.append(f"  shards         {shards}; {gigabytes(plan.tokens * cast.token_bytes)} read in all{reading}")
    link = GPUS[cast.gpu].gpu_link_gb_s / 2
    if cast.gpus > 1:
        lines.append(
            f"  between GPUs   each sends {gigabytes(cast.link_bytes)} a batch: "
            f"{cast.link_bytes / link / 1e9:.2g} s at {link:g} GB/s one way (datasheet), unless that crosses nodes"
        )
    if cast.node_bytes:
        line = f"  between nodes  each sends {gigabytes(cast.node_bytes)} a batch"
        if cast.network_gbit_s is None:
            line += "; no usual network is known for it: give --network"
        else:
            line += f": {cast.node_bytes * 8 / cast.network_gbit_s / 1e9:.2g} s at {cast.network_gbit_s:g} Gbit/s"
        shares = [f"{s.network_share:.0%} of a batch at MFU {s.mfu:.1%}" for s in cast.speeds if s.network_share]
        lines.append(line + (f", {', '.join(shares)}; hidden behind the arithmetic where all goes well" * bool(shares)))
    return "\n".join(lines)


def _fit_of_numbers(cfg: TrainConfig, plan: Plan, cast: Forecast) -> str:
    """Divisibility, where the run can go on, and on what software."""
    model = cfg.model
    power = math.gcd(model.vocab_size, 128)
    head = model.n_embd // model.n_head
    software = []
    if cast.stack:
        stack, capability = STACKS[cast.stack], dotted(GPUS[cast.gpu].capability)
        software = [
            f"  software       {stack} (--stack {cast.stack}), which has code for compute capability {capability}; "
            f"NVIDIA driver {stack.driver} or newer"
        ]
    return "\n".join(
        [
            "numbers",
            f"  batch          {cfg.global_train_batch_size} = {plan.world_size} ranks x "
            f"{plan.device_train_microbatch_size} x {plan.grad_accumulation} accumulation",
            # NVIDIA's Matrix Multiplication Background: multiples of 8 values in 16 bits, of 64 on an A100.
            f"  vocabulary     {model.vocab_size:,} = {power} x {model.vocab_size // power:,}; tensor cores want a "
            f"multiple of 8{'' if power >= 8 else ', which it is NOT'}, and do best with 64",
            f"  heads          {model.n_head} x {head}; fused attention takes multiples of 8 up to 256"
            + ("" if head % 8 == 0 and head <= 256 else ", which this is NOT"),
            f"  resumes on     {', '.join(map(str, plan.rank_counts))} ranks with the same samples a batch; "
            f"bit for bit on {plan.world_size}",
            *software,
        ]
    )

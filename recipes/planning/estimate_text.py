"""Write a cluster estimate as text: the verdict, memory, layouts, time, traffic, and what would make a run fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from data_prep.common.errors import BadInput
from recipes.config.schema import TrainConfig
from recipes.planning.cluster_estimate import LAUNCHER_GRACE_S, Forecast, largest_divisor, make_forecast, needed_bytes
from recipes.planning.gpus import GPUS, LOCK, STACKS, dotted, gpus_of
from recipes.planning.memory import DRIVER_BYTES, peak
from recipes.planning.plan_text import gigabytes, resumes_row
from recipes.planning.run_plan import Plan, make_plan

BAR_WIDTH = 60
BAR = {
    "parameters": "P", "optimizer": "O", "gradients": "G", "gathered": "F", "copies": "C", "activations": "A",
    "block": "B", "loss": "L", "temporaries": "T", "evaluated": "E",
}  # fmt: skip


def scaling_table(
    cfg: TrainConfig, counts: Sequence[int], gpu_name: str, mfu: float | None, network_gbit_s: float | None,
    ranks_per_node: int, stack: str | None = LOCK,
) -> str:  # fmt: skip
    """Write a Markdown table of how a run scales with GPUs, sharded over all of them and within each node (HSDP).

    Efficiency is the time of computing divided by the time of a batch. It is a range: in the worst case all
    communication takes extra time, in the best case it is hidden behind computing.

    Args:
        cfg: configuration with FSDP.
        counts: numbers of GPUs.
        gpu_name: name of the GPU in `GPUS`.
        mfu: MFU at every number of GPUs; None: the highest published MFU on this GPU.
        network_gbit_s: network of a node, as for `make_forecast`.
        ranks_per_node: number of GPUs of a node.
        stack: software stack, as for `make_forecast`.

    Raises:
        BadInput: as in `make_forecast` and `make_plan`; or there is no FSDP, or no known MFU or network.
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


def refusal(cast: Forecast, cfg: TrainConfig, plan: Plan) -> str:
    """Say by how much a run does not fit, and list the changes that would each make it fit."""
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
        + ("; or ".join(ways) or "no GPU of recipes/planning/gpus.py: the model is too large for this layout")
    )


def as_json(cast: Forecast) -> dict[str, Any]:
    """Return the whole estimate as JSON, for programs."""
    return {"fits": cast.fits, **asdict(cast)}


def format_forecast(cast: Forecast, cfg: TrainConfig, plan: Plan) -> str:
    """Write the verdict, followed by the tables behind it."""
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
    """Write a table of the memory at each moment by part, and a bar of the peak."""
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
    end = round(cast.gpu_bytes / per_letter)  # end of the GPU's memory
    letters = " ".join(f"{letter}={name}" for name, letter in BAR.items() if letter in bar)
    return "\n".join([*lines, f"  [{bar[:end]}]{bar[end:]}", f"   {letters} R=allocator, driver"])


def _row(cells: list[str]) -> str:
    return f"  {cells[0]:<28}" + "".join(f"{cell:>12}" for cell in cells[1:])


def _choices(cast: Forecast, plan: Plan) -> str:
    """Write a table of the memory of each layout at each microbatch."""
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
            f"  recipes/planning/gpus.py knows no published run of this size on {cast.gpu}, and none was made here: "
            f"give --mfu. At all of its peak it would take {cast.full_speed_days:.3g} days"
        )
    elif len(cast.speeds) > 1:
        lines.append(
            "  published models have fused kernels and mostly no dropout: expect less than the fastest of them"
        )
    return "\n".join(lines)


def _traffic(cast: Forecast, plan: Plan) -> str:
    """Write the sizes of checkpoints and shards, and the traffic between GPUs and nodes."""
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
    """Write the divisibility of sizes, the numbers of ranks on which the run can resume, and the software."""
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
            f"  resumes on     {resumes_row(plan, cfg)}",
            *software,
        ]
    )

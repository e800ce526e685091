"""Check the machines of the ranks: their hardware, their clocks, and the network between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from data_prep.common.errors import BadInput
from data_prep.common.world import world
from recipes.config.schema import TrainConfig
from recipes.planning.gpus import dotted
from recipes.planning.plan_text import gigabytes
from recipes.trials.check_runner import gathered

CLOCKS_APART_S = 30.0  # so that logs of several hosts can be compared; S3 refuses clocks that are 15 minutes off
MESSAGE_BYTES = (1 << 20, 16 << 20, 128 << 20)
ROUNDS = 5


def check_ranks(cfg: TrainConfig) -> str:
    """Compare the hardware of the ranks. Versions, commit and configuration were compared when the ranks connected."""
    import torch
    import torch.version

    from recipes.training.device_check import loaded_driver

    gpu = torch.cuda.is_available() and cfg.device != "cpu"
    device = torch.cuda.current_device() if gpu else None
    properties = torch.cuda.get_device_properties(device) if gpu else None
    mine = (properties.name, properties.total_memory) if properties else ("CPU", 0)
    capability = f", compute capability {dotted((properties.major, properties.minor))}" if properties else ""
    kinds = gathered(mine)
    if len(set(kinds)) > 1:
        by_kind = {kind: [rank for rank, other in enumerate(kinds) if other == kind] for kind in set(kinds)}
        raise BadInput(f"ranks differ: {', '.join(f'{name} on ranks {ranks}' for (name, _), ranks in by_kind.items())}")
    memory = f" of {gigabytes(mine[1])}" if mine[1] else ""
    cuda = f", CUDA {torch.version.cuda}, driver {loaded_driver() or 'unknown'}" if gpu else ""
    return (
        f"{len(kinds)} × {mine[0]}{memory}{capability}, torch {torch.__version__}{cuda}; "
        "same commit, versions and configuration"
    )


def check_clocks() -> str:
    """Compare the clocks of the hosts, which all ranks read right after a barrier."""
    if world().size == 1:
        return "one rank"
    from composer.utils import dist

    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        rounds.append(dist.all_gather_object(time.time()))
    return judge_clocks(rounds)


def judge_clocks(rounds: Sequence[Sequence[float]]) -> str:
    """Compute the largest difference between clocks.

    Args:
        rounds: for each round, the time on each rank's clock at about the same moment.

    Raises:
        BadInput: the difference is above CLOCKS_APART_S.
    """
    ahead = [[clock_s - one[0] for clock_s in one] for one in rounds]
    offsets = [statistics.median(of_rank) for of_rank in zip(*ahead, strict=True)]
    unsure_s = max(max(of_rank) - min(of_rank) for of_rank in zip(*ahead, strict=True)) / 2
    apart_s = max(offsets) - min(offsets)
    text = f"clocks differ by {apart_s:.3f} s, ± {unsure_s:.3f} s"
    if apart_s > CLOCKS_APART_S + unsure_s:
        rank = max(range(len(offsets)), key=lambda n: abs(offsets[n]))
        raise BadInput(f"{text}: that of rank {rank} is {offsets[rank]:+.0f} s off that of rank 0; set it with NTP")
    return text


def check_network() -> str:
    """Measure all-reduce and all-gather of three sizes, in GB/s of bus bandwidth, which is the traffic on each link."""
    import torch
    import torch.distributed as distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    ranks, speeds = distributed.get_world_size(), []
    for size_bytes in MESSAGE_BYTES:
        values = torch.ones(size_bytes // 4 // ranks * ranks, device=device)
        part = values.chunk(ranks)[0].clone()
        whole = torch.empty_like(values)
        reduce_s = _median_s(lambda values=values: distributed.all_reduce(values), device)
        gather_s = _median_s(lambda whole=whole, part=part: distributed.all_gather_into_tensor(whole, part), device)
        sent = values.nbytes * (ranks - 1) / ranks / 1e9
        speeds.append(f"{size_bytes >> 20} MiB {2 * sent / reduce_s:.2f}/{sent / gather_s:.2f}")
    return f"all-reduce/all-gather GB/s: {', '.join(speeds)}"


def _median_s(action: Callable[[], object], device: str) -> float:
    import torch

    times = []
    for _ in range(ROUNDS + 1):
        start_s = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times[1:])  # without the first, which also sets up connections

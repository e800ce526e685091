"""What GPUs can do, by their datasheets, which torch runs on them, and what runs made of it.

A number that no source gives is None. Datasheets print tensor throughput "with sparsity", twice what a dense product
reaches; here all of it is dense.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.common.errors import BadInput


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    capability: tuple[int, int]  # CUDA's compute capability: developer.nvidia.com/cuda-gpus
    bf16_flops: float  # a second, dense, with fp32 accumulation
    memory_gb: float  # 1e9 bytes, as on the datasheet; CUDA finds up to 6 % more (A100-40GB: 42.4e9 bytes)
    gpu_link_gb_s: float  # to the other GPUs of its node, both directions together: NVLink, else PCIe
    node_network_gbit_s: float | None  # of a usual node of eight, one direction; None: there is no usual one
    tdp_w: float
    source: str


GPUS = {
    # 1600 Gbit/s: DGX A100's eight ConnectX-6 of 200; also the cluster of llm-foundry's tables.
    "a100-40gb": Gpu((8, 0), 312e12, 40, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    "a100-80gb": Gpu((8, 0), 312e12, 80, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    # 1,979 TFLOP/s with sparsity; DGX H100 and H200: eight ConnectX-7 of 400 Gbit/s.
    "h100": Gpu((9, 0), 989.5e12, 80, 900, 3200, 700, "NVIDIA H100 datasheet (SXM5); DGX H100 datasheet"),
    # PCIe 5, as its NVLink bridge joins two cards only.
    "h100-pcie": Gpu((9, 0), 756.5e12, 80, 128, None, 350, "NVIDIA H100 datasheet (PCIe; 1,513 TFLOP/s with sparsity)"),
    "h200": Gpu((9, 0), 989.5e12, 141, 900, 3200, 700, "NVIDIA H200 datasheet (SXM5); DGX H200 datasheet"),
    # DGX B200: 1,440 GB in eight GPUs, 4.5 PFLOP/s with sparsity at 1,000 W each; eight of 400 Gbit/s.
    "b200": Gpu((10, 0), 2250e12, 180, 1800, 3200, 1000, "NVIDIA HGX B200 and DGX B200 datasheets"),
    "l40s": Gpu((8, 9), 362.05e12, 48, 64, None, 350, "NVIDIA L40S datasheet (733 TFLOP/s with sparsity; PCIe 4)"),
    "a10": Gpu((8, 6), 125e12, 24, 64, None, 150, "NVIDIA A10 datasheet (250 TFLOP/s with sparsity; PCIe 4)"),
    # GeForce: half the tensor throughput with fp32 accumulation, which training needs. 512 tensor cores x 64 fused
    # multiply-adds x 2 x 2.52 GHz = 165.2e12, and 328 x 64 x 2 x 1.695 GHz = 71.2e12.
    "rtx-4090": Gpu((8, 9), 165.2e12, 24, 64, None, 450, "NVIDIA Ada GPU Architecture whitepaper, appendix A (PCIe 4)"),
    "rtx-3090": Gpu((8, 6), 71e12, 24, 64, None, 350, "NVIDIA Ampere GA102 whitepaper, appendix A (PCIe 4; no bridge)"),
}
# What CUDA calls them. Names are compared whole: an A10G or a laptop's 4090 is another chip under nearly the same name.
CUDA_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10": "a10",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
}


@dataclass(frozen=True)
class Stack:
    """A torch of PyPI, for Linux on x86-64: the GPUs that it has code for, and the driver that it needs."""

    torch: str
    cuda: str
    architectures: tuple[str, ...]  # as torch.cuda.get_arch_list() names them: sm_ is a binary, compute_ is PTX
    driver: str  # the oldest, for Linux

    def __str__(self) -> str:
        return f"torch {self.torch} with CUDA {self.cuda}"


LOCK = "lock"
# Architectures: .ci/manywheel/build_cuda.sh in pytorch/pytorch, of the release. Drivers: CUDA Toolkit Release Notes,
# "Minimum Required Driver Version for CUDA Minor Version Compatibility": a binary of CUDA 12.x runs under any driver
# of 12.0 or newer. (12.6's own driver is 560.28.03.)
STACKS = {
    # What requirements.txt installs.
    LOCK: Stack("2.7.0", "12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"), "525.60.13"),
    # What requirements-next.txt installs. CUDA 13 dropped Maxwell, Pascal and Volta. torch 2.11, the first whose wheels
    # on PyPI are of CUDA 13, has the same binaries and needs the same driver.
    "next": Stack("2.15.0", "13.2", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), "580.65.06"),
}


def can_run(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether code for any of these architectures runs on a GPU of this compute capability.

    A binary, `sm_86`, runs where the major version is the same and the minor version the same or higher: on 8.6 and
    8.9. PTX, `compute_86`, is compiled by the driver for 8.6 and all that is newer. Code with an `a`, `sm_90a`, runs
    on 9.0 alone; with an `f`, `sm_100f`, within its major version. (CUDA C++ Programming Guide, "Compatibility".)
    """
    for name in architectures:
        if not (parts := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)):
            continue  # of another maker
        built_for = int(parts[2]), int(parts[3])
        if capability == built_for:
            return True
        any_major = parts[1] == "compute" and not parts[4]
        if capability > built_for and parts[4] != "a" and (any_major or capability[0] == built_for[0]):
            return True
    return False


def gpus_of(stack: str | None) -> dict[str, Gpu]:
    """The GPUs that a stack of `STACKS` has code for; None: all that are known."""
    return {
        name: gpu for name, gpu in GPUS.items() if not stack or can_run(STACKS[stack].architectures, gpu.capability)
    }


def stacks_for(capability: tuple[int, int]) -> dict[str, Stack]:
    """The stacks that have code for a GPU of this compute capability."""
    return {name: stack for name, stack in STACKS.items() if can_run(stack.architectures, capability)}


def oldest_driver(cuda: str) -> str | None:
    """The oldest Linux driver for binaries of a CUDA version, such as 12.6; None: no stack here is of its major."""
    same = (stack.driver for stack in STACKS.values() if stack.cuda.split(".")[0] == cuda.split(".")[0])
    return next(same, None)


def code_of(architectures: Iterable[str]) -> str:
    """What a torch was built for, in words."""
    names = list(architectures)
    ptx = "" if any(name.startswith("compute") for name in names) else " and no PTX"
    return f"code for {', '.join(names)}{ptx}"


def find_gpu(name: str, stack: str | None = LOCK) -> Gpu:
    """A GPU by its name.

    Args:
        name: in `GPUS`, in any case.
        stack: in `STACKS`, the software that is to run on it; None: not asked.

    Raises:
        BadInput: it is not in the table, or the stack has no code for it.
    """
    if name.lower() not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(f"--gpu {name} is not known; {hint}known here: {', '.join(GPUS)} (recipes/planning/gpus.py)")
    gpu = GPUS[name.lower()]
    if stack and name.lower() not in (runs := gpus_of(stack)):
        others = [
            f", or another torch: --stack {other} ({needed}, NVIDIA driver {needed.driver} or newer)"
            for other, needed in stacks_for(gpu.capability).items()
        ]
        raise BadInput(
            f"--gpu {name} has compute capability {dotted(gpu.capability)}, and {STACKS[stack]} (--stack {stack}) has "
            f"{code_of(STACKS[stack].architectures)}, so nothing runs on it; take one of {', '.join(runs)}"
            + "".join(others)
        )
    return gpu


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Add the argument that goes with the name of a GPU to a command."""
    stacks = "; ".join(f"{name} is {stack}" for name, stack in STACKS.items())
    parser.add_argument("--stack", choices=STACKS, default=LOCK, help=f"software: {stacks}; default %(default)s")


def dotted(capability: tuple[int, int]) -> str:
    """A compute capability as NVIDIA writes it."""
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True)
class Utilisation:
    """The model FLOPs utilisation that a run reached, recomputed activations not counted."""

    mfu: float
    parameters: float
    gpus: int
    gpu: str
    source: str


_FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
# MPT models: fused GELU, low-precision LayerNorm, no dropout; FSDP. Sequences of 1024, or of 2048 on 128 GPUs.
PUBLISHED = [
    Utilisation(0.231, 2.59e9, 128, "a100-40gb", "the 2022 run: 300B tokens in 6.25 days (BioMedLM's model card)"),
    Utilisation(0.4089, 125e6, 8, "a100-40gb", f"{_FOUNDRY}: 125m, pure bf16"),
    Utilisation(0.3886, 125e6, 128, "a100-40gb", f"{_FOUNDRY}: 125m, pure bf16"),
    Utilisation(0.5702, 1.31e9, 8, "a100-40gb", f"{_FOUNDRY}: 1b, pure bf16"),
    Utilisation(0.5441, 1.32e9, 128, "a100-40gb", f"{_FOUNDRY}: 1b, pure bf16"),
    Utilisation(0.5814, 2.65e9, 8, "a100-40gb", f"{_FOUNDRY}: 3b, pure bf16"),
    Utilisation(0.5480, 2.65e9, 128, "a100-40gb", f"{_FOUNDRY}: 3b, pure bf16"),
    Utilisation(0.5131, 6.65e9, 8, "a100-40gb", f"{_FOUNDRY}: 7b, pure bf16, activation checkpointing"),
    Utilisation(0.4315, 125e6, 8, "a100-80gb", f"{_FOUNDRY}: 125m, bf16 autocast"),
    Utilisation(0.6015, 1.31e9, 8, "a100-80gb", f"{_FOUNDRY}: 1b, bf16 autocast"),
    Utilisation(0.6273, 2.65e9, 8, "a100-80gb", f"{_FOUNDRY}: 3b, bf16 autocast"),
    Utilisation(0.5801, 6.65e9, 8, "a100-80gb", f"{_FOUNDRY}: 7b, bf16 autocast, activation checkpointing"),
    Utilisation(0.4195, 1.31e9, 8, "h100", f"{_FOUNDRY}: 1b, bf16 autocast"),
    Utilisation(0.4620, 2.65e9, 8, "h100", f"{_FOUNDRY}: 3b, bf16 autocast"),
    Utilisation(0.4080, 2.65e9, 64, "h100", f"{_FOUNDRY}: 3b, bf16 autocast, sequences of 2048"),
    Utilisation(0.4283, 6.65e9, 8, "h100", f"{_FOUNDRY}: 7b, bf16 autocast, activation checkpointing"),
]
# Of this project's own runs on a GPU, from docs/runs.md: none was made yet.
MEASURED: list[Utilisation] = []


def utilisations(gpu: str, parameters: int) -> list[Utilisation]:
    """What runs of a model of about this size (within a factor of two) reached on this GPU, the lowest first."""
    near = [run for run in MEASURED + PUBLISHED if run.gpu == gpu and 0.5 <= run.parameters / parameters <= 2]
    return sorted(near, key=lambda run: run.mfu)

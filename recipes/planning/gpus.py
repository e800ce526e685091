"""Tables of GPUs: their datasheets, the torch versions that run on them, and the MFU that published runs reached.

A number that no source gives is None. Datasheets print tensor throughput "with sparsity", which is twice that of dense
products; all numbers here are for dense products.
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
    bf16_flops: float  # FLOP/s of dense products with fp32 accumulation
    memory_gb: float  # in 1e9 bytes, as on the datasheet; CUDA finds up to 6 % more (A100-40GB: 42.4e9 bytes)
    gpu_link_gb_s: float  # to other GPUs of the node, sum of both directions: NVLink, or PCIe if there is no NVLink
    node_network_gbit_s: float | None  # network of a usual node with eight GPUs, one direction; None: none is usual
    tdp_w: float
    source: str


GPUS = {
    # 1600 Gbit/s: DGX A100's eight ConnectX-6 of 200; also the cluster of llm-foundry's tables.
    "a100-40gb": Gpu((8, 0), 312e12, 40, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    "a100-80gb": Gpu((8, 0), 312e12, 80, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    # 1,979 TFLOP/s with sparsity; DGX H100 and H200: eight ConnectX-7 of 400 Gbit/s.
    "h100": Gpu((9, 0), 989.5e12, 80, 900, 3200, 700, "NVIDIA H100 datasheet (SXM5); DGX H100 datasheet"),
    # The link is PCIe 5, because its NVLink bridge connects only two cards.
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
# CUDA's names. The whole name is compared, since an A10G or a laptop's 4090 is another chip with nearly the same name.
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
    """A version of torch on PyPI for Linux on x86-64: the GPUs that it has code for, and the driver that it needs."""

    torch: str
    cuda: str
    architectures: tuple[str, ...]  # names of torch.cuda.get_arch_list(): sm_ is binary code, compute_ is PTX
    driver: str  # oldest Linux driver

    def __str__(self) -> str:
        return f"torch {self.torch} with CUDA {self.cuda}"


LOCK = "lock"
# Architectures: .ci/manywheel/build_cuda.sh in pytorch/pytorch, of the release. Drivers: CUDA Toolkit Release Notes,
# "Minimum Required Driver Version for CUDA Minor Version Compatibility": a binary of CUDA 12.x runs under any driver
# of 12.0 or newer. (The driver that comes with 12.6 is 560.28.03.)
STACKS = {
    # The version in requirements.txt.
    LOCK: Stack("2.7.0", "12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"), "525.60.13"),
    # What requirements-next.txt installs. CUDA 13 no longer supports Maxwell, Pascal and Volta. torch 2.11, the first
    # version whose wheels on PyPI use CUDA 13, has the same binaries and needs the same driver.
    "next": Stack("2.15.0", "13.2", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), "580.65.06"),
}


def can_run(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether code for any of these architectures runs on a GPU of this compute capability.

    Binary code runs on GPUs with the same major version and the same or a higher minor version: `sm_86` runs on 8.6 and
    8.9. PTX is compiled by the driver for the same and all newer versions: `compute_86` runs from 8.6 on. Code with the
    suffix `a` runs on one version only (`sm_90a` on 9.0); code with the suffix `f`, such as `sm_100f`, runs within its
    major version. Source: CUDA C++ Programming Guide, "Compatibility".
    """
    for name in architectures:
        if not (parts := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)):
            continue  # not an NVIDIA architecture
        built_for = int(parts[2]), int(parts[3])
        if capability == built_for:
            return True
        any_major = parts[1] == "compute" and not parts[4]
        if capability > built_for and parts[4] != "a" and (any_major or capability[0] == built_for[0]):
            return True
    return False


def gpus_of(stack: str | None) -> dict[str, Gpu]:
    """The GPUs that a stack of `STACKS` has code for; for None, all known GPUs."""
    return {
        name: gpu for name, gpu in GPUS.items() if not stack or can_run(STACKS[stack].architectures, gpu.capability)
    }


def stacks_for(capability: tuple[int, int]) -> dict[str, Stack]:
    """The stacks that have code for a GPU of this compute capability."""
    return {name: stack for name, stack in STACKS.items() if can_run(stack.architectures, capability)}


def oldest_driver(cuda: str) -> str | None:
    """Oldest Linux driver for binaries of a CUDA version, such as 12.6; None if no stack has that major version."""
    same = (stack.driver for stack in STACKS.values() if stack.cuda.split(".")[0] == cuda.split(".")[0])
    return next(same, None)


def code_of(architectures: Iterable[str]) -> str:
    """Describe the architectures that a torch has code for."""
    names = list(architectures)
    ptx = "" if any(name.startswith("compute") for name in names) else " and no PTX"
    return f"code for {', '.join(names)}{ptx}"


def find_gpu(name: str, stack: str | None = LOCK) -> Gpu:
    """Find a GPU by its name.

    Args:
        name: name in `GPUS`, in upper or lower case.
        stack: software stack, a name in `STACKS`; None: not checked.

    Raises:
        BadInput: the GPU is not in the table, or the stack has no code for it.
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
    """Add the argument --stack to a command that has --gpu."""
    stacks = "; ".join(f"{name} is {stack}" for name, stack in STACKS.items())
    parser.add_argument("--stack", choices=STACKS, default=LOCK, help=f"software: {stacks}; default %(default)s")


def dotted(capability: tuple[int, int]) -> str:
    """Write a compute capability like NVIDIA, such as 8.0."""
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True)
class Utilisation:
    """The model FLOPs utilization (MFU) that a run reached, without the FLOPs of recomputed activations."""

    mfu: float
    parameters: float
    gpus: int
    gpu: str
    source: str


_FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
# MPT models: fused GELU, low-precision LayerNorm, no dropout; FSDP. Sequences have 1024 tokens, or 2048 on 128 GPUs.
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
# MFU of this project's own runs on a GPU, from docs/runs.md. There is none yet.
MEASURED: list[Utilisation] = []


def utilisations(gpu: str, parameters: int) -> list[Utilisation]:
    """MFU of runs on this GPU with a model of similar size (within a factor of two), lowest first."""
    near = [run for run in MEASURED + PUBLISHED if run.gpu == gpu and 0.5 <= run.parameters / parameters <= 2]
    return sorted(near, key=lambda run: run.mfu)

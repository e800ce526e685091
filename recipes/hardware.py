"""What GPUs can do, by their datasheets, and what runs made of it. A number that no source gives is None.

Datasheets print tensor throughput "with sparsity", twice what a dense product reaches; here all of it is dense.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from data_prep.stage import BadInput


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    bf16_flops: float  # a second, dense, with fp32 accumulation
    memory_gb: float  # 1e9 bytes, as on the datasheet; CUDA finds up to 6 % more (A100-40GB: 42.4e9 bytes)
    memory_gb_s: float
    gpu_link_gb_s: float  # to the other GPUs of its node, both directions together: NVLink, else PCIe
    node_network_gbit_s: float | None  # of a usual node of eight, one direction; None: there is no usual one
    tdp_w: float
    source: str


GPUS = {
    # 1600 Gbit/s: DGX A100's eight ConnectX-6 of 200; also the cluster of llm-foundry's tables.
    "a100-40gb": Gpu(312e12, 40, 1555, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    "a100-80gb": Gpu(312e12, 80, 2039, 600, 1600, 400, "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet"),
    # 1,979 TFLOP/s with sparsity; DGX H100 and H200: eight ConnectX-7 of 400 Gbit/s.
    "h100": Gpu(989.5e12, 80, 3350, 900, 3200, 700, "NVIDIA H100 datasheet (SXM5); DGX H100 datasheet"),
    # PCIe 5, as its NVLink bridge joins two cards only.
    "h100-pcie": Gpu(756.5e12, 80, 2000, 128, None, 350, "NVIDIA H100 datasheet (PCIe; 1,513 TFLOP/s with sparsity)"),
    "h200": Gpu(989.5e12, 141, 4800, 900, 3200, 700, "NVIDIA H200 datasheet (SXM5); DGX H200 datasheet"),
    # DGX B200: 1,440 GB and 64 TB/s in eight GPUs, 4.5 PFLOP/s with sparsity at 1,000 W each; eight of 400 Gbit/s.
    "b200": Gpu(2250e12, 180, 8000, 1800, 3200, 1000, "NVIDIA HGX B200 and DGX B200 datasheets"),
    "l40s": Gpu(362.05e12, 48, 864, 64, None, 350, "NVIDIA L40S datasheet (733 TFLOP/s with sparsity; PCIe 4)"),
    "a10": Gpu(125e12, 24, 600, 64, None, 150, "NVIDIA A10 datasheet (250 TFLOP/s with sparsity; PCIe 4)"),
    # GeForce: half the tensor throughput with fp32 accumulation, which training needs. 512 tensor cores x 64 fused
    # multiply-adds x 2 x 2.52 GHz = 165.2e12, and 328 x 64 x 2 x 1.695 GHz = 71.2e12.
    "rtx-4090": Gpu(165.2e12, 24, 1008, 64, None, 450, "NVIDIA Ada GPU Architecture whitepaper, appendix A (PCIe 4)"),
    "rtx-3090": Gpu(71e12, 24, 936, 64, None, 350, "NVIDIA Ampere GA102 whitepaper, appendix A (PCIe 4; no bridge)"),
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


def find_gpu(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        BadInput: it is not in the table.
    """
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput(f"--gpu {name} is not known; {hint}known here: {', '.join(GPUS)} (recipes/hardware.py)")


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

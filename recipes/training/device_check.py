"""The device that a run gets: torch and the driver are asked before anything is computed.

Composer takes the CPU where torch finds no GPU, and torch only warns of a GPU that it has no code for. One run would
train for weeks where hours were meant, and the other would end with "no kernel image" at its first kernel.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch
import torch.version

from data_prep.common.errors import BadInput
from data_prep.common.world import world
from recipes.planning.gpus import can_run, code_of, dotted, oldest_driver, stacks_for

DRIVER = Path("/proc/driver/nvidia/version")  # of the kernel module, seen in a container that was given no GPU, too


def check_device(device: str | None, precision: str, on_cpu: str = "device=cpu precision=fp32") -> str:
    """Say what this process computes on. Nothing is allocated on a GPU.

    Args:
        device: device of the configuration: cpu | gpu; None: a GPU if there is one.
        precision: precision of the configuration; all but fp32 want a GPU.
        on_cpu: what to type to train on the CPU.

    Raises:
        BadInput: no GPU where one was asked for, or where a driver is; no GPU for this rank; a GPU that torch has no
            code for.
    """
    if device == "cpu":
        return "device = cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: the error below says it
        available = torch.cuda.is_available()
    if not available:
        return _without_gpu(device, precision, on_cpu)
    rank, count = world().local_rank, torch.cuda.device_count()
    if rank >= count:
        raise BadInput(
            f"local rank {rank} has no GPU: {count} seen here{_visible()}, and each rank takes one; start no more than "
            f"{count} ranks a node (composer -n {count})"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a GPU that torch has no code for: the error below says it
        gpu = torch.cuda.get_device_properties(rank)
    capability, architectures = (gpu.major, gpu.minor), torch.cuda.get_arch_list()
    if torch.version.cuda and architectures and not can_run(architectures, capability):
        ways = [
            f": {stack} has it, and needs an NVIDIA driver of {stack.driver} or newer"
            for stack in stacks_for(capability).values()
        ]
        raise BadInput(
            f"{gpu.name} has compute capability {dotted(capability)}, and torch {torch.__version__} has "
            f"{code_of(architectures)}, so nothing runs on it; take a GPU that it has code for, or a torch "
            f"that has code for this one{''.join(ways)}"
        )
    return f"device = gpu: {gpu.name}, compute capability {dotted(capability)}"


def loaded_driver() -> str | None:
    """Version of NVIDIA's kernel module, such as 560.35.03; None: it is not loaded, or does not say."""
    try:
        first_line = DRIVER.read_text().partition("\n")[0]
    except OSError:
        return None
    version = re.search(r"\b\d{3,}\.\d[\d.]*", first_line)
    return version[0] if version else None


def _without_gpu(device: str | None, precision: str, on_cpu: str) -> str:
    """What is computed on where torch finds no GPU: the CPU, if that can be what was meant."""
    said = _torch_says()
    driver = f" (NVIDIA driver {loaded_driver() or 'of unknown version'} is loaded)" if DRIVER.exists() else ""
    why = f"{said}{driver}{_visible()}"
    if device == "gpu" or precision != "fp32":
        asked = "device = 'gpu'" if device else f"precision = {precision!r}"
        raise BadInput(f"{asked}, but no GPU was found: {why}; {_needs()}; {on_cpu} trains on the CPU")
    if (driver or "driver on your system is too old" in said) and not _hidden():
        raise BadInput(
            f"device = null takes a GPU if there is one, and a driver is there, but no GPU was found: {why}; "
            f"{_needs()}; {on_cpu} trains on the CPU"
        )
    return f"device = null: no GPU was found ({why}), so this run trains on the CPU"


def _torch_says() -> str:
    """Why torch finds no GPU, in its first sentence. `is_available` warns once a process, and Composer has asked it."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        return re.split(r"\.\s+(?=[A-Z])|\n", str(error).strip())[0].rstrip(".")
    return "torch.cuda.is_available() is False"


def _needs() -> str:
    if not torch.version.cuda:
        return f"torch {torch.__version__} is not built with CUDA: install requirements.txt's"
    oldest = oldest_driver(torch.version.cuda)
    driver = f"driver of {oldest} or newer" if oldest else f"driver for CUDA {torch.version.cuda}"
    return (
        f"torch {torch.__version__} needs an NVIDIA {driver}, and a GPU that this process can see (a container "
        "is given its GPUs when it starts: docker run --gpus all)"
    )


def _visible() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen!r})"


def _hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names none: empty, -1 or NoDevFiles, as users and Slurm hide all GPUs."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen is not None and not re.match(r"\s*(\d|GPU-|MIG-)", chosen)

"""Check the device of a run with torch and the driver, before anything is computed.

If torch finds no GPU, Composer silently uses the CPU, and a run of hours would take weeks. If torch has no code for a
GPU, it only warns, and the run would end with "no kernel image" at its first kernel.
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

DRIVER = Path("/proc/driver/nvidia/version")  # version of the kernel module; a container without GPUs sees it, too


def check_device(device: str | None, precision: str, on_cpu: str = "device=cpu precision=fp32") -> str:
    """Return a description of the device that this process computes on. Nothing is allocated on a GPU.

    Args:
        device: device of the configuration: cpu or gpu; None: a GPU if there is one.
        precision: precision of the configuration; every precision except fp32 needs a GPU.
        on_cpu: settings that make the run train on the CPU, for messages.

    Raises:
        BadInput: no GPU was found although the configuration asks for one or a driver is loaded; or there is no GPU for
            this rank; or torch has no code for the GPU.
    """
    if device == "cpu":
        return "device = cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error below reports a driver that is too old
        available = torch.cuda.is_available()
    if not available:
        return _without_gpu(device, precision, on_cpu)
    rank, count = world().local_rank, torch.cuda.device_count()
    if rank >= count:
        raise BadInput(
            f"local rank {rank} has no GPU: this node has {count}{_visible()}, and each rank needs one; start at most "
            f"{count} ranks on each node (composer -n {count})"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error below reports a GPU that torch has no code for
        gpu = torch.cuda.get_device_properties(rank)
    capability, architectures = (gpu.major, gpu.minor), torch.cuda.get_arch_list()
    if torch.version.cuda and architectures and not can_run(architectures, capability):
        ways = [
            f": {stack}, which needs an NVIDIA driver of {stack.driver} or newer"
            for stack in stacks_for(capability).values()
        ]
        raise BadInput(
            f"{gpu.name} has compute capability {dotted(capability)}, but torch {torch.__version__} has "
            f"{code_of(architectures)}, so nothing runs on this GPU; use another GPU, or a torch that has code for "
            f"this one{''.join(ways)}"
        )
    return f"device = gpu: {gpu.name}, compute capability {dotted(capability)}"


def loaded_driver() -> str | None:
    """Version of NVIDIA's kernel module, such as 560.35.03; None if it is not loaded or its version is not known."""
    try:
        first_line = DRIVER.read_text().partition("\n")[0]
    except OSError:
        return None
    version = re.search(r"\b\d{3,}\.\d[\d.]*", first_line)
    return version[0] if version else None


def _without_gpu(device: str | None, precision: str, on_cpu: str) -> str:
    """Describe the CPU as the device if torch finds no GPU; refuse if the user cannot have meant the CPU."""
    said = _torch_says()
    driver = f" (NVIDIA driver {loaded_driver() or 'of unknown version'} is loaded)" if DRIVER.exists() else ""
    why = f"{said}{driver}{_visible()}"
    if device == "gpu" or precision != "fp32":
        asked = "device = 'gpu'" if device else f"precision = {precision!r}"
        raise BadInput(f"{asked}, but no GPU was found: {why}; {_needs()}; {on_cpu} trains on the CPU")
    if (driver or "driver on your system is too old" in said) and not _hidden():
        raise BadInput(
            f"device = null selects a GPU if there is one, and a driver is loaded, but no GPU was found: {why}; "
            f"{_needs()}; {on_cpu} trains on the CPU"
        )
    return f"device = null: no GPU was found ({why}), so this run trains on the CPU"


def _torch_says() -> str:
    """Why torch finds no GPU: the first sentence of its error.

    The warning of `is_available` comes only once in a process, and Composer has already called it.
    """
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        return re.split(r"\.\s+(?=[A-Z])|\n", str(error).strip())[0].rstrip(".")
    return "torch.cuda.is_available() is False"


def _needs() -> str:
    if not torch.version.cuda:
        return f"torch {torch.__version__} is not built with CUDA: install that of requirements.txt"
    oldest = oldest_driver(torch.version.cuda)
    driver = f"driver of {oldest} or newer" if oldest else f"driver for CUDA {torch.version.cuda}"
    return (
        f"torch {torch.__version__} needs an NVIDIA {driver}, and a GPU that this process can see (start a container "
        "with its GPUs: docker run --gpus all)"
    )


def _visible() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen!r})"


def _hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs: it is empty, -1 or NoDevFiles, as users and Slurm set it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen is not None and not re.match(r"\s*(\d|GPU-|MIG-)", chosen)

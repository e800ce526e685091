"""Arguments of the attention kernels under the no-op CUDA: `attention_arguments.py` prints a JSON line for each kernel.

It runs a training step of a small model in bf16 autocast, forward and backward, for each `kernels.sdpa_backend` and for
flash_attention_2, whose package is replaced by one that records its arguments (PYTHONPATH holds it).
"""

from __future__ import annotations

import importlib
import json
import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from data_prep.common.errors import BadInput
from recipes.config.schema import KernelsConfig, ModelConfig
from recipes.modeling.gpt2 import BioMedLM
from recipes.modeling.speedups import BACKENDS, attention_backend, check_attention_backend

LAYERS, HEADS, WIDTH, TOKENS, DROPOUT = 4, 2, 256, 64, 0.125
OTHER_DROPOUT = 0.1  # which no multiple of 1/16 is


class Kernels(TorchDispatchMode):
    """Names of the attention kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.seen.append(str(func).removeprefix("aten.").removesuffix(".default"))
        if "cudnn" in str(func):  # NVIDIA's library requires a real device
            shapes = func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args), **(kwargs or {}))
            return tree_map_only(torch.Tensor, lambda tensor: torch.empty_like(tensor, device="cuda"), shapes)
        return func(*args, **(kwargs or {}))


class Arguments(TorchFunctionMode):
    """Arguments that torch's attention receives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(
                {
                    "scale": kwargs["scale"],
                    "causal": kwargs["is_causal"],
                    "dropout": kwargs["dropout_p"],
                    "mask": kwargs.get("attn_mask") is not None,
                    "dtype": str(args[0].dtype),
                    "device": args[0].device.type,
                }
            )
        return func(*args, **kwargs)


def step(implementation: str, backend: str | None, dropout: float = DROPOUT) -> dict[str, Any]:
    """Kernels and arguments of one forward and backward pass."""
    shape = ModelConfig(600, TOKENS, WIDTH, LAYERS, HEADS, attn_implementation=implementation, attn_pdrop=dropout)
    check_attention_backend(KernelsConfig(sdpa_backend=backend), shape, "amp_bf16")
    model = BioMedLM(shape, 599, KernelsConfig(sdpa_backend=backend))
    model.cuda().train()
    batch = {"input_ids": torch.zeros(2, TOKENS, dtype=torch.long, device="cuda")}
    with attention_backend(KernelsConfig(sdpa_backend=backend)), Arguments() as arguments, Kernels() as kernels:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch)["loss"]
        loss.backward()
    return {"kernels": sorted(set(kernels.seen)), "arguments": arguments.seen}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for backend in (None, *BACKENDS):
        print(json.dumps({"way": f"sdpa {backend}", **step("sdpa", backend)}), flush=True)
        try:
            ended = step("sdpa", backend, OTHER_DROPOUT)
        except BadInput as error:
            ended = {"refused": str(error)}
        print(json.dumps({"way": f"sdpa {backend}, other dropout", **ended}), flush=True)
    stand_in = importlib.import_module("flash_attn")
    numbers = step("flash_attention_2", None)
    print(json.dumps({"way": "flash_attention_2", **numbers, "arguments": stand_in.seen}), flush=True)

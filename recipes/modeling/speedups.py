"""Faster ways to compute the same model. `loss` has a faster way to compute the loss.

Whatever is chosen, the parity gate of recipes/modeling/attention.py compares the attention with a plain reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch._dynamo
from torch import nn
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2LMHeadModel

from data_prep.common.errors import BadInput
from recipes.config.schema import KernelsConfig, ModelConfig

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CAN_USE = {
    "flash": can_use_flash_attention,
    "cudnn": can_use_cudnn_attention,
    "efficient": can_use_efficient_attention,
}


def fuse_gelu(model: GPT2LMHeadModel) -> None:
    """Compute gelu_new, which transformers composes of eight operations, in one operation.

    The configuration still says gelu_new, because the function is the same (Hendrycks and Gimpel 2016, arXiv
    1606.08415).
    """
    blocks: Any = model.transformer.h
    for block in blocks:
        block.mlp.act = nn.GELU(approximate="tanh")


def compile_blocks(model: GPT2LMHeadModel, cache: Path) -> None:
    """Compile the forward pass of each block; all blocks share the compiled code. Call it before the model is sharded.

    Composer's `compile_config` would compile the whole model. That unrolls all layers into one graph, takes longer in
    proportion to their number, and FSDP's hooks break the graph at every block anyway. Attention is not compiled
    (ScaledGPT2Attention), because its scale differs between layers, and each layer would be compiled anew.

    Args:
        model: model whose blocks are compiled. The names of its weights and its checkpoints do not change.
        cache: folder for compiled code, unless TORCHINDUCTOR_CACHE_DIR names another folder.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
    # By default, if torch has compiled a function too often, it continues uncompiled, with a line of log at most.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in model.transformer.h:
        block.forward = torch.compile(block.forward)


def check_attention_backend(kernels: KernelsConfig, model: ModelConfig, precision: str) -> None:
    """Check that torch can use the chosen attention kernel on this GPU with this model's heads and dropout.

    For example, cuDNN's kernel accepts dropout only in steps of 1/16 since torch 2.15. On a CPU nothing is checked.

    Raises:
        BadInput: torch cannot use the kernel.
    """
    ask = CAN_USE.get(kernels.sdpa_backend or "")
    if ask is None or not torch.cuda.is_available():
        return
    dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float32
    shape = (1, model.n_head, model.n_positions, model.n_embd // model.n_head)
    heads = torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True)
    with sdpa_kernel(BACKENDS[str(kernels.sdpa_backend)]):
        if not ask(SDPAParams(heads, heads, heads, None, model.attn_pdrop, True, False)):
            raise BadInput(
                f"kernels.sdpa_backend = {kernels.sdpa_backend!r}: torch {torch.__version__} cannot use this kernel on "
                f"this GPU for heads of {shape[-1]}, {str(dtype).removeprefix('torch.')} and model.attn_pdrop = "
                f"{model.attn_pdrop:g}; set it to null, and torch chooses a kernel"
            )


@contextmanager
def attention_backend(kernels: KernelsConfig) -> Iterator[None]:
    """Context in which scaled_dot_product_attention may use only the configured kernel.

    Raises:
        BadInput: the kernel cannot run on this device.
    """
    if kernels.sdpa_backend is None:
        yield
        return
    context: Any = sdpa_kernel(BACKENDS[kernels.sdpa_backend])
    try:
        with context:
            yield
    except RuntimeError as error:
        if "No viable backend" not in str(error):
            raise
        raise BadInput(
            f"kernels.sdpa_backend = {kernels.sdpa_backend!r}, which this device and precision do not have; set null"
        ) from None

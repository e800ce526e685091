"""GPT-2 attention scaled by 1/(layer_idx + 1) under the fast kernels, and the gate that proves it.

transformers honours `scale_attn_by_inverse_layer_idx` in its eager path only; `sdpa` and `flash_attention_2` drop it
without a word before 5.x (huggingface/transformers#44380). BioMedLM is trained with it, so here the scale is handed
to the kernel explicitly, and no run starts before its logits agree with the eager path's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PretrainedConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

# Largest |difference| of logits, as a share of the largest |logit|, that rounding explains. Measured between eager and
# sdpa: 1e-6 in fp32 (32 layers on a CPU), 1.5e-2 in bf16 autocast. The bounds leave a factor of about ten and three.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
GATE_TOKENS = 64


class ScaledGPT2Attention(GPT2Attention):
    """GPT2Attention that passes its softmax scale to the kernel: `scale=` of sdpa, `softmax_scale=` of flash attention.

    The implementation keeps its registered name: GPT2Model builds a (B, 1, T, T) mask for any name it does not know,
    and packed batches need none.
    """

    @torch.compiler.disable  # `layer_idx` is a constant to it, so it would compile every layer anew
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As GPT2Attention.forward; `kwargs` reach the attention function, which eager ignores (it scales itself)."""
        scale = 1.0 / math.sqrt(self.head_dim) if self.scale_attn_weights else 1.0
        if self.scale_attn_by_inverse_layer_idx:
            assert self.layer_idx is not None
            scale /= self.layer_idx + 1
        return super().forward(*args, scaling=scale, **kwargs)


def attention_layers(model: GPT2LMHeadModel) -> list[GPT2Attention]:
    """The model's attention modules, in layer order."""
    return [module for module in model.modules() if isinstance(module, GPT2Attention)]


def use_scaled_attention(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Make every attention layer of this model honour the layer scaling; its state dict is unchanged."""
    for attention in attention_layers(model):
        attention.__class__ = ScaledGPT2Attention
    return model


@contextmanager
def _stock_attention(model: GPT2LMHeadModel, implementation: str) -> Iterator[None]:
    """The same weights through transformers' own attention class."""
    layers, before = attention_layers(model), model.config._attn_implementation
    classes = [type(attention) for attention in layers]
    for attention in layers:
        attention.__class__ = GPT2Attention
    model.config._attn_implementation = implementation
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for attention, cls in zip(layers, classes, strict=True):
            attention.__class__ = cls
        model.config._attn_implementation = before


def gate_tokens(config: PretrainedConfig, device: torch.device | str = "cpu") -> torch.Tensor:
    """Fixed token ids, shape (2, T), T up to 64, that spread over the vocabulary and leave out its last id."""
    n = min(GATE_TOKENS, config.n_positions)
    ids = torch.arange(2 * n, device=device) * 7919 % (config.vocab_size - 1)
    return ids.view(2, n)


@dataclass(frozen=True)
class Parity:
    """How far two implementations' logits lie apart, as shares of the largest |logit|."""

    difference: float
    difference_unscaled: float  # of a kernel that ignores the layer scaling: what the gate must be able to see
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference. NaN does not pass."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        seen = f"ignoring the layer scaling would be {self.difference_unscaled:.1e}"
        if self.difference_unscaled <= self.tolerance:
            seen += ", too little for this gate to see"
        return f"|difference| / max |logit| = {self.difference:.1e}, tolerance {self.tolerance:.0e}; {seen}"


@torch.no_grad()
def attention_parity(model: GPT2LMHeadModel, dtype: torch.dtype = torch.float32) -> Parity:
    """Compare the model as it stands with transformers' eager attention on the same weights and tokens.

    Works on the model that is about to train: on its device, sharded or not (all ranks must call it), in the
    precision context of the caller. Dropout is off for the comparison.

    Args:
        model: the model, its attention made by `use_scaled_attention`.
        dtype: the dtype that the caller computes in; decides the tolerance.
    """
    device = next(model.parameters()).device
    tokens = gate_tokens(model.config, device)
    training = model.training
    model.eval()
    try:
        ours = model(input_ids=tokens, use_cache=False).logits.float()
        with _stock_attention(model, "eager"):
            eager = model(input_ids=tokens, use_cache=False).logits.float()
        with _stock_attention(model, model.config._attn_implementation):
            unscaled = model(input_ids=tokens, use_cache=False).logits.float()
    finally:
        model.train(training)
    largest = eager.abs().max()
    return Parity(
        difference=((ours - eager).abs().max() / largest).item(),
        difference_unscaled=((unscaled - eager).abs().max() / largest).item(),
        tolerance=TOLERANCE[dtype],
    )

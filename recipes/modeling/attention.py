"""GPT-2 attention scaled by 1/(layer_idx + 1) with fast kernels, and the parity gate that checks it.

transformers 4 applies `scale_attn_by_inverse_layer_idx` only in its eager attention; `sdpa` and `flash_attention_2`
silently ignore it (huggingface/transformers#44380). BioMedLM is trained with this scaling. Therefore this module passes
the scale to the kernel explicitly, and no run starts unless the attention of each layer agrees with the plain reference
implementation below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from recipes.modeling.transformers_releases import mask_without_positions

# Largest difference that rounding explains: its root mean square, as a share of that of the attention output. Measured
# on a CPU at widths of 64 to 2,560, with initial weights and with weights five times as large: 2e-7 in fp32; 2e-3 if
# inputs and outputs of the kernel are bf16. fp16 rounds an eighth as much. The bounds are 50 and 5 times these values.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2 / 8}
# Largest difference as a share of the difference that attention without any layer scaling would have. If one layer
# lacks its scale, the share is 1, or a half for layer 1. Rounding causes at most 0.29 (width 64, 16 tokens, bf16,
# initial weights), and at most 0.05 from a width of 768 on.
SHARE_OF_UNSCALED = 0.4
GATE_TOKENS = 64


class ScaledGPT2Attention(GPT2Attention):
    """GPT2Attention that passes its softmax scale to the kernel: `scale=` of sdpa, `softmax_scale=` of flash attention.

    The implementation keeps its registered name. For an unknown name, GPT2Model would build a (B, 1, T, T) mask, which
    packed batches do not need.
    """

    @torch.compiler.disable  # torch.compile takes `layer_idx` for a constant, and would compile each layer anew
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Pass the scale on to the attention function. Eager attention ignores it, because it scales by itself."""
        if hasattr(self, "scaling"):  # transformers 5 passes the scale itself; the gate checks the result
            return super().forward(*args, **kwargs)
        return super().forward(*args, scaling=softmax_scale(self), **kwargs)


def softmax_scale(attention: GPT2Attention, by_layer: bool = True) -> float:
    """Factor for the products of queries and keys in a layer.

    Args:
        attention: attention module of the layer.
        by_layer: whether to include the layer scaling, if the model has it.
    """
    scale = 1.0 / math.sqrt(attention.head_dim) if attention.scale_attn_weights else 1.0
    if by_layer and attention.scale_attn_by_inverse_layer_idx:
        assert attention.layer_idx is not None
        scale /= attention.layer_idx + 1
    return scale


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The reference implementation of causal attention for the gate: (B, H, T, D) each -> (B, T, H, D)."""
    n = query.shape[-2]
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    weights = (query @ key.transpose(-1, -2) * scale).masked_fill(later, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def attention_layers(model: GPT2LMHeadModel) -> list[GPT2Attention]:
    """The model's attention modules, in layer order."""
    return [module for module in model.modules() if isinstance(module, GPT2Attention)]


def use_scaled_attention(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Make every attention layer of a model apply the layer scaling. The state dict of the model does not change."""
    mask_without_positions()
    for attention in attention_layers(model):
        attention.__class__ = ScaledGPT2Attention
    return model


def gate_tokens(config: PretrainedConfig, device: torch.device | str = "cpu") -> torch.Tensor:
    """Fixed token ids, (2, T) with T up to 64, that are spread over the vocabulary and do not include its last id."""
    n = min(GATE_TOKENS, config.n_positions)
    ids = torch.arange(2 * n, device=device) * 7919 % (config.vocab_size - 1)
    return ids.view(2, n)


@dataclass(frozen=True)
class Parity:
    """Largest difference of the attention of any layer from `plain_attention`, as a share of the latter.

    Attributes:
        difference: difference of the model's attention.
        unscaled: difference that attention without layer scaling would have; None: the model has no layer scaling, or
            only one layer.
        tolerance: largest difference that rounding explains.
    """

    difference: float
    unscaled: float | None
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference, and it is too small for a fault in the layer scaling. NaN fails."""
        most = math.inf if self.unscaled is None else SHARE_OF_UNSCALED * self.unscaled
        return self.difference <= min(self.tolerance, most)

    def __str__(self) -> str:
        text = f"difference {self.difference:.1e}, tolerance {self.tolerance:.0e}; "
        if self.unscaled is None:
            return text + "no layer scaling to see: the model has none, or one layer"
        seen = (
            "" if self.tolerance <= SHARE_OF_UNSCALED * self.unscaled else f", of which at most {SHARE_OF_UNSCALED:g}"
        )
        return f"{text}without the layer scaling it would be {self.unscaled:.1e}{seen}"


@torch.no_grad()
def attention_parity(model: GPT2LMHeadModel, dtype: torch.dtype = torch.float32) -> Parity:
    """Compare the attention of each layer with `plain_attention` in fp32, for the same queries, keys and values.

    The model is compared as it will be trained: on its device, sharded or not (all ranks must call this), in the
    caller's precision context, but without dropout. Comparing logits would not be enough: with initial weights in bf16,
    attention without the layer scaling changes them by little more than rounding does.

    Args:
        model: model that `use_scaled_attention` has changed.
        dtype: dtype of the caller's computation, which determines the tolerance.
    """
    device = next(model.parameters()).device
    squares: list[torch.Tensor] = []  # for each layer: sums of squares of both differences and of the plain attention
    scaled = model.config.scale_attn_by_inverse_layer_idx and model.config.n_layer > 1

    def compare(attention: Callable[..., Any]) -> Callable[..., Any]:
        def compared(module: Any, query: Any, key: Any, value: Any, mask: Any, **arguments: Any) -> Any:
            output = attention(module, query, key, value, mask, **arguments)
            q, k, v = query.float(), key.float(), value.float()
            with torch.autocast(device.type, enabled=False):
                plain = plain_attention(q, k, v, softmax_scale(module))
                unscaled = plain_attention(q, k, v, softmax_scale(module, by_layer=False))
            parts = (output[0].float() - plain, unscaled - plain, plain)
            squares.append(torch.stack([part.square().sum() for part in parts]))
            return output

        return compared

    training = model.training
    model.eval()
    try:
        with _each_attention(model.config._attn_implementation, compare):
            model(input_ids=gate_tokens(model.config, device), use_cache=False)
    finally:
        model.train(training)
    layers = torch.stack(squares).double().sqrt().tolist()
    largest = [max((row[n] / row[2] if row[2] else row[n] for row in layers), key=_nan_first) for n in (0, 1)]
    return Parity(largest[0], largest[1] if scaled else None, TOLERANCE[dtype])


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


@contextmanager
def _each_attention(implementation: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Context in which the attention function of the given name is replaced by `change` of it."""
    before = ALL_ATTENTION_FUNCTIONS[implementation]
    ALL_ATTENTION_FUNCTIONS[implementation] = change(before)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS[implementation] = before

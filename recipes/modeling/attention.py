"""GPT-2 attention scaled by 1/(layer_idx + 1) under the fast kernels, and the gate that proves it.

transformers 4 honours `scale_attn_by_inverse_layer_idx` in its eager path only; `sdpa` and `flash_attention_2` drop it
without a word (huggingface/transformers#44380). BioMedLM is trained with it, so here the scale is handed to the kernel
explicitly, and no run starts before the attention of each layer agrees with attention that is written out here.
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

# Largest difference that rounding explains, root mean square, as a share of the attention's own. Measured on a CPU at
# 64 to 2,560 wide, initialised and with weights five times as large: 2e-7 in fp32, 2e-3 where the kernel is given and
# gives bf16; fp16 rounds an eighth as much. The bounds leave a factor of 50 and five.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2 / 8}
# A difference is measured as a share of what leaving out all scales makes. A layer without its scale makes 1, in
# layer 1 a half; rounding at most 0.29 (64 wide, 16 tokens, bf16, initialised), from 768 wide on 0.05.
SHARE_OF_UNSCALED = 0.4
GATE_TOKENS = 64


class ScaledGPT2Attention(GPT2Attention):
    """GPT2Attention that passes its softmax scale to the kernel: `scale=` of sdpa, `softmax_scale=` of flash attention.

    The implementation keeps its registered name: GPT2Model builds a (B, 1, T, T) mask for any name it does not know,
    and packed batches need none.
    """

    @torch.compiler.disable  # `layer_idx` is a constant to it, so it would compile every layer anew
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As GPT2Attention.forward; `kwargs` reach the attention function, which eager ignores (it scales itself)."""
        if hasattr(self, "scaling"):  # of transformers 5, which hands it over itself; the gate looks at what arrives
            return super().forward(*args, **kwargs)
        return super().forward(*args, scaling=softmax_scale(self), **kwargs)


def softmax_scale(attention: GPT2Attention, by_layer: bool = True) -> float:
    """What a layer's products of queries and keys are multiplied by.

    Args:
        attention: the layer.
        by_layer: with the layer scaling, if the model has it.
    """
    scale = 1.0 / math.sqrt(attention.head_dim) if attention.scale_attn_weights else 1.0
    if by_layer and attention.scale_attn_by_inverse_layer_idx:
        assert attention.layer_idx is not None
        scale /= attention.layer_idx + 1
    return scale


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention, written out: (B, H, T, D) each -> (B, T, H, D). What every kernel is compared with."""
    n = query.shape[-2]
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    weights = (query @ key.transpose(-1, -2) * scale).masked_fill(later, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def attention_layers(model: GPT2LMHeadModel) -> list[GPT2Attention]:
    """The model's attention modules, in layer order."""
    return [module for module in model.modules() if isinstance(module, GPT2Attention)]


def use_scaled_attention(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Make every attention layer of this model honour the layer scaling; its state dict is unchanged."""
    mask_without_positions()
    for attention in attention_layers(model):
        attention.__class__ = ScaledGPT2Attention
    return model


def gate_tokens(config: PretrainedConfig, device: torch.device | str = "cpu") -> torch.Tensor:
    """Fixed token ids, shape (2, T), T up to 64, that spread over the vocabulary and leave out its last id."""
    n = min(GATE_TOKENS, config.n_positions)
    ids = torch.arange(2 * n, device=device) * 7919 % (config.vocab_size - 1)
    return ids.view(2, n)


@dataclass(frozen=True)
class Parity:
    """How far the attention lies from `plain_attention`, as a share of it; of the layer where it is most.

    Attributes:
        difference: difference of the attention that is to be used.
        unscaled: difference of attention that ignores the layer scaling; None: the model has none, or one layer.
        tolerance: what rounding explains.
    """

    difference: float
    unscaled: float | None
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference, and no fault in the layer scaling does. NaN does not pass."""
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
    """Compare each layer's attention with `plain_attention`, in fp32, of the same queries, keys and values.

    Works on the model that is about to train: on its device, sharded or not (all ranks must call it), in the
    precision context of the caller. Dropout is off for the comparison. Logits are no measure for it: at initialisation
    attention without the scaling changes those of a model in bf16 by little more than rounding does.

    Args:
        model: the model, its attention made by `use_scaled_attention`.
        dtype: the dtype that the caller computes in; decides the tolerance.
    """
    device = next(model.parameters()).device
    squares: list[torch.Tensor] = []  # of each layer: of both differences, and of the plain attention
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
    """Within it, the attention function of a name is another, made of it."""
    before = ALL_ATTENTION_FUNCTIONS[implementation]
    ALL_ATTENTION_FUNCTIONS[implementation] = change(before)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS[implementation] = before

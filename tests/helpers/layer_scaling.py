"""GPT-2 as transformers 4 computes it with its fast kernels: without the scaling by layer."""

from __future__ import annotations

from typing import Any

from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from recipes.modeling.attention import attention_layers, softmax_scale


def forget_layer_scaling(*layers: GPT2Attention) -> None:
    """Replace these layers by those of transformers, without the scaling in any version of it."""
    layer: Any
    for layer in layers:
        layer.__class__ = GPT2Attention
        if hasattr(layer, "scaling"):  # in transformers 5, which scales correctly
            layer.scaling = softmax_scale(layer, by_layer=False)


def without_layer_scaling(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model with all layers unscaled."""
    forget_layer_scaling(*attention_layers(model))
    return model

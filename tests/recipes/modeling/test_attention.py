"""The layer-scaled attention equals transformers' eager attention, and the check before a run notices differences."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from layer_scaling import forget_layer_scaling, without_layer_scaling
from recipes.modeling.attention import (
    Parity,
    ScaledGPT2Attention,
    attention_layers,
    attention_parity,
    softmax_scale,
    use_scaled_attention,
)


def make_model(implementation: str, scaled: bool, seed: int = 0) -> Any:
    """8 layers with weights five times the usual, so that attention is far from uniform and errors are visible."""
    config = GPT2Config(
        vocab_size=503, n_positions=64, n_embd=64, n_layer=8, n_head=4, scale_attn_by_inverse_layer_idx=scaled,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, initializer_range=0.1, use_cache=False,
        bos_token_id=502, eos_token_id=502, pad_token_id=None, attn_implementation=implementation,
    )  # fmt: skip
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)


def logits_and_gradients(model: GPT2LMHeadModel, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 502, (3, 48), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=tokens, attention_mask=mask).logits
    keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    torch.nn.functional.cross_entropy(logits[:, :-1][keep[:, 1:]], tokens[:, 1:][keep[:, 1:]]).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logits[keep].detach(), gradients


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_forward_and_gradients_are_eagers(scaled: bool, padded: bool) -> None:
    mask = None
    if padded:
        mask = torch.ones(3, 48, dtype=torch.long)
        mask[0, 30:] = mask[2, 7:] = 0
    expected, expected_gradients = logits_and_gradients(make_model("eager", scaled), mask)
    logits, gradients = logits_and_gradients(use_scaled_attention(make_model("sdpa", scaled)), mask)
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (gradients - expected_gradients).abs().max() <= 2e-5 * expected_gradients.abs().max()
    if scaled:  # without this scaling it is another model
        stock, _ = logits_and_gradients(without_layer_scaling(make_model("sdpa", scaled)), mask)
        assert (stock - expected).abs().max() > 1e-2 * expected.abs().max()


def test_no_mask_is_built_for_packed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any, float]] = []
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.append((attention_mask, kwargs.get("is_causal", module.is_causal), kwargs["scaling"]))
        return real(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    use_scaled_attention(make_model("sdpa", True))(input_ids=torch.zeros(2, 16, dtype=torch.long))
    assert [(mask, causal) for mask, causal, _ in seen] == [(None, True)] * 8
    assert [scale for *_, scale in seen] == pytest.approx([16**-0.5 / (layer + 1) for layer in range(8)])


def test_flash_attention_2_gets_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the arguments are tested: plain attention in fp64 replaces the kernel."""

    def kernel(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any, **kwargs: Any) -> Any:
        assert mask is None and kwargs.get("is_causal", module.is_causal)
        scores = query @ key.transpose(-1, -2) * scaling
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return (scores.masked_fill(~causal, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", kernel)
    eager = make_model("eager", True).double()
    model = use_scaled_attention(make_model("sdpa", True)).double()
    model.config._attn_implementation = "flash_attention_2"
    tokens = torch.arange(96).view(2, 48)
    with torch.no_grad():
        expected = eager(input_ids=tokens).logits
        assert (model(input_ids=tokens).logits - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_nothing_global_and_no_state_is_changed() -> None:
    model = make_model("sdpa", True)
    keys = list(model.state_dict())
    use_scaled_attention(model)
    assert list(model.state_dict()) == keys
    assert all(type(layer) is ScaledGPT2Attention for layer in attention_layers(model))
    assert not any(isinstance(layer, ScaledGPT2Attention) for layer in attention_layers(make_model("sdpa", True)))


def narrow(n_embd: int, n_layer: int, trained: bool, scaled: bool = True) -> Any:
    """With initial weights, and with weights as large as after training. Layers share matrices; the MLP is narrow."""
    config = GPT2Config(
        vocab_size=64, n_positions=16, n_inner=64, n_embd=n_embd, n_layer=n_layer, n_head=n_embd // 128 or 1,
        use_cache=False, initializer_range=0.1 if trained else 0.02, scale_attn_by_inverse_layer_idx=scaled,
        bos_token_id=63, eos_token_id=63, pad_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(**{**config.to_dict(), "n_layer": 1, "attn_implementation": "sdpa"}))
    block = model.transformer.h[0]
    model.config = model.transformer.config = config
    for layer in range(1, n_layer):
        twin = copy.deepcopy(block, {id(p): p for p in block.parameters()})
        twin.attn.layer_idx = layer
        if hasattr(twin.attn, "scaling"):
            twin.attn.scaling = softmax_scale(twin.attn)
        model.transformer.h.append(twin)
    for layer in attention_layers(model):
        layer.config = config
    return model


def parity_of(model: Any, dtype: torch.dtype) -> Parity:
    with torch.autocast("cpu", torch.bfloat16) if dtype == torch.bfloat16 else nullcontext():
        return attention_parity(model, dtype)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("n_embd", "n_layer", "dtype"),
    [
        *(
            (n_embd, n_layer, torch.float32)
            for n_embd, n_layer in ((64, 4), (768, 4), (768, 32), (2560, 4), (2560, 32))
        ),
        *((n_embd, 4, torch.bfloat16) for n_embd in (64, 768)),
        # On a CPU without products in bf16, this takes minutes each.
        *(
            pytest.param(n_embd, n_layer, torch.bfloat16, marks=pytest.mark.chaos)
            for n_embd, n_layer in ((768, 32), (2560, 4), (2560, 32))
        ),
    ],
)
def test_gate_passes_ours_and_refuses_unscaled(n_embd: int, n_layer: int, trained: bool, dtype: torch.dtype) -> None:
    """Missing layer scaling is refused, in all layers and in the layer where it is weakest; ours passes."""
    model = use_scaled_attention(narrow(n_embd, n_layer, trained)).train()
    assert (parity := parity_of(model, dtype)).passed, parity
    assert model.training and model.config._attn_implementation == "sdpa"
    layers = attention_layers(model)
    forget_layer_scaling(layers[1])
    assert not (parity := parity_of(model, dtype)).passed, parity
    forget_layer_scaling(*layers)
    parity = parity_of(model, dtype)
    assert not parity.passed and parity.difference == pytest.approx(parity.unscaled, rel=0.05), parity


@pytest.mark.parametrize(("n_layer", "scaled"), [(1, True), (4, False)])
def test_gate_says_where_there_is_nothing_to_see(n_layer: int, scaled: bool) -> None:
    parity = attention_parity(use_scaled_attention(narrow(64, n_layer, False, scaled)))
    assert parity.passed and parity.unscaled is None and "no layer scaling to see" in str(parity)


def test_gate_does_not_pass_nan() -> None:
    model: Any = use_scaled_attention(make_model("sdpa", True))
    with torch.no_grad():
        model.transformer.h[3].attn.c_attn.weight[0, 0] = torch.nan
    assert not attention_parity(model).passed

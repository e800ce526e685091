"""Turn a trained model into one that every library computes correctly: fold its attention scale, compare the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.modeling.model_folder import open_as_stock

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

# Largest |difference| of logits as a share of the largest |logit|: rounding in fp32 (measured 1e-6 at 32 layers).
TOLERANCE = 1e-5


def fold_layer_scaling(model: GPT2LMHeadModel) -> None:
    """Multiply the query columns of c_attn by 1/(layer + 1), in place, and switch the flag off."""
    import torch

    from recipes.modeling.attention import softmax_scale

    if not model.config.scale_attn_by_inverse_layer_idx:
        return
    blocks: Any = model.transformer.h
    with torch.no_grad():
        for layer, block in enumerate(blocks):
            attention = block.attn
            n = attention.split_size  # Conv1D's weight is (in, 3 · n_embd): queries are its first n_embd columns
            attention.c_attn.weight[:, :n] /= layer + 1
            attention.c_attn.bias[:n] /= layer + 1
            attention.scale_attn_by_inverse_layer_idx = False
            if hasattr(attention, "scaling"):  # transformers 5 computed it when the model was created
                attention.scaling = softmax_scale(attention)
    model.config.scale_attn_by_inverse_layer_idx = False


def make_ready(model: GPT2LMHeadModel, eos_token_id: int, pad_token_id: int) -> None:
    """Set what `generate` reads: switch the cache on, and set the ids of the begin, end and padding tokens."""
    from transformers import GenerationConfig

    ids = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    model.config.use_cache = True
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)


def logits(model: GPT2LMHeadModel) -> torch.Tensor:
    """fp32 logits of the fixed tokens of the parity gate, without and with right padding, joined along the tokens."""
    import torch

    from recipes.modeling.attention import gate_tokens

    tokens = gate_tokens(model.config)
    mask = torch.ones_like(tokens)
    mask[1, tokens.shape[1] // 2 :] = 0
    with torch.no_grad():
        plain = model(input_ids=tokens).logits.float()
        padded = model(input_ids=tokens, attention_mask=mask).logits.float()
    return torch.cat([plain, padded[mask.bool()][None].expand(2, -1, -1)], dim=1)


def compare_with_stock(folder: Path, expected: torch.Tensor, tolerance: float) -> dict[str, float]:
    """Load the folder as a user would, and compare its logits under both attention backends.

    Args:
        folder: the exported folder.
        expected: `logits` of the trained model.
        tolerance: largest |difference| allowed, as a share of the largest |logit|.

    Raises:
        RuntimeError: the model in the folder computes other logits than the trained model.
    """
    differences: dict[str, float] = {}
    for implementation in ("eager", "sdpa"):
        model = open_as_stock(folder, implementation)
        share = ((logits(model) - expected).abs().max() / expected.abs().max()).item()
        del model  # before the next one is loaded
        differences[implementation] = share
        if not share <= tolerance:
            raise RuntimeError(
                f"the exported model does not compute the trained model: with {implementation} attention its logits "
                f"differ by {share:.1e} of the largest logit, more than {tolerance:.0e}; no folder was written"
            )
    return differences

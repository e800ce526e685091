"""Memory of one block, computed from the operations of its forward and backward pass. Pure arithmetic, no torch."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from recipes.config.schema import KernelsConfig, LoraConfig, ModelConfig

FP32_BYTES, BF16_BYTES = 4, 2
# Bytes per attention score. Without a fused kernel, a GPU holds a score in fp32 for each head and pair of tokens. The
# forward pass holds three such tensors: the scores, their softmax, and the softmax with masked rows set to 0. The
# backward pass holds four: the softmax, its gradient, and two tensors of the softmax's backward pass.
SCORE_FORWARD_BYTES, SCORE_BACKWARD_BYTES = 12, 16


def compute_bytes(precision: str) -> int:
    """Bytes of an input or output value of a matrix product."""
    return BF16_BYTES if precision == "amp_bf16" else FP32_BYTES


@functools.cache
def copies_heads() -> bool:
    """Whether the installed transformers copies query, key and value before it calls the attention kernel.

    transformers 4.53 does, 5.24 does not. This function reads the source of transformers, because importing it would
    take seconds.
    """
    package = importlib.util.find_spec("transformers")
    if package is None or not package.submodule_search_locations:
        return True
    module = Path(package.submodule_search_locations[0]) / "integrations/sdpa_attention.py"
    return not module.is_file() or "query.contiguous()" in module.read_text(encoding="utf-8")


def kept_by_attention(model: ModelConfig, seq_len: int, w: int, device: str, backend: str | None) -> int:
    """Bytes per token that autograd keeps for the attention kernel, without the input of the projection after it.

    In these formulas h is n_embd, and w is the number of bytes of a value:

    - Flash and cuDNN kernels keep query, key, value and output, 4 · wh, and a log-sum-exp for each head, 4 · n_head.
      Their output has the layout of the query. If transformers copied the heads (`copies_heads`), the projection that
      follows needs a copy of the output; if not, the output is its input and counts only once: 3 · wh.
    - The efficient kernel keeps the same, but its output never needs a copy: 3 · wh.
    - Without a kernel (`math`) on a GPU: scaled query, scaled key and value in fp32, 3 · 4h, and the softmax of each
      score, 4 bytes; with dropout also the mask, 1 byte, and the softmax after dropout, 4 bytes.
    - On a CPU without dropout: the same as flash. With dropout there is no fused kernel; scores, softmax and a mask in
      fp32 are kept.
    """
    n_embd, scores = model.n_embd, model.n_head * seq_len
    if device == "cpu" and model.attn_pdrop:
        return 3 * w * n_embd + 3 * FP32_BYTES * scores
    if device == "gpu" and backend == "math":
        return 3 * FP32_BYTES * n_embd + (9 if model.attn_pdrop else 4) * scores
    return (4 if copies_heads() and backend != "efficient" else 3) * w * n_embd + 4 * model.n_head


def kept_by_mlp(model: ModelConfig, precision: str, device: str, fused_gelu: bool) -> int:
    """Bytes per token that autograd keeps for the second half of a block: LayerNorm, c_fc, GELU, c_proj, dropout.

    LayerNorm keeps its input in fp32, 4h, and mean and 1/std, 8. c_fc keeps its input, wh; c_proj keeps its input,
    4 · wh. gelu_new consists of eight operations in transformers, on values of width 4h. For them autograd keeps the
    input of the cube, the tanh and 1 + tanh in fp32 (autocast computes powers in fp32), 3 · 16h, and half the input,
    4 · wh. A fused gelu_new keeps only its input, 4 · wh. Dropout keeps a mask: one byte per value on a GPU; on a CPU,
    the scaled mask in fp32.
    """
    w = compute_bytes(precision)
    mask = (1 if device == "gpu" else FP32_BYTES) if model.resid_pdrop else 0
    return model.n_embd * (4 + w + (0 if fused_gelu else 48) + 4 * w + 4 * w + mask) + 8


def block_activation_bytes(
    model: ModelConfig,
    seq_len: int,
    precision: str,
    device: str = "gpu",
    fused_gelu: bool = False,
    backend: str | None = None,
) -> int:
    """Bytes per token that autograd keeps of one block for the backward pass.

    Let h = n_embd, and w the bytes of a value in matrix products (2 under bf16 autocast, otherwise 4). The sum consists
    of the second half (`kept_by_mlp`), the attention kernel (`kept_by_attention`), and from the first half LayerNorm's
    input in fp32, 4h, its mean and 1/std, 8, the inputs of c_attn and attn.c_proj, 2 · wh, and the mask of dropout.

    With a flash kernel and copied heads that is 88h under autocast, or 40h with a fused GELU. Korthikanti et al. 2022
    (arXiv 2205.05198, section 4.1) have 34h, for a GELU that recomputes and LayerNorms in 16 bits. Their attention
    matrix, 5 · n_head · seq_len, is not kept by a fused kernel.
    """
    w = compute_bytes(precision)
    mask = (1 if device == "gpu" else FP32_BYTES) if model.resid_pdrop else 0
    first = model.n_embd * (4 + 2 * w + mask) + 8
    attention = kept_by_attention(model, seq_len, w, device, backend)
    return first + attention + kept_by_mlp(model, precision, device, fused_gelu)


@dataclass(frozen=True)
class Block:
    """Bytes per token of one transformer block.

    Attributes:
        kept: bytes that autograd keeps for the backward pass.
        forward: peak in a forward pass that keeps nothing.
        backward: peak in the backward pass, in addition to the kept bytes.
        recomputed: peak while a block recomputes its activations and in its backward pass, activations included.
        widest: size of the largest tensor.
    """

    kept: int
    forward: int
    backward: int
    recomputed: int
    widest: int


def block_bytes(
    model: ModelConfig,
    seq_len: int,
    precision: str,
    residual: int,
    device: str = "gpu",
    kernels: KernelsConfig | None = None,
    lora: LoraConfig | None = None,
) -> Block:
    """Compute the memory of a block per token; `residual` is the number of bytes of a value in the residual stream.

    Backward pass: the peak is at the GELU. A fused GELU holds the gradient of its input, 4 · wh; the gradient of its
    output takes the place of c_proj's input. As eight operations it holds three gradients, 3 · 16h, minus c_proj's
    input, 4 · wh. To this come the gradient of the residual stream and that of the branch, wh. Without a fused
    attention kernel, the peak may be at the softmax, when the tensors kept for the second half are already freed.

    Forward pass: the peak is also at the GELU. A fused GELU holds its input and output, 8 · wh. As eight operations it
    holds its input and half the input, 8 · wh, and two values in fp32, 2 · 16h. To this come the residual stream three
    times (Python variables hold the embeddings, the block's input, and the stream after attention), the output of
    LayerNorm in fp32 and that of attention, wh. Without a fused attention kernel, the peak may be at the softmax, with
    query, key and value in fp32.

    Recomputation: the peak is in the block's backward pass or at the end of its repeated forward pass. At that end,
    Python variables still hold tensors that autograd does not keep: LayerNorm's output in fp32 under autocast, 4h; the
    residual stream after attention; and the output of attention and those of c_proj before and after dropout, 3 · wh.

    LoRA: the frozen layers keep no inputs, but their low-rank changes do. These come after a dropout whose mask is also
    kept, one byte for each value of the four inputs, 7h.
    """
    w, n_embd, kernels = compute_bytes(precision), model.n_embd, kernels or KernelsConfig()
    fused_gelu, backend = kernels.fused_gelu, kernels.sdpa_backend
    kept = block_activation_bytes(model, seq_len, precision, device, fused_gelu, backend)
    if lora and lora.lora_dropout:
        kept += 7 * (1 if device == "gpu" else FP32_BYTES) * n_embd
    backward = n_embd * ((4 * w if fused_gelu else 48 - 4 * w) + residual + w)
    forward = n_embd * (8 * w + (0 if fused_gelu else 32) + 3 * residual + 4 + w)
    widest = n_embd * 4 * (w if fused_gelu else FP32_BYTES)
    if device == "gpu" and backend == "math":
        widest = max(widest, FP32_BYTES * model.n_head * seq_len)
        scores, in_fp32 = model.n_head * seq_len, 3 * FP32_BYTES * n_embd
        attention = SCORE_BACKWARD_BYTES * scores + in_fp32 + n_embd * (8 + residual + 2 * w)
        first_half = kept_by_attention(model, seq_len, w, device, backend) + n_embd * (4 + 2 * w)
        backward = max(backward, attention - first_half - kept_by_mlp(model, precision, device, fused_gelu))
        forward = max(forward, SCORE_FORWARD_BYTES * scores + in_fp32 + n_embd * (2 * residual + 4 + w))
    end = n_embd * ((4 if w == BF16_BYTES else 0) + residual + (3 if model.resid_pdrop else 2) * w)
    return Block(kept, forward, backward, kept + max(backward, end), widest)

"""What one block takes of memory, by the operations of its forward and backward pass. Pure arithmetic, no torch."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from recipes.config.schema import KernelsConfig, LoraConfig, ModelConfig

FP32_BYTES, BF16_BYTES = 4, 2
# Of a score, which attention without a fused kernel holds one of for each head and pair of tokens, in fp32 on a GPU:
# the forward pass holds scores, their softmax and that with masked rows set to 0; the backward pass the softmax, its
# gradient, and two tensors of the softmax's backward pass.
SCORE_FORWARD_BYTES, SCORE_BACKWARD_BYTES = 12, 16


def compute_bytes(precision: str) -> int:
    """Bytes of a value that a matrix product takes or gives."""
    return BF16_BYTES if precision == "amp_bf16" else FP32_BYTES


@functools.cache
def copies_heads() -> bool:
    """Whether the installed transformers copies query, key and value, head by head, before it calls the kernel.

    transformers 4.53 does, 5.24 does not. Asked of the text of its module, as an import would take seconds.
    """
    package = importlib.util.find_spec("transformers")
    if package is None or not package.submodule_search_locations:
        return True
    module = Path(package.submodule_search_locations[0]) / "integrations/sdpa_attention.py"
    return not module.is_file() or "query.contiguous()" in module.read_text(encoding="utf-8")


def kept_by_attention(model: ModelConfig, seq_len: int, w: int, device: str, backend: str | None) -> int:
    """Bytes that autograd keeps of the attention kernel, a token, beside the input of the map that follows it.

    - Flash and cuDNN's: query, key, value and the output, 4 · wh, and a log-sum-exp a head, 4 · n_head. The output
      lies as the query does: where heads were copied, it is copied for the map that follows, and else is its input;
    - the efficient one: its output always lies as the map wants it, so there is no second one;
    - none (`math`), on a GPU: query and key, scaled, and value, in fp32, 3 · 4h; of each score the softmax, 4; with
      dropout also the mask, 1, and the softmax after it, 4;
    - on a CPU without dropout: as flash; with it there is no fused kernel, and scores, softmax and a mask of fp32 are
      kept.
    """
    n_embd, scores = model.n_embd, model.n_head * seq_len
    if device == "cpu" and model.attn_pdrop:
        return 3 * w * n_embd + 3 * FP32_BYTES * scores
    if device == "gpu" and backend == "math":
        return 3 * FP32_BYTES * n_embd + (9 if model.attn_pdrop else 4) * scores
    return (4 if copies_heads() and backend != "efficient" else 3) * w * n_embd + 4 * model.n_head


def kept_by_mlp(model: ModelConfig, precision: str, device: str, fused_gelu: bool) -> int:
    """Bytes that autograd keeps of a block's second half, a token: LayerNorm, c_fc, GELU, c_proj, dropout.

    LayerNorm keeps its input in fp32, 4h, and mean and 1/std, 8; c_fc keeps its input, wh, and c_proj its own, 4 · wh.
    gelu_new is eight operations in transformers. Autograd keeps of them, each 4h wide, the input of the cube, the tanh
    and 1 + tanh, in fp32 (autocast computes powers there), 3 · 16h, and half the input, 4 · wh; fused, it keeps its
    input alone, 4 · wh. Dropout keeps a mask: a byte a value on a GPU; on a CPU, the scaled mask in fp32.
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
    """Bytes that autograd keeps of one block for the backward pass, a token.

    With h = n_embd and w bytes a value in matrix products (2 under bf16 autocast, else 4): the second half,
    `kept_by_mlp`; the attention kernel, `kept_by_attention`; and of the first half LayerNorm's input in fp32, 4h, with
    mean and 1/std, 8, the inputs of c_attn and attn.c_proj, 2 · wh, and dropout's mask.

    With a flash kernel and copied heads that is 88h under autocast, 40h with a fused GELU, where Korthikanti et al.
    2022 (arXiv 2205.05198, section 4.1) have 34h for a fused GELU that recomputes, and LayerNorms in 16 bits; their
    attention matrix, 5 · n_head · seq_len, no fused kernel keeps.
    """
    w = compute_bytes(precision)
    mask = (1 if device == "gpu" else FP32_BYTES) if model.resid_pdrop else 0
    first = model.n_embd * (4 + 2 * w + mask) + 8
    attention = kept_by_attention(model, seq_len, w, device, backend)
    return first + attention + kept_by_mlp(model, precision, device, fused_gelu)


@dataclass(frozen=True)
class Block:
    """Bytes of one transformer block at work, a token.

    Attributes:
        kept: by autograd, for the backward pass.
        forward: at once in a forward pass of which nothing is kept.
        backward: at once in the backward pass, beside what is kept.
        recomputed: at once while the activations are computed again and in the backward pass that follows, with them.
        widest: one tensor, the largest.
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
    """What a block holds of each token, and when; `residual` is the bytes of a value of the residual stream.

    Backward, most is held at the GELU. Fused: the gradient of its input, 4 · wh, that of its output in the place of
    c_proj's input. As eight operations: three gradients, 3 · 16h, less c_proj's input, 4 · wh. Beside them lie the
    gradient of the residual stream and of the branch, wh. Without a fused attention kernel it may be at the softmax,
    when what the second half kept is gone.

    Forward, most is held at the GELU, too: fused, its input and output, 8 · wh; as eight operations, its input and half
    of it, 8 · wh, and two values in fp32, 2 · 16h. Beside them lie the residual stream three times (the embeddings, the
    block's input, and after attention: Python's variables), LayerNorm's output in fp32 and attention's, wh. Without a
    fused attention kernel it may be at the softmax, with query, key and value in fp32.

    Recomputed, that is the first block's backward pass, or the end of its forward pass, when Python's variables still
    hold what autograd does not keep: LayerNorm's output in fp32 under autocast, 4h, the residual stream after
    attention, attention's output, and c_proj's before and after dropout, 3 · wh.

    Under LoRA the frozen maps keep no input, but their low-rank changes do, after a dropout whose mask, a byte a value
    of the four inputs, 7h, is kept too.
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

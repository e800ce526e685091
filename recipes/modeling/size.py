"""Compute the size of a GPT-2: parameters, FLOPs, bytes of a checkpoint. Pure arithmetic, no torch."""

from __future__ import annotations

from recipes.config.schema import LoraConfig, ModelConfig

# A checkpoint holds fp32 weights and Adam's two fp32 moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
# Bytes of the parameters that the optimizer updates at once. Each parameter needs one temporary tensor meanwhile.
OPTIMIZER_BUCKET_BYTES = 2**28


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one block: c_attn, c_proj, mlp.c_fc, mlp.c_proj with biases; two LayerNorms."""
    return 12 * model.n_embd**2 + 13 * model.n_embd


def root_parameters(model: ModelConfig) -> int:
    """Parameters outside the blocks: token embedding (also the head), positions, the last LayerNorm."""
    return (model.vocab_size + model.n_positions + 2) * model.n_embd


def parameter_count(model: ModelConfig) -> int:
    """Parameters of a GPT-2 with tied embeddings (the head is the token embedding)."""
    return root_parameters(model) + model.n_layer * block_parameters(model)


def checkpoint_bytes(model: ModelConfig, sharded: bool) -> int:
    """Bytes of a checkpoint's tensors. A sharded checkpoint holds the tied token embedding twice, also as the head.

    File formats add 1.2 kB to each tensor, or 13 kB if it is sharded over 2 ranks, whatever its size. For the 2.7B that
    is 0.02 %.
    """
    head = 4 * model.vocab_size * model.n_embd if sharded else 0
    return CHECKPOINT_BYTES_PER_PARAMETER * parameter_count(model) + head


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """FLOPs of one trained token, forward and backward: 6N, and 12 · n_layer · n_embd · seq_len for attention.

    Recomputed activations are not counted, so that the MFU of runs with and without activation checkpointing can be
    compared (PaLM, arXiv 2204.02311, appendix B).
    """
    return 6 * parameter_count(model) + 12 * model.n_layer * model.n_embd * seq_len


def lora_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """Parameters of LoRA on the four linear layers of each block: r · (inputs + outputs) for each layer."""
    return 16 * model.n_embd * lora.r * model.n_layer

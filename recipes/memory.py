"""What a training step takes of a rank's memory, by part. Pure arithmetic, no torch.

The terms are read off the operations of this model as it runs here: transformers' GPT-2 with a fused attention kernel,
the loss of recipes/model.py, FSDP2 through Composer. `tests/test_plan.py` holds them against what autograd saves and
against the peak of real runs on a CPU; on a GPU none was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recipes.config import FSDPConfig, ModelConfig, TrainConfig

FP32_BYTES, BF16_BYTES = 4, 2
# cross_entropy's backward holds the log-probabilities, their gradient and the logits' gradient, all in fp32. Its
# forward holds logits, a copy of them in fp32 and the log-probabilities: 10 bytes an entry under autocast, 12 in fp32.
# A chunk of recipes/head.py holds a copy in fp32 and the log-probabilities, or those and their gradient.
LOSS_BYTES_PER_LOGIT, CHUNK_BYTES_PER_LOGIT = 12, 8
OPTIMIZER_BUCKET_BYTES = 2**28  # of parameters that recipes/optimizer.py steps at once, with one temporary each
# What a GPU needs beside the tensors: assumptions, not measured here. A tenth for what the caching allocator cannot use
# between them; a gigabyte for the CUDA context, NCCL's buffers and cuBLAS's workspaces.
ALLOCATOR_SHARE = 0.10
DRIVER_BYTES = 10**9


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one block: c_attn, c_proj, mlp.c_fc, mlp.c_proj with biases; two LayerNorms."""
    return 12 * model.n_embd**2 + 13 * model.n_embd


def root_parameters(model: ModelConfig) -> int:
    """Parameters outside the blocks: token embedding (also the head), positions, the last LayerNorm."""
    return (model.vocab_size + model.n_positions + 2) * model.n_embd


def compute_bytes(precision: str) -> int:
    """Bytes of a value that a matrix product takes or gives."""
    return BF16_BYTES if precision == "amp_bf16" else FP32_BYTES


def block_activation_bytes(
    model: ModelConfig, seq_len: int, precision: str, device: str = "gpu", fused_gelu: bool = False
) -> int:
    """Bytes that autograd keeps of one block for the backward pass, a token.

    With h = n_embd and w bytes a value in matrix products (2 under bf16 autocast, else 4), in the order of the forward
    pass:

    - both LayerNorms keep their input in fp32, 2 · 4h, and mean and 1/std of a token, 2 · 8;
    - c_attn, attn.c_proj and mlp.c_fc keep their inputs, 3 · wh, and mlp.c_proj keeps its own, 4 · wh;
    - the attention kernel keeps query, key, value and its output, 4 · wh, and a log-sum-exp a head, 4 · n_head;
    - gelu_new is eight operations in transformers. Autograd keeps of them, each 4h wide, the input of the cube, the
      tanh and 1 + tanh, in fp32 (autocast computes powers there), 3 · 16h, and half the input, 4 · wh; fused, it keeps
      its input alone, 4 · wh;
    - both residual dropouts keep a mask: a byte a value on a GPU; on a CPU, the scaled mask in fp32.

    That is 86h under autocast, where Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) have 34h for a fused GELU
    that recomputes, and LayerNorms in 16 bits; their attention matrix, 5 · n_head · seq_len, no fused kernel keeps.

    On a CPU there is no fused kernel with dropout: scores, their softmax and the mask are kept then.
    """
    w, n_embd = compute_bytes(precision), model.n_embd
    kept = n_embd * (8 + 3 * w + 4 * w + 4 * w + (0 if fused_gelu else 48) + 4 * w) + 16 + 4 * model.n_head
    mask = (1 if device == "gpu" else FP32_BYTES) * n_embd
    kept += 2 * mask if model.resid_pdrop else 0
    if device == "cpu" and model.attn_pdrop:
        kept += 3 * FP32_BYTES * model.n_head * seq_len - FP32_BYTES * (n_embd + model.n_head)
    return kept


def backward_bytes(model: ModelConfig, precision: str, fused_gelu: bool = False) -> int:
    """Bytes that the backward pass of one block holds at once beside what autograd kept, a token.

    The most is held in gelu_new: the gradients of its output and of both its factors, 3 · 16h, less its kept output,
    whose turn is over (4 · wh), beside the gradient of the residual stream (in fp32, and of a branch); under autocast
    the gradient of the output is also there in bf16. Fused, there are the gradients of its output and its input.
    """
    w = compute_bytes(precision)
    if fused_gelu:
        return model.n_embd * (4 * w + (12 if w == BF16_BYTES else 8))
    return model.n_embd * (48 - 4 * w + (12 if w == BF16_BYTES else 8))


@dataclass(frozen=True)
class Layout:
    """How a model lies on ranks, and what it recomputes."""

    ranks: int
    shards: int  # ranks that share one copy of the model; 1: each has its own
    checkpointing: bool
    checkpointing_blocks: int | None = None  # of the model's, the first; None: all
    mixed_precision: str = "DEFAULT"  # FSDP's
    reshard_after_forward: bool = True  # FSDP's

    @staticmethod
    def of(cfg: TrainConfig, ranks: int) -> Layout:
        """The layout that a configuration asks for on so many ranks."""
        recomputed = cfg.activation_checkpointing, cfg.activation_checkpointing_blocks
        if cfg.fsdp is None or ranks == 1:
            return Layout(ranks, 1, *recomputed)
        fsdp: FSDPConfig = cfg.fsdp
        shards = ranks // fsdp.data_parallel_replicate_degree
        return Layout(ranks, shards, *recomputed, fsdp.mixed_precision, fsdp.reshard_after_forward)

    def recomputed(self, n_layer: int) -> int:
        """Blocks that recompute their activations."""
        return min(self.checkpointing_blocks or n_layer, n_layer) if self.checkpointing else 0

    @property
    def strategy(self) -> str:
        """What the sharding is called."""
        if self.shards == 1:
            return "none" if self.ranks == 1 else "DDP"
        if self.shards < self.ranks:
            return f"HSDP {self.ranks // self.shards} x {self.shards}"
        return "FULL_SHARD" if self.reshard_after_forward else "SHARD_GRAD_OP"

    def parameter_bytes(self, precision: str) -> int:
        """Bytes of a parameter as the forward pass finds it."""
        sharded_low = self.shards > 1 and self.mixed_precision != "FULL"
        return compute_bytes(precision) if sharded_low else FP32_BYTES

    def reduce_bytes(self, precision: str) -> int:
        """Bytes of a gradient as it is reduced over ranks."""
        return compute_bytes(precision) if self.shards > 1 and self.mixed_precision == "PURE" else FP32_BYTES


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank's memory at one moment of a step, by part."""

    moment: str
    parameters: int
    optimizer: int
    gradients: int
    gathered: int  # what FSDP has gathered or not yet reduced; bf16 copies that autocast made of fp32 parameters
    activations: int  # kept for the backward pass
    working: int  # of the moment: logits and loss, one block's backward pass, or the optimizer's temporaries

    @property
    def parts(self) -> dict[str, int]:
        """The parts by the name that they are printed under."""
        return {key: value for key, value in vars(self).items() if key != "moment"}

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def step_memory(
    cfg: TrainConfig, layout: Layout, microbatch: int, *, accumulates: bool = True, device: str = "gpu"
) -> list[Memory]:
    """The memory of a step at each moment when it may be largest; allocator and driver not counted.

    Parameters, gradients and Adam's two moments are fp32, spread over the shards; DDP holds the gradients once more, in
    buckets. Gradients are freed before a batch: while activations are at their most they are there only if the batch
    has several microbatches.

    Args:
        cfg: the configuration.
        layout: how the model lies on ranks; the configuration's own need not be.
        microbatch: sequences that a rank computes at once, as above.
        accumulates: whether a batch has several microbatches a rank.
        device: `gpu` or `cpu`.
    """
    model, seq_len, precision, kernels = cfg.model, cfg.data.seq_len, cfg.precision, cfg.kernels
    w, n_embd, tokens = compute_bytes(precision), model.n_embd, microbatch * seq_len
    root, block, recomputed = root_parameters(model), block_parameters(model), layout.recomputed(model.n_layer)
    parameters = root + model.n_layer * block
    share = -(-parameters // layout.shards)
    buckets = FP32_BYTES * parameters if layout.shards == 1 < layout.ranks else 0
    gradients = FP32_BYTES * share + buckets
    first_gradients = gradients if accumulates else FP32_BYTES * -(-(root + block) // layout.shards) + buckets

    # FSDP2: the root stays gathered through the step; of the blocks, the one at work, the next, and the buffer that it
    # arrives in. In the backward pass also the gradients of the root and of a block, and two blocks' on their way.
    each, reduced = layout.parameter_bytes(precision), layout.reduce_bytes(precision)
    gathered = leaving = 0
    if layout.shards > 1:
        gathered = each * (root + (3 if layout.reshard_after_forward else model.n_layer + 1) * block)
        leaving = each * (root + block) + 2 * reduced * block
    # Autocast copies fp32 parameters, and keeps the copies: for the backward pass, and in its cache until forward ends.
    copies = recomputed_copies = 0
    if w == BF16_BYTES and each == FP32_BYTES:
        copies = w * parameters
        recomputed_copies = w * (root + min(model.n_layer, model.n_layer - recomputed + 1) * block)

    mask = (1 if device == "gpu" else FP32_BYTES) * n_embd if model.embd_pdrop else 0
    ends = tokens * (mask + FP32_BYTES * n_embd + w * n_embd + 16)  # embedding dropout, last LayerNorm, head's input
    whole = tokens * block_activation_bytes(model, seq_len, precision, device, kernels.fused_gelu)
    # At its border a block's input is all that is kept of it where it is recomputed: the residual stream.
    border = tokens * n_embd * (each if w == BF16_BYTES else FP32_BYTES)
    kept = recomputed * border + (model.n_layer - recomputed) * whole
    at_work = tokens * backward_bytes(model, precision, kernels.fused_gelu)
    of_last = whole if recomputed == model.n_layer else 0  # what the last block has recomputed
    of_first = whole if recomputed else 0
    if chunk := kernels.loss_chunk_tokens:
        # The logits, which become their gradient, and a chunk's in fp32.
        loss = model.vocab_size * (w * tokens + CHUNK_BYTES_PER_LOGIT * min(chunk, tokens))
    else:
        loss = LOSS_BYTES_PER_LOGIT * model.vocab_size * tokens
    evaluated = cfg.device_eval_batch_size * seq_len
    eval_loss = LOSS_BYTES_PER_LOGIT * model.vocab_size * min(chunk or evaluated, evaluated)

    at_rest = Memory("", FP32_BYTES * share, 2 * FP32_BYTES * share, gradients, 0, 0, 0)
    backward = replace(at_rest, gathered=gathered + leaving + recomputed_copies)
    return [
        replace(
            at_rest,
            moment="logits and loss",
            gradients=gradients if accumulates else buckets,
            gathered=gathered + copies,
            activations=ends + kept,
            working=loss,
        ),
        replace(
            backward,
            moment="backward of the last block",
            gradients=first_gradients,
            activations=ends + kept,
            working=at_work + of_last,
        ),
        replace(
            backward,
            moment="backward of the first block",
            activations=border if recomputed else whole,
            working=at_work + of_first,
        ),
        # One temporary for each parameter of a bucket, which holds one at least; the largest is wte.
        replace(
            at_rest,
            moment="optimizer step",
            working=max(
                min(OPTIMIZER_BUCKET_BYTES, FP32_BYTES * share),
                FP32_BYTES * max(model.vocab_size, 4 * n_embd) * n_embd // layout.shards,
            ),
        ),
        replace(at_rest, moment="evaluation", gathered=gathered + copies, working=eval_loss),
    ]


def reserve_bytes(memory: Memory) -> int:
    """What allocator and driver take of a GPU beside the tensors."""
    return round(ALLOCATOR_SHARE * memory.total_bytes) + DRIVER_BYTES


def peak(moments: Sequence[Memory]) -> Memory:
    """The moment that takes most."""
    return max(moments, key=lambda memory: memory.total_bytes)


def needed_bytes(moments: Sequence[Memory]) -> int:
    """What a GPU must hold: the tensors of the fullest moment, allocator and driver."""
    memory = peak(moments)
    return memory.total_bytes + reserve_bytes(memory)

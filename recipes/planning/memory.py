"""Memory of a rank in a run, by part. Pure arithmetic, no torch.

The formulas follow the operations of the model in this recipe: transformers' GPT-2, recipes/modeling/loss.py, FSDP2
through Composer. tests/recipes/planning/test_plan.py compares them with the tensors that autograd saves, and with the
peak of real runs on a CPU. tests/nocuda/test_memory.py compares them with the peaks of torch's caching allocator on a
CUDA whose kernels do nothing. No value was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recipes.config.schema import (
    FinetuneConfig,
    FSDPConfig,
    KernelsConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from recipes.modeling.size import OPTIMIZER_BUCKET_BYTES, block_parameters, lora_parameters, root_parameters
from recipes.planning.block_memory import BF16_BYTES, FP32_BYTES, Block, block_bytes, compute_bytes

# Bytes per logit. The loss without chunks holds, in its forward pass, a copy in fp32 and the log-probability; in its
# backward pass, the log-probability, its gradient and the gradient of the logit, all in fp32. A chunk of
# recipes/modeling/loss.py holds a copy in fp32 and the probability, which becomes the gradient.
LOSS_BYTES_PER_LOGIT, LOSS_BACKWARD_BYTES_PER_LOGIT, CHUNK_BYTES_PER_LOGIT = 8, 12, 8
# Share that the caching allocator reserves above the sum of the maxima of all parts (`reserved_bytes`). It was measured
# on the no-op CUDA of tests/nocuda, where torch's own allocator serves the real model and kernels do nothing; not on a
# GPU. The sum was 0.97 to 1.07 of the reserved memory after two steps and an evaluation, or 0.99 to 1.14 if blocks are
# recomputed.
ALLOCATOR_SHARE = 0.05
# Memory of a GPU outside the caching allocator: the CUDA context and NCCL's buffers. Assumed, not measured.
DRIVER_BYTES = 10**9


@dataclass(frozen=True)
class Layout:
    """How a model is distributed over ranks, and which blocks recompute their activations."""

    ranks: int
    shards: int  # number of ranks that share one copy of the model; 1: each rank has a whole copy
    checkpointing: bool
    checkpointing_blocks: int | None = None  # number of first blocks that recompute; None: all
    mixed_precision: str = "DEFAULT"  # setting of FSDP
    reshard_after_forward: bool = True  # setting of FSDP

    @staticmethod
    def of(cfg: RunConfig, ranks: int) -> Layout:
        """The layout of a configuration on a number of ranks."""
        blocks = cfg.activation_checkpointing_blocks if isinstance(cfg, TrainConfig) else None
        recomputed = cfg.activation_checkpointing, blocks
        if cfg.fsdp is None or ranks == 1:
            return Layout(ranks, 1, *recomputed)
        fsdp: FSDPConfig = cfg.fsdp
        shards = ranks // fsdp.data_parallel_replicate_degree
        return Layout(ranks, shards, *recomputed, fsdp.mixed_precision, fsdp.reshard_after_forward)

    def recomputed(self, n_layer: int) -> int:
        """Number of blocks that recompute their activations."""
        return min(self.checkpointing_blocks or n_layer, n_layer) if self.checkpointing else 0

    @property
    def strategy(self) -> str:
        """Name of the sharding."""
        if self.shards == 1:
            return "none" if self.ranks == 1 else "DDP"
        if self.shards < self.ranks:
            return f"HSDP {self.ranks // self.shards} x {self.shards}"
        return "FULL_SHARD" if self.reshard_after_forward else "SHARD_GRAD_OP"

    def parameter_bytes(self, precision: str) -> int:
        """Bytes of a parameter in the forward pass, before autocast."""
        sharded_low = self.shards > 1 and self.mixed_precision != "FULL"
        return compute_bytes(precision) if sharded_low else FP32_BYTES

    def reduce_bytes(self, precision: str) -> int:
        """Bytes of a gradient when it is reduced over ranks."""
        return compute_bytes(precision) if self.shards > 1 and self.mixed_precision == "PURE" else FP32_BYTES


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank's memory at one moment of a run, by part. `cut` is not a tensor, but loss in the allocator."""

    moment: str
    parameters: int
    optimizer: int = 0
    gradients: int = 0
    gathered: int = 0  # parameters gathered by FSDP, and gradients that are not reduced yet
    copies: int = 0  # bf16 copies that autocast makes of fp32 parameters
    activations: int = 0  # activations kept for the backward pass
    block: int = 0  # temporary tensors of the current block
    loss: int = 0  # logits and loss
    temporaries: int = 0  # temporary tensors of the optimizer
    evaluated: int = 0  # `block` or `loss` of an evaluation that has more tokens than a microbatch
    cut: int = 0  # size of a block's largest tensor: if blocks recompute, small tensors fragment its freed memory

    @property
    def parts(self) -> dict[str, int]:
        """The parts by their printed names."""
        return {key: value for key, value in vars(self).items() if key not in ("moment", "cut")}

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def step_memory(
    cfg: TrainConfig, layout: Layout, microbatch: int, *, accumulates: bool = True, device: str = "gpu"
) -> list[Memory]:
    """Memory of a pre-training step at each moment that may be the peak, without allocator and driver.

    Args:
        cfg: configuration of the run.
        layout: layout of the model, which may differ from that of the configuration.
        microbatch: number of sequences that a rank computes at a time, which may also differ.
        accumulates: whether a rank computes several microbatches in each batch.
        device: `gpu` or `cpu`.
    """
    return training_moments(
        cfg.model,
        cfg.precision,
        layout,
        seq_len=cfg.data.seq_len,
        tokens=microbatch * cfg.data.seq_len,
        eval_tokens=cfg.device_eval_batch_size * cfg.data.seq_len,
        predicts=True,
        kernels=cfg.kernels,
        accumulates=accumulates,
        device=device,
    )


def training_moments(
    model: ModelConfig,
    precision: str,
    layout: Layout,
    *,
    seq_len: int,
    tokens: int,
    eval_tokens: int,
    predicts: bool,
    kernels: KernelsConfig,
    accumulates: bool,
    device: str,
    lora: LoraConfig | None = None,
) -> list[Memory]:
    """Memory of a training step and an evaluation.

    Parameters, gradients and Adam's two moments are in fp32 and distributed over the shards. DDP holds the gradients a
    second time, in buckets. Gradients are freed before each batch. So at the peak of the activations, gradients exist
    only if the batch has several microbatches.

    FSDP2 keeps all parameters outside the blocks gathered during the step. The parameters of a block arrive in one
    buffer and are copied out of it. In the forward pass, a buffer remains until the next one was copied; in the
    backward pass, the buffer of the next block is already there. Gradients have the type of the parameters until they
    are copied into the buffer that is reduced; this buffer remains until that of the next block. The gradient of the
    token embedding from the head waits for the gradient from the embedding itself.

    Autocast copies fp32 weights to bf16. Copies of trained weights stay in its cache until the forward pass ends. If a
    block is not recomputed, autograd keeps the copies of its weights, trained or not.

    Args:
        model: architecture of the model.
        precision: precision of the configuration.
        layout: layout of the model.
        seq_len: tokens of a sequence.
        tokens: number of tokens that a rank computes at a time.
        eval_tokens: number of tokens that a rank evaluates at a time.
        predicts: whether logits of all tokens, and their loss, are computed.
        kernels: how the model is computed.
        accumulates: whether a rank computes several microbatches in each batch.
        device: `gpu` or `cpu`.
        lora: low-rank changes that are trained instead of the weights; None: all weights are trained.
    """
    step = _Step(model, precision, layout, seq_len, tokens, eval_tokens, predicts, kernels, accumulates, device, lora)
    borders = sorted({step.n_layer - 1, step.n_layer - 2, step.recomputed - 1, step.recomputed - 2, 0}, reverse=True)
    return [*step.forward(), *(step.backward(i) for i in borders if i >= 0), *step.after_backward()]


class _Step:
    """Quantities that the moments of a step have in common. The arguments are those of `training_moments`."""

    def __init__(
        self, model: ModelConfig, precision: str, layout: Layout, seq_len: int, tokens: int, eval_tokens: int,
        predicts: bool, kernels: KernelsConfig, accumulates: bool, device: str, lora: LoraConfig | None,
    ) -> None:  # fmt: skip
        self.layout, self.tokens, self.eval_tokens, self.lora = layout, tokens, eval_tokens, lora
        self.predicts, self.accumulates = predicts, accumulates
        self.n_embd, self.n_layer, self.vocab_size = model.n_embd, model.n_layer, model.vocab_size
        self.root, self.block = root_parameters(model), block_parameters(model)
        self.recomputed = layout.recomputed(model.n_layer)
        parameters = self.root + self.n_layer * self.block
        trained = lora_parameters(model, lora) if lora else parameters
        held = -(-(parameters + (trained if lora else 0)) // layout.shards)
        self.share = -(-trained // layout.shards)
        self.buckets = FP32_BYTES * trained if layout.shards == 1 < layout.ranks else 0
        self.all_gradients = FP32_BYTES * self.share + self.buckets
        self.at_rest = Memory("", FP32_BYTES * held, 2 * FP32_BYTES * self.share, self.all_gradients)

        w = compute_bytes(precision)
        self.each, self.reduced = layout.parameter_bytes(precision), layout.reduce_bytes(precision)
        self.sharded, self.stays = layout.shards > 1, not layout.reshard_after_forward
        # The embeddings determine the type of the residual stream.
        residual = self.each if w == BF16_BYTES else FP32_BYTES
        self.work = block_bytes(model, seq_len, precision, residual, device, kernels, lora)
        self._set_copies(w)
        self.mask = tokens * ((1 if device == "gpu" else FP32_BYTES) * self.n_embd if model.embd_pdrop else 0)
        self.ends = tokens * (FP32_BYTES * self.n_embd + w * self.n_embd + 16)  # last LayerNorm, and input of the head
        # A recomputed block keeps only its input, which is the residual stream.
        self.border, self.whole = tokens * residual * self.n_embd, tokens * self.work.kept
        self._set_losses(w, kernels.loss_chunk_tokens)
        self.embedding_gradient = self.each * self.root if self.sharded and predicts and not lora else 0

    def _set_copies(self, w: int) -> None:
        """Set the sizes of the copies, of w bytes each, that autocast makes of fp32 weights."""
        self.block_copy = w * self.block if w == BF16_BYTES and self.each == FP32_BYTES else 0
        head_copy = w * self.vocab_size * self.n_embd if self.block_copy and self.predicts else 0
        self.again_last = self.recomputed == self.n_layer
        self.kept_copies = (self.n_layer - self.recomputed) * self.block_copy + head_copy
        self.copies = self.n_layer * self.block_copy + head_copy
        if self.lora:
            self.copies = self.kept_copies + self.again_last * self.block_copy

    def _set_losses(self, w: int, chunk: int | None) -> None:
        """Set the sizes of logits (w bytes each) and loss, computed at once or in chunks of `chunk` tokens."""
        self.forward_loss = self.backward_loss = self.eval_loss = 0
        if self.predicts and chunk:
            logits = self.vocab_size * w * self.tokens  # overwritten by their gradient
            self.forward_loss = logits + self.vocab_size * CHUNK_BYTES_PER_LOGIT * min(chunk, self.tokens)
            # Gradient of the head's input, and the same scaled.
            self.backward_loss = logits + self.tokens * self.n_embd * (2 * FP32_BYTES + w)
            self.eval_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * min(chunk, self.eval_tokens)
        elif self.predicts:
            self.forward_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * self.tokens
            self.backward_loss = LOSS_BACKWARD_BYTES_PER_LOGIT * self.vocab_size * self.tokens
            self.eval_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * self.eval_tokens

    def gathered(self, blocks: int) -> int:
        """Bytes of gathered parameters: those outside the blocks, and those of `blocks` blocks; 0 if not sharded."""
        return self.each * (self.root + blocks * self.block) if self.sharded else 0

    def kept(self, blocks: int) -> int:
        """Bytes of activations that the first `blocks` blocks keep; if only some recompute, these come first."""
        return min(blocks, self.recomputed) * self.border + max(blocks - self.recomputed, 0) * self.whole

    def forward(self) -> list[Memory]:
        """Moments around the loss, when all activations are kept."""
        n_layer, stays = self.n_layer, self.stays
        in_step = replace(self.at_rest, gradients=self.all_gradients if self.accumulates else self.buckets)
        all_kept = {"activations": self.mask + self.ends + self.kept(n_layer)}
        return [
            replace(
                in_step,
                moment="logits and loss",
                gathered=self.gathered(n_layer + 1 if stays else 1),
                copies=self.copies,
                loss=self.forward_loss,
                **all_kept,
            ),
            replace(
                in_step,
                moment="backward of the loss",
                gathered=self.gathered(n_layer if stays else 1) + self.embedding_gradient,
                copies=self.kept_copies,
                loss=self.backward_loss,
                **all_kept,
            ),
            # A block that recomputes still computes all of its tensors.
            replace(
                in_step,
                moment="forward of the last block",
                gathered=self.gathered(n_layer + 1 if stays else 2),
                copies=self.copies,
                activations=self.mask + self.kept(n_layer),
                block=self.tokens * self.work.forward if self.again_last else 0,
                cut=self.tokens * self.work.widest if self.again_last else 0,
            ),
        ]

    def backward(self, i: int) -> Memory:
        """Moment of the backward pass of block i, counted from 0."""
        again, done = i < self.recomputed, self.n_layer - 1 - i
        # The blocks after block i are done; the next block is gathered already.
        gathered = self.gathered(i + 1 if self.stays else min(i + 1, 2))
        if self.sharded:
            gathered += self.embedding_gradient + (0 if self.lora or not done else self.reduced * self.block)
        name = {self.n_layer - 1: "the last block", 0: "the first block"}.get(i, f"block {i + 1}")
        of_blocks = self.root * (self.predicts and not self.sharded) + done * self.block
        reached = self.all_gradients if self.lora else FP32_BYTES * -(-of_blocks // self.layout.shards)
        reached = min(self.all_gradients, reached + self.buckets)
        # The gradient of c_proj is computed first: a third of the block's parameters.
        weights = 0 if self.lora else (self.each if self.sharded else FP32_BYTES) * self.block // 3
        return replace(
            self.at_rest,
            moment=f"backward of {name}",
            gradients=self.all_gradients if self.accumulates else reached,
            gathered=gathered,
            copies=(max(i + 1 - self.recomputed, 0) + again) * self.block_copy,
            activations=self.mask + self.kept(i + 1),
            block=weights + self.tokens * (self.work.recomputed if again else self.work.backward),
            cut=self.tokens * self.work.widest if again else 0,
        )

    def after_backward(self) -> list[Memory]:
        """Moments of the embedding's gradient, the optimizer step and an evaluation."""
        each, root, vocab_size, n_embd = self.each, self.root, self.vocab_size, self.n_embd
        # The gradient from the embedding itself; if sharded, also that from the head, and the buffer that is reduced.
        of_root = FP32_BYTES * vocab_size * n_embd
        if self.sharded:
            of_root = each * root + max((1 + self.predicts) * each, self.reduced) * root
        largest = n_embd * (self.lora.r if self.lora else max(vocab_size, 4 * n_embd))
        at_loss = self.eval_loss > self.eval_tokens * self.work.forward
        blocks_there = self.n_layer + 1 if self.stays else 1 if at_loss else 2
        part = "evaluated" if self.eval_tokens > self.tokens else "loss" if at_loss else "block"
        evaluation: dict[str, int] = {part: max(self.eval_loss, self.eval_tokens * self.work.forward)}
        # One temporary tensor for each parameter of a bucket. A bucket holds at least one; the largest is wte.
        bucket = min(OPTIMIZER_BUCKET_BYTES, FP32_BYTES * self.share)
        temporaries = max(bucket, FP32_BYTES * largest // self.layout.shards)
        return [
            replace(
                self.at_rest,
                moment="gradient of the embedding",
                gathered=0 if self.lora else of_root,
                activations=self.mask,
            ),
            replace(self.at_rest, moment="optimizer step", temporaries=temporaries),
            replace(
                self.at_rest,
                moment="evaluation",
                gathered=self.gathered(blocks_there),
                copies=self.block_copy if self.lora else self.copies,
                cut=0 if at_loss else self.eval_tokens * self.work.widest,
                **evaluation,
            ),
        ]


@dataclass(frozen=True)
class FinetuningWork:
    """What a rank computes in a fine-tuning run.

    Attributes:
        microbatch: number of examples at a time.
        accumulates: whether a rank computes several microbatches in each batch.
        sequences: largest number of sequences of an example.
        writes: whether the answer is a text that the model writes.
    """

    microbatch: int
    accumulates: bool
    sequences: int
    writes: bool


def finetuning_moments(
    cfg: FinetuneConfig, model: ModelConfig, layout: Layout, computed: FinetuningWork
) -> list[list[Memory]]:
    """Memory of fine-tuning: lists of moments for training, export and scoring, which run one after another.

    Scoring computes in fp32, without autocast, on one rank. If targets are written by beam search, every beam reads its
    own copy of the source. Until the first token is written, keys and values of the source are in the same tensors as
    the queries. When the keys and values of a new token are appended, those of one layer exist twice.

    Args:
        cfg: configuration of the run.
        model: architecture of the base model.
        layout: layout of the model.
        computed: what each rank computes.
    """
    device = "cpu" if cfg.device == "cpu" else "gpu"
    sequence = computed.sequences * cfg.seq_len
    training = training_moments(
        model,
        cfg.precision,
        layout,
        seq_len=cfg.seq_len,
        tokens=computed.microbatch * sequence,
        eval_tokens=cfg.device_eval_batch_size * sequence,
        predicts=computed.writes,
        kernels=KernelsConfig(),
        accumulates=computed.accumulates,
        device=device,
        lora=cfg.lora,
    )
    weights = FP32_BYTES * (root_parameters(model) + model.n_layer * block_parameters(model))
    export = Memory("export", weights if device == "cpu" else 0)  # the export runs on the CPU
    work = block_bytes(model, cfg.seq_len, "fp32", FP32_BYTES, device)
    tokens, scoring = cfg.device_eval_batch_size * sequence, Memory("scoring", weights)
    if not computed.writes:
        return [training, [export], [_reading(scoring, work, tokens)]]
    written = min(cfg.generation.max_new_tokens, model.n_positions // 2)
    beams = cfg.generation.num_beams if cfg.generation.temperature == 0 else 1
    tokens = beams * min(cfg.seq_len, model.n_positions - written)
    values = FP32_BYTES * model.n_embd
    reading = replace(_reading(scoring, work, tokens), activations=3 * values * tokens * model.n_layer)
    writing = replace(scoring, activations=2 * values * (tokens + beams * written) * (model.n_layer + 1))
    return [training, [export], [reading, replace(writing, moment="writing")]]


def _reading(scoring: Memory, work: Block, tokens: int) -> Memory:
    return replace(scoring, block=tokens * work.forward, cut=tokens * work.widest)


def reserved_bytes(moments: Sequence[Memory]) -> int:
    """Memory that the caching allocator has reserved in the end: the sum of each part's maximum over moments, plus 5 %.

    The allocator keeps freed blocks, and reuses a block only for requests that fit into it. The tensors of different
    parts have different sizes, so one part can hardly use the memory of another: the memory of autocast's copies stays
    unused in the backward pass, and the activations of a recomputed transformer block do not fit into the memory of the
    logits. If a transformer block keeps nothing, its largest tensor needs memory twice, because small tensors have
    fragmented the freed memory. ALLOCATOR_SHARE covers the rest: a tensor above 10 MB takes whole segments of 2 MiB,
    which adds 2 % to the 2.7B's fp32 weights.
    """
    most = sum(max(memory.parts[name] for memory in moments) for name in moments[0].parts)
    return round((1 + ALLOCATOR_SHARE) * (most + max(memory.cut for memory in moments)))


def reserve_bytes(moments: Sequence[Memory]) -> int:
    """Memory of allocator and driver on a GPU, in addition to the tensors at the peak."""
    return reserved_bytes(moments) - peak(moments).total_bytes + DRIVER_BYTES


def with_reserve(moments: Sequence[Memory]) -> int:
    """Memory that a GPU must have: tensors, allocator and driver."""
    return reserved_bytes(moments) + DRIVER_BYTES


def peak(moments: Sequence[Memory]) -> Memory:
    """The moment with the most memory."""
    return max(moments, key=lambda memory: memory.total_bytes)

"""What a run takes of a rank's memory, by part. Pure arithmetic, no torch.

The terms are read off the operations of this model as it runs here: transformers' GPT-2, recipes/modeling/loss.py,
FSDP2 through Composer. tests/recipes/planning/test_plan.py holds them against what autograd saves and against the peak
of real runs on a CPU, tests/nocuda/test_memory.py against the peaks of torch's caching allocator on a CUDA whose
kernels do nothing. On a GPU none was measured.
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

# Of a logit, the whole loss holds in its forward pass a copy in fp32 and the log-probability; in its backward pass the
# latter, its gradient and the logit's, all in fp32. A chunk of recipes/modeling/loss.py holds a copy in fp32 and the
# probability, which becomes the gradient.
LOSS_BYTES_PER_LOGIT, LOSS_BACKWARD_BYTES_PER_LOGIT, CHUNK_BYTES_PER_LOGIT = 8, 12, 8
# What the caching allocator reserves above the sum of all parts' most (`reserved_bytes`). Measured on the no-op CUDA of
# tests/nocuda, where torch's own allocator serves the real model and kernels do nothing; not on a GPU. There the sum
# was 0.97 to 1.07 of what was reserved after two steps and an evaluation, 0.99 to 1.14 where blocks are recomputed.
ALLOCATOR_SHARE = 0.05
# What a GPU needs beside the caching allocator: the CUDA context and NCCL's buffers. Assumed, not measured.
DRIVER_BYTES = 10**9


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
    def of(cfg: RunConfig, ranks: int) -> Layout:
        """The layout that a configuration asks for on so many ranks."""
        blocks = cfg.activation_checkpointing_blocks if isinstance(cfg, TrainConfig) else None
        recomputed = cfg.activation_checkpointing, blocks
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
    """Bytes of a rank's memory at one moment of a run, by part; `cut` is no tensor, but lost to the allocator."""

    moment: str
    parameters: int
    optimizer: int = 0
    gradients: int = 0
    gathered: int = 0  # what FSDP has gathered, and gradients that it has not yet reduced
    copies: int = 0  # in bf16 that autocast made of parameters in fp32
    activations: int = 0  # kept for the backward pass
    block: int = 0  # one block at work
    loss: int = 0  # logits and loss
    temporaries: int = 0  # of the optimizer
    evaluated: int = 0  # as block or loss, of an evaluation of more tokens than are trained on at once
    cut: int = 0  # the size of a block's largest tensor, lost to smaller ones in its place where blocks are recomputed

    @property
    def parts(self) -> dict[str, int]:
        """The parts by the name that they are printed under."""
        return {key: value for key, value in vars(self).items() if key not in ("moment", "cut")}

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def step_memory(
    cfg: TrainConfig, layout: Layout, microbatch: int, *, accumulates: bool = True, device: str = "gpu"
) -> list[Memory]:
    """The memory of a pre-training step at each moment when it may be largest; allocator and driver not counted.

    Args:
        cfg: the configuration.
        layout: how the model lies on ranks; the configuration's own need not be.
        microbatch: sequences that a rank computes at once, as above.
        accumulates: whether a batch has several microbatches a rank.
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
    """The memory of a step and an evaluation.

    Parameters, gradients and Adam's two moments are fp32, spread over the shards; DDP holds the gradients once more, in
    buckets. Gradients are freed before a batch: while activations are at their most they are there only if the batch
    has several microbatches.

    FSDP2 keeps all but the blocks gathered through the step. A block's parameters arrive in one buffer, and are copied
    out of it; in the forward pass the last buffer stays until the next is copied, in the backward pass that of the next
    block is already there. Gradients are of the parameters' type until they are copied into the buffer that is reduced,
    which stays until the next block's. The token embedding's from the head waits for the one from its own use.

    Autocast copies fp32 weights to bf16. Copies of those that are trained stay in its cache until the forward pass
    ends; autograd keeps a block's, trained or not, where the block is not recomputed.

    Args:
        model: its shape.
        precision: as the configuration has it.
        layout: how it lies on ranks.
        seq_len: tokens of a sequence.
        tokens: number of tokens that a rank computes at once.
        eval_tokens: tokens that it evaluates at once.
        predicts: whether it computes logits of all tokens, and their loss.
        kernels: how it is computed.
        accumulates: whether a batch has several microbatches a rank.
        device: `gpu` or `cpu`.
        lora: the changes that are trained in the place of all weights; None: all weights are.
    """
    step = _Step(model, precision, layout, seq_len, tokens, eval_tokens, predicts, kernels, accumulates, device, lora)
    borders = sorted({step.n_layer - 1, step.n_layer - 2, step.recomputed - 1, step.recomputed - 2, 0}, reverse=True)
    return [*step.forward(), *(step.backward(i) for i in borders if i >= 0), *step.after_backward()]


class _Step:
    """The quantities that the moments of a step have in common; the arguments are those of `training_moments`."""

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
        # The embeddings' type is that of the stream that they begin.
        residual = self.each if w == BF16_BYTES else FP32_BYTES
        self.work = block_bytes(model, seq_len, precision, residual, device, kernels, lora)
        self._set_copies(w)
        self.mask = tokens * ((1 if device == "gpu" else FP32_BYTES) * self.n_embd if model.embd_pdrop else 0)
        self.ends = tokens * (FP32_BYTES * self.n_embd + w * self.n_embd + 16)  # the last LayerNorm, the head's input
        # At its border a block's input is all that is kept of it where it is recomputed: the residual stream.
        self.border, self.whole = tokens * residual * self.n_embd, tokens * self.work.kept
        self._set_losses(w, kernels.loss_chunk_tokens)
        self.embedding_gradient = self.each * self.root if self.sharded and predicts and not lora else 0

    def _set_copies(self, w: int) -> None:
        """What autocast copies of weights in fp32, to w bytes."""
        self.block_copy = w * self.block if w == BF16_BYTES and self.each == FP32_BYTES else 0
        head_copy = w * self.vocab_size * self.n_embd if self.block_copy and self.predicts else 0
        self.again_last = self.recomputed == self.n_layer
        self.kept_copies = (self.n_layer - self.recomputed) * self.block_copy + head_copy
        self.copies = self.n_layer * self.block_copy + head_copy
        if self.lora:
            self.copies = self.kept_copies + self.again_last * self.block_copy

    def _set_losses(self, w: int, chunk: int | None) -> None:
        """What logits of w bytes and their loss take, whole or in chunks of so many tokens."""
        self.forward_loss = self.backward_loss = self.eval_loss = 0
        if self.predicts and chunk:
            logits = self.vocab_size * w * self.tokens  # which become their gradient
            self.forward_loss = logits + self.vocab_size * CHUNK_BYTES_PER_LOGIT * min(chunk, self.tokens)
            # Gradient of the head's input, and that scaled.
            self.backward_loss = logits + self.tokens * self.n_embd * (2 * FP32_BYTES + w)
            self.eval_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * min(chunk, self.eval_tokens)
        elif self.predicts:
            self.forward_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * self.tokens
            self.backward_loss = LOSS_BACKWARD_BYTES_PER_LOGIT * self.vocab_size * self.tokens
            self.eval_loss = LOSS_BYTES_PER_LOGIT * self.vocab_size * self.eval_tokens

    def gathered(self, blocks: int) -> int:
        """Of what is sharded: parameters outside the blocks and so many blocks."""
        return self.each * (self.root + blocks * self.block) if self.sharded else 0

    def kept(self, blocks: int) -> int:
        """Activations of the first so many blocks, which are recomputed before the others are."""
        return min(blocks, self.recomputed) * self.border + max(blocks - self.recomputed, 0) * self.whole

    def forward(self) -> list[Memory]:
        """Around the loss, when all activations are kept."""
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
            # A block that autograd keeps nothing of still computes it all.
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
        """The backward pass of block i, from 0."""
        again, done = i < self.recomputed, self.n_layer - 1 - i
        # As in the forward pass; but the blocks after it are done, and the next is on its way if it is not there.
        gathered = self.gathered(i + 1 if self.stays else min(i + 1, 2))
        if self.sharded:
            gathered += self.embedding_gradient + (0 if self.lora or not done else self.reduced * self.block)
        name = {self.n_layer - 1: "the last block", 0: "the first block"}.get(i, f"block {i + 1}")
        of_blocks = self.root * (self.predicts and not self.sharded) + done * self.block
        reached = self.all_gradients if self.lora else FP32_BYTES * -(-of_blocks // self.layout.shards)
        reached = min(self.all_gradients, reached + self.buckets)
        # The gradient of c_proj, the first of the block's four.
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
        """The embedding's gradient, the optimizer's step, an evaluation."""
        each, root, vocab_size, n_embd = self.each, self.root, self.vocab_size, self.n_embd
        # The embedding's own gradient, then that with the head's as it is reduced.
        of_root = FP32_BYTES * vocab_size * n_embd
        if self.sharded:
            of_root = each * root + max((1 + self.predicts) * each, self.reduced) * root
        largest = n_embd * (self.lora.r if self.lora else max(vocab_size, 4 * n_embd))
        at_loss = self.eval_loss > self.eval_tokens * self.work.forward
        blocks_there = self.n_layer + 1 if self.stays else 1 if at_loss else 2
        part = "evaluated" if self.eval_tokens > self.tokens else "loss" if at_loss else "block"
        evaluation: dict[str, int] = {part: max(self.eval_loss, self.eval_tokens * self.work.forward)}
        # One temporary for each parameter of a bucket, which holds one at least; the largest is wte.
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
    """What a rank computes in a fine-tuning.

    Attributes:
        microbatch: examples at once.
        accumulates: whether a batch has several microbatches a rank.
        sequences: number of sequences of an example, at most.
        writes: whether an answer is a text that the model writes.
    """

    microbatch: int
    accumulates: bool
    sequences: int
    writes: bool


def finetuning_moments(
    cfg: FinetuneConfig, model: ModelConfig, layout: Layout, computed: FinetuningWork
) -> list[list[Memory]]:
    """The memory of fine-tuning: of training, of the export and of scoring, each of which has the memory to itself.

    Scoring computes in fp32, without autocast, on one rank. A target is written by beam search, of which every beam
    reads the source for itself. The keys and values of a source are parts of the tensors that hold its queries, too,
    until the first token is written; then those of one layer are there twice while that token's are added to them.

    Args:
        cfg: the configuration.
        model: the base model's shape.
        layout: how the model lies on ranks.
        computed: by each of them.
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
    export = Memory("export", weights if device == "cpu" else 0)  # on the CPU
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
    """What the caching allocator has reserved in the end: of every part the most that any moment holds, and a little.

    It keeps what is freed, and gives it to requests that fit into it. The parts are tensors of different sizes, so that
    hardly one serves where another was: autocast's copies lie idle in the backward pass, a recomputed block does not
    fit between the logits. Where nothing of a block is kept, its largest tensor is there twice: small ones have cut
    what was freed of it. ALLOCATOR_SHARE covers the rest: a tensor above 10 MB lies in a segment of whole
    2 MiB, which makes 2 % more of the 2.7B's weights in fp32.
    """
    most = sum(max(memory.parts[name] for memory in moments) for name in moments[0].parts)
    return round((1 + ALLOCATOR_SHARE) * (most + max(memory.cut for memory in moments)))


def reserve_bytes(moments: Sequence[Memory]) -> int:
    """What allocator and driver take of a GPU beside the tensors of the fullest moment."""
    return reserved_bytes(moments) - peak(moments).total_bytes + DRIVER_BYTES


def with_reserve(moments: Sequence[Memory]) -> int:
    """What a GPU must hold: tensors, allocator and driver."""
    return reserved_bytes(moments) + DRIVER_BYTES


def peak(moments: Sequence[Memory]) -> Memory:
    """The moment that takes most."""
    return max(moments, key=lambda memory: memory.total_bytes)

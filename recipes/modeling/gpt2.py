"""GPT2LMHeadModel in a ComposerModel: what the Trainer needs of it and nothing more.

Thinner than Composer's HuggingFaceModel on purpose. The forward pass returns the loss alone, so no logits outlive it
(Composer keeps `state.outputs`), and there are no training metrics, which would compute the cross entropy twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from composer.distributed.activation_checkpointing import apply_ac
from composer.models import ComposerModel
from torchmetrics import Metric
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from data_prep.common.errors import BadInput
from recipes.config.schema import KernelsConfig, ModelConfig
from recipes.modeling.attention import use_scaled_attention
from recipes.modeling.loss import NO_TARGET, mean_loss, token_losses
from recipes.modeling.size import flops_per_token
from recipes.modeling.speedups import fuse_gelu
from recipes.modeling.token_loss import TokenLoss, metric_name
from recipes.modeling.transformers_releases import no_init_weights

Batch = dict[str, torch.Tensor]


class GPT2WithLoss(GPT2LMHeadModel):
    """GPT2LMHeadModel whose forward pass also computes losses: inside it, as FSDP gathers the head's weight for it."""

    def __init__(self, config: GPT2Config, kernels: KernelsConfig) -> None:
        super().__init__(config)
        self.kernels = kernels
        if kernels.fused_gelu:
            fuse_gelu(self)

    def forward(self, *args: Any, targets: torch.Tensor | None = None, mean: bool = True, **kwargs: Any) -> Any:
        """As GPT2LMHeadModel.forward, which returns logits; with targets the losses alone.

        Args:
            args: of GPT2LMHeadModel.forward.
            targets: the token that follows each, (B, T); NO_TARGET where there is none.
            mean: return the mean loss, (); if not, the loss of each token, (B · T,), without a gradient.
            kwargs: of GPT2LMHeadModel.forward.
        """
        if targets is None:
            return super().forward(*args, **kwargs)
        hidden = self.transformer(*args, **kwargs)[0].flatten(0, 1)
        chunk_tokens = self.kernels.loss_chunk_tokens
        if mean:
            return mean_loss(hidden, self.lm_head.weight, targets.flatten(), chunk_tokens)
        return token_losses(hidden, self.lm_head.weight, targets.flatten(), chunk_tokens)


def next_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """The token that follows each, (B, T); nothing follows a sample's last."""
    return F.pad(input_ids[:, 1:], (0, 1), value=NO_TARGET)


def gpt2_config(model: ModelConfig, eos_token_id: int) -> GPT2Config:
    """The Hugging Face configuration that the model trains with.

    `pad_token_id` is None: packed batches hold no padding, and GPT2Model otherwise looks for it in every forward pass,
    a device sync each time. Export sets it.
    """
    return GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.n_positions,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        activation_function=model.activation_function,
        layer_norm_epsilon=model.layer_norm_epsilon,
        initializer_range=model.initializer_range,
        attn_pdrop=model.attn_pdrop,
        resid_pdrop=model.resid_pdrop,
        embd_pdrop=model.embd_pdrop,
        scale_attn_by_inverse_layer_idx=model.scale_attn_by_inverse_layer_idx,
        reorder_and_upcast_attn=False,
        use_cache=False,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=None,
        attn_implementation=model.attn_implementation,
    )


class BioMedLM(ComposerModel):
    """A GPT-2 language model for the Trainer.

    Args:
        config: the architecture.
        eos_token_id: end-of-text id of the tokenizer.
        kernels: how it is computed.
        recomputed_blocks: the first blocks that recompute their activations; None: all, where any does.
        draw_weights: False leaves them as the memory was, for a checkpoint to fill: drawing the 2.7B's takes 81 s.
        eval_samples: number of samples of the largest validation split; 0 for a model that is not evaluated.
        eval_sources: names of the sources whose validation losses are told apart.

    Attributes:
        model: the GPT2LMHeadModel, its attention scaled by layer under every implementation.
        loss_unit: unit of its loss.
    """

    loss_unit = "nats/token"

    def __init__(
        self,
        config: ModelConfig,
        eos_token_id: int,
        kernels: KernelsConfig | None = None,
        recomputed_blocks: int | None = None,
        draw_weights: bool = True,
        eval_samples: int = 0,
        eval_sources: Sequence[str] = (),
    ) -> None:
        super().__init__()
        try:
            with nullcontext() if draw_weights else no_init_weights():
                self.model = use_scaled_attention(
                    GPT2WithLoss(gpt2_config(config, eos_token_id), kernels or KernelsConfig())
                )
            self.model.tie_weights()  # which no_init_weights leaves out
        except ImportError as error:
            raise BadInput(f"model.attn_implementation = {config.attn_implementation!r}: {error}; use sdpa") from None
        self._config, self._eval_samples, self._eval_sources = config, eval_samples, tuple(eval_sources)
        # Read by Composer: which modules FSDP shards and gathers together, and which recompute their activations.
        # Only blocks: the token embedding is also the head, and FSDP2 refuses tied weights in a unit of their own.
        hooks: Any = self.model
        # FSDP1 calls it on ranks that built the model without memory, before they get what rank 0 drew.
        hooks.param_init_fn = lambda module: None
        hooks.fsdp_wrap_fn = is_block
        recomputed = set(self.model.transformer.h[:recomputed_blocks])
        hooks.activation_checkpointing_fn = recomputed.__contains__

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean cross entropy, in nats per token, of a batch's `input_ids` (B, T).

        No attention mask: packed batches have no padding. What follows a sample's last token is left out by its target,
        not by a slice of the logits, which would copy all of them, and their gradient once more.
        """
        return {"loss": self.model(batch["input_ids"], targets=next_tokens(batch["input_ids"]))}

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss that `forward` computed."""
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> torch.Tensor:
        """Losses of all tokens but each sample's first, in nats, (B, T - 1)."""
        losses = self.model(batch["input_ids"], targets=next_tokens(batch["input_ids"]), mean=False)
        return losses.view_as(batch["input_ids"])[:, :-1]

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The validation loss, and that of each source; none in training (it is the loss)."""
        if is_train:
            return {}
        by_source = {
            metric_name(source): TokenLoss(self._eval_samples, n) for n, source in enumerate(self._eval_sources)
        }
        return {metric_name(None): TokenLoss(self._eval_samples), **by_source}

    def update_metric(self, batch: Batch, outputs: torch.Tensor, metric: Metric) -> None:
        """Add a batch's losses to a metric."""
        metric.update(outputs, batch["sample_ids"], batch["sources"][:, 1:] if "sources" in batch else None)

    def flops_per_batch(self, batch: Batch) -> int:
        """FLOPs of one training step on a rank's batch; SpeedMonitor makes MFU of it."""
        input_ids = batch["input_ids"]
        return input_ids.numel() * flops_per_token(self._config, input_ids.shape[1])


def is_block(module: torch.nn.Module) -> bool:
    """Whether a module is one transformer block."""
    return isinstance(module, GPT2Block)


def checkpoint_activations(model: BioMedLM) -> None:
    """Recompute blocks' activations in the backward pass, on a rank that is not sharded (FSDP does it itself)."""
    recomputed: Any = model.model.activation_checkpointing_fn
    apply_ac(model, activation_checkpointing=True, activation_cpu_offload=False, check_fn=recomputed)

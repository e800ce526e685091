"""GPT2LMHeadModel in a ComposerModel, with only those parts that the Trainer needs.

This is thinner than Composer's HuggingFaceModel on purpose. The forward pass returns only the loss, because Composer
keeps `state.outputs`, and logits there would stay in memory. There are no training metrics, which would compute the
cross entropy a second time.
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
    """GPT2LMHeadModel whose forward pass also computes losses. FSDP gathers the head's weight only inside forward."""

    def __init__(self, config: GPT2Config, kernels: KernelsConfig) -> None:
        super().__init__(config)
        self.kernels = kernels
        if kernels.fused_gelu:
            fuse_gelu(self)

    def forward(self, *args: Any, targets: torch.Tensor | None = None, mean: bool = True, **kwargs: Any) -> Any:
        """Return logits like GPT2LMHeadModel.forward; with targets, return only the loss.

        Args:
            args: positional arguments of GPT2LMHeadModel.forward.
            targets: next token of each token, (B, T); NO_TARGET if there is none.
            mean: True: return the mean loss, (). False: return the loss of each token, (B · T,), without a gradient.
            kwargs: keyword arguments of GPT2LMHeadModel.forward.
        """
        if targets is None:
            return super().forward(*args, **kwargs)
        hidden = self.transformer(*args, **kwargs)[0].flatten(0, 1)
        chunk_tokens = self.kernels.loss_chunk_tokens
        if mean:
            return mean_loss(hidden, self.lm_head.weight, targets.flatten(), chunk_tokens)
        return token_losses(hidden, self.lm_head.weight, targets.flatten(), chunk_tokens)


def next_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """The next token of each token, (B, T); NO_TARGET after the last token of a sample."""
    return F.pad(input_ids[:, 1:], (0, 1), value=NO_TARGET)


def gpt2_config(model: ModelConfig, eos_token_id: int) -> GPT2Config:
    """The Hugging Face configuration that the model trains with.

    `pad_token_id` is None, because packed batches have no padding, and GPT2Model would search for it in every forward
    pass, each time with a device sync. The export sets it.
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
        config: architecture of the model.
        eos_token_id: end-of-text id of the tokenizer.
        kernels: how the model is computed.
        recomputed_blocks: number of first blocks that recompute their activations; None: all blocks.
        draw_weights: False leaves the weights uninitialized, for a checkpoint to fill. To draw those of the 2.7B takes
            81 s.
        eval_samples: number of samples of the largest validation split; 0 for a model that is not evaluated.
        eval_sources: names of the sources whose validation losses are computed separately.

    Attributes:
        model: the GPT2LMHeadModel, with attention scaled by layer under every implementation.
        loss_unit: unit of the loss.
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
            self.model.tie_weights()  # no_init_weights skips this
        except ImportError as error:
            raise BadInput(f"model.attn_implementation = {config.attn_implementation!r}: {error}; use sdpa") from None
        self._config, self._eval_samples, self._eval_sources = config, eval_samples, tuple(eval_sources)
        # Composer reads these hooks: which modules are FSDP units, and which recompute their activations. Only blocks
        # are units: the token embedding is also the head, and FSDP2 refuses tied weights in a unit of their own.
        hooks: Any = self.model
        # FSDP1 calls this on ranks whose model is on the meta device, before they get the weights of rank 0.
        hooks.param_init_fn = lambda module: None
        hooks.fsdp_wrap_fn = is_block
        recomputed = set(self.model.transformer.h[:recomputed_blocks])
        hooks.activation_checkpointing_fn = recomputed.__contains__

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean cross entropy, in nats per token, of a batch's `input_ids` (B, T).

        There is no attention mask, because packed batches have no padding. The last token of a sample has the target
        NO_TARGET; a slice of the logits in its place would copy all logits, and again their gradient.
        """
        return {"loss": self.model(batch["input_ids"], targets=next_tokens(batch["input_ids"]))}

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss that `forward` computed."""
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> torch.Tensor:
        """Losses of all tokens except the first of each sample, in nats, (B, T - 1)."""
        losses = self.model(batch["input_ids"], targets=next_tokens(batch["input_ids"]), mean=False)
        return losses.view_as(batch["input_ids"])[:, :-1]

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The validation loss of all tokens and of each source. Training needs no metric, since it has the loss."""
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
        """FLOPs of one training step on a rank's batch, from which SpeedMonitor computes the MFU."""
        input_ids = batch["input_ids"]
        return input_ids.numel() * flops_per_token(self._config, input_ids.shape[1])


def is_block(module: torch.nn.Module) -> bool:
    """Whether a module is one transformer block."""
    return isinstance(module, GPT2Block)


def checkpoint_activations(model: BioMedLM) -> None:
    """Make blocks recompute activations in the backward pass, if the model is not sharded. FSDP does it itself."""
    recomputed: Any = model.model.activation_checkpointing_fn
    apply_ac(model, activation_checkpointing=True, activation_cpu_offload=False, check_fn=recomputed)

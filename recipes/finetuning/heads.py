"""A GPT-2 that is tuned on one kind of task, in the form that the Trainer needs; and the folder of a fine-tuned model.

The folder holds a Hugging Face GPT-2 (attention scale folded, LoRA merged, added tokens in tokenizer and embedding),
`head.safetensors` and `task.json`.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from composer.models import ComposerModel
from safetensors.torch import save_file
from torchmetrics import MeanMetric, Metric
from transformers import GPT2LMHeadModel

from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from recipes.config.schema import LoraConfig
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import HEAD, TASK, TaskHead, read_task
from recipes.modeling.attention import use_scaled_attention
from recipes.modeling.gpt2 import is_block
from recipes.modeling.model_folder import load_pretrained, save_pretrained
from recipes.modeling.tokenizer_folder import save_tokenizer
from recipes.modeling.weights import fill, read_tensors

if TYPE_CHECKING:
    from peft import LoraModel

    from recipes.finetuning.kind import Batch

LINEAR_MAPS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


class GPT2WithHidden(GPT2LMHeadModel):
    """GPT2LMHeadModel that can return its hidden states. FSDP gathers weights outside the blocks only in forward."""

    @wraps(GPT2LMHeadModel.forward)  # `generate` reads the names of its arguments
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, hidden_alone: bool = False, **kwargs: Any
    ) -> Any:
        """Return the same as GPT2LMHeadModel.forward; with `hidden_alone`, the last hidden states, (B, T, n_embd)."""
        return self.transformer(*args, **kwargs)[0] if hidden_alone else super().forward(*args, **kwargs)


class FineTuned(ComposerModel):
    """A GPT-2 with the head of its kind of task.

    Attributes:
        model: the GPT2LMHeadModel, with attention scaled by layer if its configuration says so.
        task_head: task of the model.
        kind: kind of the task.
        head: the head; None if the language model itself writes the answer.
        loss_unit: unit of the loss.
    """

    def __init__(self, model: GPT2LMHeadModel, task_head: TaskHead) -> None:
        super().__init__()
        self.model = use_scaled_attention(model)
        self.model.__class__ = GPT2WithHidden
        self.task_head, self.kind = task_head, KINDS[task_head.kind]
        self.loss_unit = self.kind.loss_unit
        config: Any = model.config
        self.head: Any = self.kind.new_head(config, task_head.labels)
        hooks: Any = self.model
        hooks.fsdp_wrap_fn = hooks.activation_checkpointing_fn = is_block

    def answers(self, batch: Batch) -> torch.Tensor:
        """The answers of the kind, one row for each example."""
        return self.kind.answers(self.model, self.head, batch)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean loss over examples."""
        return {"loss": self.kind.loss(self.answers(batch), batch)}

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss that `forward` computed."""
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> torch.Tensor:
        """The judgement of the kind, one row for each example."""
        return self.kind.judge(self.answers(batch), batch, self.task_head.labels)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The metric of the kind for evaluation; none in training."""
        return {} if is_train else {self.kind.dev_metric: MeanMetric()}

    def update_metric(self, batch: Batch, outputs: torch.Tensor, metric: Metric) -> None:
        """Add a batch to the metric."""
        self.kind.add(metric, outputs)


def add_lora(model: GPT2LMHeadModel, lora: LoraConfig) -> LoraModel:
    """Add low-rank changes to the linear layers of the blocks, in place. All other parameters are frozen.

    Rows of the embedding that were added for the task keep their random values, to which the changes in the blocks can
    adapt.

    Returns:
        peft's object, whose `merge_and_unload()` merges the changes into the weights.
    """
    import peft

    config = peft.LoraConfig(**asdict(lora), target_modules=LINEAR_MAPS, fan_in_fan_out=True, bias="none")
    return peft.LoraModel(model, config, "default")


def resize(model: GPT2LMHeadModel, n_entries: int) -> None:
    """Add embedding rows for new tokens, in place, with random values as at the start of pre-training."""
    old = model.config.vocab_size
    if n_entries > old:
        model.resize_token_embeddings(n_entries, mean_resizing=False)
        with torch.no_grad():
            model.transformer.wte.weight[old:].normal_(std=model.config.initializer_range)


def save(trained: FineTuned, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `load` reads. The attention scale must be folded and LoRA merged before."""
    trained.model.__class__ = GPT2LMHeadModel  # config.json records the name of the class
    try:
        save_pretrained(trained.model, folder)
    finally:
        trained.model.__class__ = GPT2WithHidden
    save_tokenizer(tokenizer, folder, trained.model.config.n_positions)
    if trained.head is not None:
        save_file({name: value.contiguous() for name, value in trained.head.state_dict().items()}, folder / HEAD)
    write_json(folder / TASK, asdict(trained.task_head))


def load(folder: Path, device: str = "cpu") -> tuple[FineTuned, Any]:
    """Load a fine-tuned model, in evaluation mode, and its tokenizer.

    Raises:
        BadInput: the folder holds no fine-tuned model, or its head is damaged or missing.
    """
    if (facts := read_task(folder)) is None:
        raise BadInput(f"{folder} holds no fine-tuned model (no {TASK}); recipes/finetune.py makes one")
    model, tokenizer = load_pretrained(folder, device=device)
    trained = FineTuned(model, TaskHead(**{**facts, "labels": tuple(facts["labels"])}))
    path = folder / HEAD
    if path.is_file() != (trained.head is not None):
        has = "a head" if path.is_file() else f"no {HEAD}"
        raise BadInput(f"{folder} has {has}, but {TASK} says that its kind is {facts['kind']}; copy the whole folder")
    if trained.head is not None:
        fill(trained.head, read_tensors(path), True, path)
    return trained.to(device).eval(), tokenizer

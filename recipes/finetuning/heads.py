"""A GPT-2 with a head for one kind of task, for the Trainer; and the folder that a fine-tuned model is kept in.

The folder is a Hugging Face GPT-2 (attention scale folded, LoRA merged, added tokens in tokenizer and embedding), with
`head.safetensors` and `task.json` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from composer.models import ComposerModel
from safetensors.torch import save_file
from torch import nn
from torchmetrics import MeanMetric, Metric
from transformers import GPT2LMHeadModel

from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from data_prep.tasks.token_classification import count, scheme_of
from recipes.config.schema import LoraConfig
from recipes.finetuning.encoding import NO_TAG, Batch
from recipes.finetuning.kinds import KINDS
from recipes.modeling.attention import use_scaled_attention
from recipes.modeling.gpt2 import is_block
from recipes.modeling.model_folder import HEAD, TASK, load_pretrained, read_task, save_pretrained
from recipes.modeling.tokenizer_folder import save_tokenizer
from recipes.modeling.weights import fill, read_tensors

if TYPE_CHECKING:
    from peft import LoraModel

LINEAR_MAPS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


@dataclass(frozen=True)
class TaskHead:
    """What a fine-tuned model is for.

    Attributes:
        task: the set's name.
        kind: `choice`, `verdict`, `pairs` or `tags`.
        labels: of `verdict` and `tags`, in the order of the head's rows; empty otherwise.
        seq_len: the longest sequence that it was trained on, in tokens.
    """

    task: str
    kind: str
    labels: tuple[str, ...]
    seq_len: int

    @property
    def rows(self) -> int:
        """Rows of the linear head: one score a sequence in `choice`, one a label in `verdict` and `tags`."""
        return len(self.labels) or 1

    def tagged(self, scores: torch.Tensor, labels: torch.Tensor) -> tuple[list[str], list[str]]:
        """The tags of one sentence's words, in their order: those that its scores give, and the right ones.

        Args:
            scores: (O, T, labels) of its windows.
            labels: (O, T) the right ones, at the positions at which a tag is told.
        """
        told = labels != NO_TAG
        given, right = scores.argmax(-1)[told].tolist(), labels[told].tolist()
        return [self.labels[n] for n in given], [self.labels[n] for n in right]

    def entities(self, right: Sequence[str], given: Sequence[str]) -> dict[str, list[int]]:
        """For each type of a sentence's entities: found exactly, given, there."""
        return count(right, given, scheme_of(dict.fromkeys(self.labels, self.task)))


class GPT2WithHidden(GPT2LMHeadModel):
    """GPT2LMHeadModel whose forward pass can end before the head: inside it, as FSDP gathers all but blocks for it."""

    @wraps(GPT2LMHeadModel.forward)  # `generate` asks for its arguments' names
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, hidden_alone: bool = False, **kwargs: Any
    ) -> Any:
        """As GPT2LMHeadModel.forward; with `hidden_alone` what the head would read, (B, T, n_embd)."""
        return self.transformer(*args, **kwargs)[0] if hidden_alone else super().forward(*args, **kwargs)


class FineTuned(ComposerModel):
    """A GPT-2 that answers.

    `choice` and `verdict`: a linear map without bias on the hidden state of the last real token; softmax over options
    or labels. `tags`: the same of each word's last token. `pairs`: the language model itself, with the loss on the
    target alone.

    Padding is on the right, so causal attention keeps it from every real token, and no mask is needed.

    Attributes:
        model: the GPT2LMHeadModel, its attention scaled by layer as its configuration says.
        head: `rows` x n_embd; None in `pairs`.
        loss_unit: of its loss.
    """

    def __init__(self, model: GPT2LMHeadModel, task_head: TaskHead) -> None:
        super().__init__()
        self.model = use_scaled_attention(model)
        self.model.__class__ = GPT2WithHidden
        self.task_head = task_head
        self.loss_unit = KINDS[task_head.kind].loss_unit
        self.head: nn.Linear | None = None
        if task_head.kind != "pairs":
            self.head = nn.Linear(model.config.n_embd, task_head.rows, bias=False)
            nn.init.normal_(self.head.weight, std=model.config.initializer_range)
        hooks: Any = self.model
        hooks.fsdp_wrap_fn = hooks.activation_checkpointing_fn = is_block

    def scores(self, batch: Batch) -> torch.Tensor:
        """Logits: `choice` (B, O), -inf for an option too many; `verdict` (B, labels); `tags` (B, O, T, labels)."""
        input_ids, lengths = batch["input_ids"], batch["lengths"]
        # (B · O, T, n_embd), after the last LayerNorm
        hidden = self.model(input_ids=input_ids.flatten(0, 1), use_cache=False, hidden_alone=True)
        assert self.head is not None
        if self.task_head.kind == "tags":
            return self.head(hidden).float().unflatten(0, lengths.shape)
        last = (lengths.flatten() - 1).clamp(min=0)
        scores = self.head(hidden[torch.arange(len(last), device=last.device), last]).float()
        if self.task_head.kind == "verdict":
            return scores
        return scores.view_as(lengths).masked_fill(lengths == 0, -math.inf)

    def target_losses(self, batch: Batch) -> torch.Tensor:
        """Of `pairs` (B,): mean cross entropy, in nats a token, of each target, end-of-text included."""
        input_ids, lengths = batch["input_ids"][:, 0], batch["lengths"][:, 0]
        logits = self.model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        position = torch.arange(1, input_ids.shape[1], device=input_ids.device)
        wanted = (position >= batch["labels"][:, None]) & (position < lengths[:, None])
        return (nats.view_as(wanted) * wanted).sum(1) / wanted.sum(1)

    def tag_losses(self, batch: Batch) -> torch.Tensor:
        """Of `tags` (B,): mean cross entropy, in nats a word, of each sentence."""
        scores, labels = self.scores(batch), batch["labels"]
        nats = F.cross_entropy(scores.flatten(0, 2), labels.flatten(), ignore_index=NO_TAG, reduction="none")
        return nats.view_as(labels).sum((1, 2)) / (labels != NO_TAG).sum((1, 2))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss: a mean over examples, so that it does not depend on how they are split and padded."""
        if self.task_head.kind == "pairs":
            return {"loss": self.target_losses(batch).mean()}
        if self.task_head.kind == "tags":
            return {"loss": self.tag_losses(batch).mean()}
        return {"loss": F.cross_entropy(self.scores(batch), batch["labels"])}

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss that `forward` computed."""
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> torch.Tensor:
        """(B,): whether each answer is right, or the loss of each target; of `tags` (B, 2), whose sums make F1."""
        if self.task_head.kind == "pairs":
            return self.target_losses(batch)
        if self.task_head.kind == "tags":
            scores, labels = self.scores(batch).cpu(), batch["labels"].cpu()
            sums = []
            for given, right in map(self.task_head.tagged, scores, labels):
                counts = self.task_head.entities(right, given).values()
                sums.append((2 * sum(n[0] for n in counts), sum(n[1] + n[2] for n in counts)))
            return torch.tensor(sums, dtype=torch.float32, device=batch["labels"].device)
        return (self.scores(batch).argmax(1) == batch["labels"]).float()

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Accuracy, the loss of the targets, or F1 of the entities, on evaluation."""
        return {} if is_train else {KINDS[self.task_head.kind].dev_metric: MeanMetric()}

    def update_metric(self, batch: Batch, outputs: torch.Tensor, metric: Metric) -> None:
        """Add a batch."""
        if self.task_head.kind == "tags":
            above, below = outputs.T
            metric.update(above / below.clamp(min=1), below)  # Σ above / Σ below
        else:
            metric.update(outputs)


def add_lora(model: GPT2LMHeadModel, lora: LoraConfig) -> LoraModel:
    """Add low-rank changes to the blocks' linear maps, in place; all other parameters stop wanting a gradient.

    Rows of the embedding that were added for the task keep the values that they were drawn with: the changes of the
    blocks can make of them what they like.

    Returns:
        What merges them into the weights again: `merge_and_unload()`.
    """
    import peft

    config = peft.LoraConfig(**asdict(lora), target_modules=LINEAR_MAPS, fan_in_fan_out=True, bias="none")
    return peft.LoraModel(model, config, "default")


def resize(model: GPT2LMHeadModel, n_entries: int) -> None:
    """Give the embedding rows for new entries, drawn as all were when the model began; in place."""
    old = model.config.vocab_size
    if n_entries > old:
        model.resize_token_embeddings(n_entries, mean_resizing=False)
        with torch.no_grad():
            model.transformer.wte.weight[old:].normal_(std=model.config.initializer_range)


def save(trained: FineTuned, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `load` reads. The model must be a plain GPT-2 by now: folded, LoRA merged."""
    trained.model.__class__ = GPT2LMHeadModel  # whose name goes into config.json
    try:
        save_pretrained(trained.model, folder)
    finally:
        trained.model.__class__ = GPT2WithHidden
    save_tokenizer(tokenizer, folder, trained.model.config.n_positions)
    if trained.head is not None:
        save_file({"weight": trained.head.weight.detach().contiguous()}, folder / HEAD)
    write_json(folder / TASK, asdict(trained.task_head))


def load(folder: Path, device: str = "cpu") -> tuple[FineTuned, Any]:
    """A fine-tuned model, in evaluation mode, and its tokenizer.

    Raises:
        BadInput: the folder does not hold one, or its head is damaged or missing.
    """
    if (facts := read_task(folder)) is None:
        raise BadInput(f"{folder} holds no fine-tuned model (no {TASK}); recipes/finetune.py makes one")
    model, tokenizer = load_pretrained(folder, device=device)
    trained = FineTuned(model, TaskHead(**{**facts, "labels": tuple(facts["labels"])}))
    path = folder / HEAD
    if path.is_file() != (trained.head is not None):
        has = "a head" if path.is_file() else f"no {HEAD}"
        raise BadInput(f"{folder} has {has}, and {TASK} says that it answers {facts['kind']}; copy the whole folder")
    if trained.head is not None:
        fill(trained.head, *read_tensors(path), path)
    return trained.to(device).eval(), tokenizer

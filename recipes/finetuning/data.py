"""Encoded examples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from data_prep.tasks.task_set import Examples
from recipes.checkpointing import trained_model
from recipes.checkpointing.trained_model import Source
from recipes.finetuning.kinds import KINDS

if TYPE_CHECKING:
    from recipes.finetuning.encoding import Encoded, Encoder


def encode(encoder: Encoder, examples: Examples, name: str) -> list[Encoded]:
    """Encode a split, and say how much of it was too long.

    Raises:
        BadInput: an example cannot be cut to fit.
    """
    encoded = [encoder(example) for example in examples]
    say_cut(name, sum(example.truncated for example in encoded), len(encoded), encoder.kind)
    return encoded


def say_cut(name: str, cut: int, n: int, kind: str) -> None:
    """Print how much of a split was too long, if anything was."""
    if cut:
        print(f"{name}: {cut:,} of {n:,} examples are longer than seq_len and {KINDS[kind].if_too_long}", flush=True)


def build_task_dataloader(
    encoded: Sequence[Encoded], pad_id: int, batch_size: int, world_size: int, seed: int | None
) -> Any:
    """Batches of this rank; each global batch holds the same examples on any number of ranks.

    Args:
        encoded: the split.
        pad_id: the token that fills up.
        batch_size: examples a rank.
        world_size: ranks.
        seed: of the order of training, drawn anew for each pass; None: in the order of the split, to its last example.
    """
    import torch
    from composer.core import DataSpec
    from composer.utils import dist
    from torch.utils.data import DataLoader, DistributedSampler

    from recipes.dataloading.loader import split_batch
    from recipes.finetuning.encoding import Examples, collate

    data, train = Examples(encoded), seed is not None
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, world_size, dist.get_global_rank(), shuffle=train, seed=seed or 0, drop_last=train
    )
    loader = DataLoader(
        data,
        batch_size,
        sampler=sampler,
        drop_last=train,
        collate_fn=partial(collate, pad_id=pad_id),
        # Its own in an evaluation: each pass draws a number, which would move the dropout masks of training.
        generator=None if train else torch.Generator(),
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: len(batch["labels"]),
        get_num_tokens_in_batch=lambda batch: int(batch["lengths"].sum()),
    )


def load_tokenizer(source: Source, kind: str) -> Any:
    """The base model's tokenizer with the tokens of a kind of task.

    Raises:
        BadInput: it cannot be loaded, or has entries that the model has not: their rows would be drawn at random.
    """
    from recipes.finetuning.encoding import add_tokens

    tokenizer = trained_model.load_tokenizer(source)
    add_tokens(tokenizer, kind)
    return tokenizer

"""Encoded examples to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from data_prep.tasks.task_set import Examples
from recipes.checkpointing import trained_model
from recipes.checkpointing.trained_model import Source
from recipes.finetuning.kind import Encoded, Encoder, Kind


def encode(encoder: Encoder, examples: Examples, name: str) -> list[Encoded]:
    """Encode a split, and say how much of it was too long.

    Raises:
        BadInput: an example cannot be cut to fit.
    """
    encoded = [encoder(example) for example in examples]
    say_cut(name, sum(example.truncated for example in encoded), len(encoded), encoder.kind)
    return encoded


def encoded_sha256(*splits: Sequence[Encoded]) -> str:
    """The hash of what is learned: sequences and labels, however a later version of this code would encode them."""
    digest = hashlib.sha256()
    for split in splits:
        for example in split:
            digest.update(orjson.dumps((example.sequences, example.label)))
        digest.update(b"\n")
    return digest.hexdigest()


def say_cut(name: str, cut: int, n: int, kind: Kind) -> None:
    """Print how much of a split was too long, if anything was."""
    if cut:
        print(f"{name}: {cut:,} of {n:,} examples are longer than seq_len and {kind.if_too_long}", flush=True)


def build_task_dataloader(
    encoded: Sequence[Encoded], encoder: Encoder, batch_size: int, world_size: int, seed: int | None
) -> Any:
    """Batches of this rank; each global batch holds the same examples on any number of ranks.

    Args:
        encoded: the split.
        encoder: encoder that encoded it, and makes batches of it.
        batch_size: examples a rank.
        world_size: ranks.
        seed: seed of the order, drawn anew for each pass; None: the order of the split, to its last example.
    """
    import torch
    from composer.core import DataSpec
    from composer.utils import dist
    from torch.utils.data import DataLoader, DistributedSampler

    from recipes.dataloading.loader import split_batch

    data: Any = list(enumerate(encoded))
    train = seed is not None
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, world_size, dist.get_global_rank(), shuffle=train, seed=seed or 0, drop_last=train
    )
    loader = DataLoader(
        data,
        batch_size,
        sampler=sampler,
        drop_last=train,
        collate_fn=encoder.collate,
        # Its own in an evaluation: each pass draws a number, which would move the dropout masks of training.
        generator=None if train else torch.Generator(),
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: len(batch["labels"]),
        get_num_tokens_in_batch=lambda batch: int(batch["lengths"].sum()),
    )


def load_tokenizer(source: Source, kind: Kind) -> Any:
    """The base model's tokenizer with the tokens of a kind of task.

    Raises:
        BadInput: it cannot be loaded, or has entries that the model has not: their rows would be drawn at random.
    """
    tokenizer = trained_model.load_tokenizer(source)
    kind.add_tokens(tokenizer)
    return tokenizer

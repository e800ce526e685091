"""Encode examples, and make batches of them."""

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
    """Encode a split, and print how many of its examples are too long.

    Raises:
        BadInput: an example cannot be cut to fit.
    """
    encoded = [encoder(example) for example in examples]
    say_cut(name, sum(example.truncated for example in encoded), len(encoded), encoder.kind)
    return encoded


def encoded_sha256(*splits: Sequence[Encoded]) -> str:
    """Hash of the encoded sequences and labels. It changes if a later version encodes the same examples otherwise."""
    digest = hashlib.sha256()
    for split in splits:
        for example in split:
            digest.update(orjson.dumps((example.sequences, example.label)))
        digest.update(b"\n")
    return digest.hexdigest()


def say_cut(name: str, cut: int, n: int, kind: Kind) -> None:
    """Print how many examples of a split are too long, if there are any."""
    if cut:
        print(f"{name}: {cut:,} of {n:,} examples are longer than seq_len and {kind.if_too_long}", flush=True)


def build_task_dataloader(
    encoded: Sequence[Encoded], encoder: Encoder, batch_size: int, world_size: int, seed: int | None
) -> Any:
    """Build the loader of this rank. Each global batch has the same examples on any number of ranks.

    Args:
        encoded: encoded examples of the split.
        encoder: encoder that encoded the split, and makes batches.
        batch_size: number of examples in a batch of this rank.
        world_size: number of ranks.
        seed: seed of the order, which is drawn anew for each pass; None: the order of the split, with all examples.
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
        # An evaluation gets its own generator: each pass draws a number, and torch's global generator would then draw
        # other dropout masks in training.
        generator=None if train else torch.Generator(),
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: len(batch["labels"]),
        get_num_tokens_in_batch=lambda batch: int(batch["lengths"].sum()),
    )


def load_tokenizer(source: Source, kind: Kind) -> Any:
    """Load the base model's tokenizer, and add the tokens of a kind of task.

    Raises:
        BadInput: the tokenizer cannot be loaded, or has entries that the model lacks, whose embeddings would be random.
    """
    tokenizer = trained_model.load_tokenizer(source)
    kind.add_tokens(tokenizer)
    return tokenizer

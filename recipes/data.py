"""Token shards -> batches `{"input_ids": (B, T) int64}`.

There is no `labels` entry: the model shifts `input_ids` itself, and a copy would double what travels to the GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import StreamingDataLoader, StreamingDataset

from data_prep.shard_format import COLUMN
from recipes.config import TrainConfig


class TokenShards(StreamingDataset):
    """A split of token shards; sample i is `{"input_ids": (seq_len,) int64}`."""

    def __getitem__(self, at: Any) -> Any:
        """Sample `at`, widened to the int64 that embedding lookups take."""
        tokens = super().__getitem__(at)[COLUMN].astype(np.int64)
        return {"input_ids": torch.from_numpy(tokens), "sample_ids": at}


def split_batch(batch: dict[str, torch.Tensor], microbatch_size: Any) -> list[dict[str, torch.Tensor]]:
    """A batch in microbatches; the last one of an evaluation may be smaller, which Composer's own split warns of."""
    parts = {name: values.split(int(microbatch_size)) for name, values in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def build_dataloader(cfg: TrainConfig, split: str, world_size: int) -> DataSpec:
    """The loader of one split for this rank.

    The order of training samples depends on `seed` and `data.num_canonical_nodes` alone, so the same samples make up
    each global batch on any number of ranks. The last, partial batch of a training epoch is dropped for that reason:
    which samples it holds would depend on the number of ranks.
    """
    train = split == "train"
    batch_size = cfg.global_train_batch_size // world_size if train else cfg.device_eval_batch_size
    dataset = TokenShards(
        local=str(Path(cfg.data.shards) / split),
        shuffle=train,
        shuffle_algo="py1e",
        shuffle_seed=cfg.seed,
        num_canonical_nodes=cfg.data.num_canonical_nodes,
        batch_size=batch_size,
        validate_hash="xxh64",
    )
    workers = cfg.data.num_workers
    loader = StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        drop_last=train,
        num_workers=workers,
        prefetch_factor=cfg.data.prefetch_factor if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and cfg.device != "cpu",
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
    )

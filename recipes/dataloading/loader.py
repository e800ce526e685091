"""Load batches `{"input_ids": (B, T) int64, "sample_ids": (B,) int64}` from token shards; those of val have `sources`.

There is no `labels` entry, because the model shifts `input_ids` itself, and a copy would double the transfer to the
GPU.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import StreamingDataLoader

from data_prep.common.errors import BadInput
from recipes.config.schema import TrainConfig
from recipes.dataloading import skipped_data
from recipes.dataloading.shared_memory import registering, remove_locks_at_exit
from recipes.dataloading.token_dataset import Sample, TokenShards, TokenStream
from recipes.modeling.token_loss import TokenSources
from recipes.planning.mixing import shard_folders


class ShortEpoch(Exception):
    """An epoch ended before it delivered all of its samples."""


def collate(samples: Sequence[Sample], sources: TokenSources | None = None) -> dict[str, torch.Tensor]:
    """Make a batch of samples, as the int64 that embeddings need. With `sources`, add the sources, (B, T) uint8."""
    tokens = np.stack([sample["input_ids"] for sample in samples]).astype(np.int64)
    sample_ids = [sample["sample_ids"] for sample in samples]
    batch = {"input_ids": torch.from_numpy(tokens), "sample_ids": torch.tensor(sample_ids)}
    return {**batch, "sources": sources.of(sample_ids)} if sources else batch


class TokenLoader(StreamingDataLoader):
    """Batches of one rank. A training epoch has exactly the planned number of batches.

    StreamingDataset repeats samples until all ranks have the same number. If seven samples are left for a batch of
    eight, they would make a batch on eight ranks, but none on one rank. Here they make none, so the length of an epoch
    does not depend on the number of ranks.
    """

    def __init__(self, dataset: TokenShards, batch_size: int, world_size: int, **arguments: Any):
        super().__init__(dataset, batch_size=batch_size, **arguments)
        self._dataset = dataset
        self._device_batch_size = batch_size
        self._world_size = world_size

    def __len__(self) -> int:
        return self._planned_samples(0) // self._device_batch_size if self.drop_last else super().__len__()

    def _planned_samples(self, position: int) -> int:
        """Number of samples that this rank gets of an epoch from a position on, skipped samples included."""
        size = self._dataset.epoch_size
        if not self.drop_last:
            return -(-size // self._world_size)
        batch = self._device_batch_size * self._world_size
        return (size // batch - position // batch) * self._device_batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch.

        Raises:
            BadInput: a shard is damaged and cannot be repaired.
            ShortEpoch: the epoch ended early, because of a fault that nothing else noticed.
        """
        epoch, position = self._dataset.next_position()
        planned, delivered = self._planned_samples(position), 0
        try:
            for batch in super().__iter__():
                if self.drop_last and delivered == planned:
                    return
                place = position + delivered * self._world_size
                delivered += len(batch["input_ids"])
                if not skipped_data.is_skipped(self._dataset.skipped, epoch, place):
                    yield batch
            if delivered < planned:
                splits = ", ".join(stream.local for stream in self._dataset.streams)
                raise ShortEpoch(f"{splits}: an epoch delivered {delivered} of {planned} samples")
        except Exception as error:
            stop_workers(self)
            if isinstance(error, BadInput):  # an error from a worker has the worker's traceback in its text
                raise BadInput(str(error).rpartition(f"{BadInput.__name__}: ")[2].strip()) from None
            raise


def stop_workers(loader: Any) -> None:
    """End the persistent worker processes of a DataLoader.

    Garbage collection at the end of the process would first stop the queue that tells the workers to end. If batches go
    to pinned memory, torch would then wait 5 s for each worker.
    """
    if (iterator := getattr(loader, "_iterator", None)) is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def split_batch(batch: dict[str, torch.Tensor], microbatch_size: Any) -> list[dict[str, torch.Tensor]]:
    """Split a batch into microbatches. Composer's own function warns if the last batch of an evaluation is smaller."""
    parts = {name: values.split(int(microbatch_size)) for name, values in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _ignore_usr1(worker: int) -> None:
    """Make a worker ignore SIGUSR1, which Slurm sends to all processes of a step. The rank decides when to end.

    SIGTERM is not ignored, because Python ends workers with it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def build_dataloader(
    cfg: TrainConfig,
    split: str,
    world_size: int,
    skipped: Sequence[skipped_data.Window] = (),
    sources: TokenSources | None = None,
    mixed: str | None = None,
) -> DataSpec:
    """Build the loader of one split for this rank.

    Training samples come from all folders of the run, validation samples from one folder.

    The order of training samples depends only on `seed` and `data.num_canonical_nodes`, so each global batch has the
    same samples on any number of ranks. For the same reason, the incomplete last batch of a training epoch is dropped:
    its samples would depend on the number of ranks.

    Args:
        cfg: configuration of the run.
        split: `train` or `val`.
        world_size: number of ranks.
        skipped: positions that the run skips, as `skipped_data.merge` returns them.
        sources: source of each token of the split; None: batches have no `sources`.
        mixed: name of a folder in `data.mix` whose `val` is read; None: read that of `data.shards`.

    Raises:
        BadInput: the shards are not finished, or their index is damaged or has another format.
    """
    train = split == "train"
    batch_size = cfg.global_train_batch_size // world_size if train else cfg.device_eval_batch_size
    folders = [folder for folder in shard_folders(cfg) if train or folder.name == mixed]
    with registering():
        dataset = TokenShards(
            streams=[TokenStream(folder, split) for folder in folders],
            shuffle=train,
            shuffle_algo="py1e",
            shuffle_seed=cfg.seed,
            num_canonical_nodes=cfg.data.num_canonical_nodes,
            batch_size=batch_size,
        )
    remove_locks_at_exit(dataset)
    dataset.skipped = skipped
    workers = cfg.data.num_workers
    loader = TokenLoader(
        dataset,
        batch_size,
        world_size,
        drop_last=train,
        collate_fn=partial(collate, sources=sources),
        num_workers=workers,
        prefetch_factor=cfg.data.prefetch_factor if workers else None,
        persistent_workers=workers > 0,
        # A generator for the seeds of the workers. Torch's global one would draw other dropout masks after each
        # evaluation, depending on the number of workers.
        generator=torch.Generator().manual_seed(cfg.seed),
        worker_init_fn=_ignore_usr1,
        pin_memory=torch.cuda.is_available() and cfg.device != "cpu",
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
    )

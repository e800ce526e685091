"""Compute from the order of the epoch which samples the next batch must have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from recipes.dataloading import skipped_data
from recipes.dataloading.token_dataset import TokenShards


def next_samples(loader: Any, epoch: int, sample_in_epoch: int, batch_size: int) -> NDArray[np.int64] | None:
    """Return the sample ids of one global batch; None if the order of the loader is not known.

    It takes as long as the loader needs to order an epoch: 7 s for 20 million samples.

    Args:
        loader: loader of the training data.
        epoch: number of the epoch, from 0.
        sample_in_epoch: number of samples of the epoch, over all ranks, that were trained on.
        batch_size: number of samples in a batch over all ranks.
    """
    dataset = loader.dataset
    if isinstance(dataset, TokenShards):
        at = skipped_data.position(dataset.skipped, epoch, sample_in_epoch)
        return dataset.sample_order(epoch, batch_size)[at : at + batch_size]
    if isinstance(loader.sampler, DistributedSampler):
        own = loader.sampler
        order = DistributedSampler(dataset, 1, 0, shuffle=own.shuffle, seed=own.seed, drop_last=own.drop_last)
        order.set_epoch(epoch)
        return np.array(list(order)[sample_in_epoch : sample_in_epoch + batch_size])
    return None

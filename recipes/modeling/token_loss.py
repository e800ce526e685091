"""The validation loss, of all tokens and by source. The loss of each token is computed only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from composer.utils import dist
from numpy.typing import NDArray
from torchmetrics import Metric

from data_prep.sharding.shard_format import DOCUMENTS, read_documents

LOSS = "LanguageCrossEntropy"  # Composer's name of the metric


def metric_name(source: str | None) -> str:
    """Name of the metric: `LanguageCrossEntropy`, or for a source `LanguageCrossEntropy/PubMed Abstracts`."""
    return f"{LOSS}/{source}" if source else LOSS


@dataclass(frozen=True)
class TokenSources:
    """The source of each token of a split.

    Attributes:
        names: names of the sources, in alphabetical order.
        bytes_per_token: UTF-8 bytes of text per token, for each source.
        starts: position of each document's first token in the split, (documents,).
        sources: source of each document as an index into `names`, (documents,).
        seq_len: tokens of a sample.
    """

    names: tuple[str, ...]
    bytes_per_token: tuple[float, ...]
    starts: NDArray[np.int64]
    sources: NDArray[np.uint8]
    seq_len: int

    def of(self, sample_ids: Sequence[int]) -> torch.Tensor:
        """Sources of the tokens of samples, (samples, seq_len) uint8."""
        first = np.array(sample_ids, np.int64)[:, None] * self.seq_len
        documents = np.searchsorted(self.starts, first + np.arange(self.seq_len), side="right") - 1
        return torch.from_numpy(self.sources[documents])


def read_token_sources(folder: Path, seq_len: int) -> TokenSources | None:
    """Read the sources of a split's tokens; None if there is only one source, or no list of documents.

    Args:
        folder: folder of the split. Shards that were fetched from `data.remote` have no list of documents.
        seq_len: tokens of a sample.
    """
    if not (folder / DOCUMENTS).is_file():
        return None
    begun, records = zip(*read_documents(folder), strict=True)
    names = tuple(sorted({record["source"] for record in records}))
    if len(names) < 2:
        return None
    sources = np.array([names.index(record["source"]) for record in records], np.uint8)
    sizes = np.array([[record["bytes"], record["tokens"]] for record in records], float)
    sums = [sizes[sources == n].sum(axis=0) for n in range(len(names))]
    return TokenSources(names, tuple(b / t for b, t in sums), np.array(begun, np.int64), sources, seq_len)


class TokenLoss(Metric):
    """Mean loss in nats per token over all ranks; NaN before the first token.

    Each sample counts once, although StreamingDataset gives some samples to two ranks, so that all ranks have the same
    number. Therefore the sums are kept by sample. They are summed over ranks here and not by torchmetrics, which would
    gather the tables of all ranks on each rank.

    Args:
        samples: number of samples in the split, or more.
        source: index into `TokenSources.names`: only tokens of this source count; None: all tokens count.
    """

    full_state_update = False

    def __init__(self, samples: int, source: int | None = None):
        super().__init__(sync_on_compute=False)
        self.source = source
        # For each sample: nats, tokens, and the number of times that it was read.
        self.add_state("sums", default=torch.zeros(samples, 3, dtype=torch.float64))
        self.sums: torch.Tensor

    def update(self, losses: torch.Tensor, sample_ids: torch.Tensor, sources: torch.Tensor | None = None) -> None:
        """Add samples.

        Args:
            losses: loss of each token in nats, (B, T).
            sample_ids: ids of the samples in the split, (B,).
            sources: source of each token, (B, T); needed only if `source` was given.
        """
        counts = torch.ones_like(losses) if sources is None or self.source is None else sources == self.source
        rows = torch.stack([(losses * counts).sum(1), counts.sum(1), torch.ones_like(losses[:, 0])], 1)
        self.sums.index_add_(0, sample_ids, rows.double())

    def compute(self) -> torch.Tensor:
        """Return the mean. All ranks must call it."""
        sums = self.sums.clone()
        dist.all_reduce(sums)
        nats, tokens = (sums[:, :2] / sums[:, 2:].clamp(min=1)).sum(0)
        return nats / tokens

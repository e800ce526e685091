"""The validation loss, of all tokens and of those of one source: each token's loss is computed once."""

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

LOSS = "LanguageCrossEntropy"  # what Composer calls it


def metric_name(source: str | None) -> str:
    """`LanguageCrossEntropy`, or `LanguageCrossEntropy/PubMed Abstracts`."""
    return f"{LOSS}/{source}" if source else LOSS


@dataclass(frozen=True)
class TokenSources:
    """Which source each token of a split comes from.

    Attributes:
        names: names of the sources, in alphabetical order.
        bytes_per_token: bytes of each, UTF-8 bytes of text.
        starts: the first token of each document in the split's stream, (documents,).
        sources: source of each document, an index of `names`, (documents,).
        seq_len: tokens a sample.
    """

    names: tuple[str, ...]
    bytes_per_token: tuple[float, ...]
    starts: NDArray[np.int64]
    sources: NDArray[np.uint8]
    seq_len: int

    def of(self, sample_ids: Sequence[int]) -> torch.Tensor:
        """Of the tokens of samples, (samples, seq_len) uint8."""
        first = np.array(sample_ids, np.int64)[:, None] * self.seq_len
        documents = np.searchsorted(self.starts, first + np.arange(self.seq_len), side="right") - 1
        return torch.from_numpy(self.sources[documents])


def read_token_sources(folder: Path, seq_len: int) -> TokenSources | None:
    """The sources of a split's tokens; None if there is one source only, or no list of documents.

    Args:
        folder: folder of the split. Shards that are fetched from `data.remote` come without the list.
        seq_len: tokens a sample.
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

    Each sample counts once: StreamingDataset gives some to two ranks, so that all have as many. So the sums are kept by
    sample, and ranks add theirs here, not through torchmetrics, which would gather all ranks' tables on each.

    Args:
        samples: samples of the split, or more.
        source: tokens of this one alone count, an index of `TokenSources.names`; None: all.
    """

    full_state_update = False

    def __init__(self, samples: int, source: int | None = None):
        super().__init__(sync_on_compute=False)
        self.source = source
        # Of each sample: nats, tokens, and how often it was read.
        self.add_state("sums", default=torch.zeros(samples, 3, dtype=torch.float64))
        self.sums: torch.Tensor

    def update(self, losses: torch.Tensor, sample_ids: torch.Tensor, sources: torch.Tensor | None = None) -> None:
        """Add samples.

        Args:
            losses: in nats, (B, T).
            sample_ids: their numbers in the split, (B,).
            sources: where each token comes from, (B, T); only where `source` was given.
        """
        counts = torch.ones_like(losses) if sources is None or self.source is None else sources == self.source
        rows = torch.stack([(losses * counts).sum(1), counts.sum(1), torch.ones_like(losses[:, 0])], 1)
        self.sums.index_add_(0, sample_ids, rows.double())

    def compute(self) -> torch.Tensor:
        """The mean. All ranks must call it."""
        sums = self.sums.clone()
        dist.all_reduce(sums)
        nats, tokens = (sums[:, :2] / sums[:, 2:].clamp(min=1)).sum(0)
        return nats / tokens

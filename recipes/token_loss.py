"""The validation loss, of all tokens and of those of one source: each token's loss is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics import Metric

from data_prep.shard_format import DOCUMENTS, read_documents

LOSS = "LanguageCrossEntropy"  # what Composer calls it


def metric_name(source: str | None) -> str:
    """`LanguageCrossEntropy`, or `LanguageCrossEntropy/PubMed Abstracts`."""
    return f"{LOSS}/{source}" if source else LOSS


@dataclass(frozen=True)
class TokenSources:
    """Which source each token of a split comes from.

    Attributes:
        names: of the sources, in alphabetical order.
        bytes_per_token: of each, UTF-8 bytes of text.
        starts: the first token of each document in the split's stream, (documents,).
        sources: of each document, an index of `names`, (documents,).
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
        folder: of the split. Shards that are fetched from `data.remote` come without the list.
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
    """Mean loss in nats per token; NaN before the first token.

    Args:
        source: tokens of this one alone count, an index of `TokenSources.names`; None: all.
    """

    full_state_update = False

    def __init__(self, source: int | None = None):
        super().__init__()
        self.source = source
        self.add_state("nats", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.nats: torch.Tensor
        self.tokens: torch.Tensor

    def update(self, losses: torch.Tensor, sources: torch.Tensor | None = None) -> None:
        """Add tokens.

        Args:
            losses: in nats, (B, T).
            sources: where each token comes from, (B, T); only where `source` was given.
        """
        if self.source is not None:
            assert sources is not None
            losses = losses[sources == self.source]
        self.nats += losses.sum(dtype=torch.float64)
        self.tokens += losses.numel()

    def compute(self) -> torch.Tensor:
        """The mean over all ranks."""
        return self.nats / self.tokens

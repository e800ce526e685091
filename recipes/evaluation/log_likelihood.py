"""Compute the log-probabilities of documents, from which perplexity is computed.

The windows are those of lm-eval-harness' `loglikelihood_rolling`, so that perplexities can be compared. Its code is not
used: it makes batches of windows in the order of the documents, so most of a batch may be padding, and it holds the
logits of a whole batch in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import GPT2LMHeadModel

HEAD_ROWS = 2048  # positions whose logits are computed at a time: 237 MB at 28,896 entries


@dataclass(frozen=True)
class Window:
    """Token ids that a model reads, and the ids to predict at the last of these positions.

    Attributes:
        inputs: (n,) ids; n is at most the model's context.
        targets: (m,) ids; m is at most n, and the last target follows the last input.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def document_windows(ids: Sequence[int], eos_token_id: int, n_positions: int) -> Iterator[Window]:
    """Divide a document into windows that predict each token once. End-of-text comes before the first, as in training.

    Each window starts where the previous one ended. Only the last one also reads earlier tokens, to fill the context.
    """
    text = (eos_token_id, *ids)
    for begin in range(0, len(ids), n_positions):
        end = min(begin + n_positions, len(ids))
        yield Window(text[max(0, end - n_positions) : end], text[begin + 1 : end + 1])


@torch.no_grad()
def log_probs(model: GPT2LMHeadModel, windows: Sequence[Window], batch_size: int) -> list[float]:
    """Sum the log-probabilities of the targets in each window, in nats.

    Windows are sorted by length, so batches have little padding. Padding is on the right, where causal attention of
    real tokens does not see it; so no mask is needed, and the result of a window does not depend on other windows,
    except for rounding in the kernels.

    Args:
        model: model in evaluation mode.
        windows: windows to score.
        batch_size: number of windows at a time.
    """
    device = next(model.parameters()).device
    # Longest windows first, so that a lack of memory shows at once.
    order = sorted(range(len(windows)), key=lambda n: -len(windows[n].inputs))
    sums = [0.0] * len(windows)
    with tqdm(total=len(order), desc="perplexity", unit=" windows", disable=None) as bar:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(windows[batch[0]].inputs)
            rows = [[*windows[n].inputs, *[0] * (width - len(windows[n].inputs))] for n in batch]
            ids = torch.tensor(rows, device=device)
            hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, n_embd)
            for row, n in enumerate(batch):
                end, targets = len(windows[n].inputs), windows[n].targets
                states = hidden[row, end - len(targets) : end]
                sums[n] = _sum_log_probs(model, states, torch.tensor(targets, device=device))
            bar.update(len(batch))
    return sums


def _sum_log_probs(model: GPT2LMHeadModel, states: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum of the log-probabilities of tokens (m,), from the hidden states (m, n_embd) before them, added in fp64."""
    total = 0.0
    for begin in range(0, len(targets), HEAD_ROWS):
        logits = model.lm_head(states[begin : begin + HEAD_ROWS]).float()
        nats = F.cross_entropy(logits, targets[begin : begin + HEAD_ROWS], reduction="none")
        total -= nats.double().sum().item()
    return total

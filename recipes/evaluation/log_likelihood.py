"""How likely a model finds documents: the log-probabilities that perplexity is made of.

The windows are those of lm-eval-harness' `loglikelihood_rolling`, so that perplexities are comparable. Its own code is
not used here: it batches windows in the order of the documents, so that most of a batch can be padding, and holds the
logits of a whole batch in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import GPT2LMHeadModel

HEAD_ROWS = 2048  # positions whose logits are in memory at once: 237 MB at 28,896 entries


@dataclass(frozen=True)
class Window:
    """Token ids that a model reads, and those that it has to predict at the last positions of them.

    Attributes:
        inputs: (n,) ids, n up to the model's context.
        targets: (m,) ids, m up to n; the last is the token after all inputs.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def document_windows(ids: Sequence[int], eos_token_id: int, n_positions: int) -> Iterator[Window]:
    """Windows that predict each token of a document once, its first after end-of-text, as in training.

    All but the last window start where the one before them ended; the last is filled up from there backwards.
    """
    text = (eos_token_id, *ids)
    for begin in range(0, len(ids), n_positions):
        end = min(begin + n_positions, len(ids))
        yield Window(text[max(0, end - n_positions) : end], text[begin + 1 : end + 1])


@torch.no_grad()
def log_probs(model: GPT2LMHeadModel, windows: Sequence[Window], batch_size: int) -> list[float]:
    """The sum of the targets' log-probabilities, in nats, of each window.

    Batches are of equal lengths as far as there are any. Padding is on the right, and causal attention does not see it
    from real tokens, so no mask is needed, and a window's number depends on no other window (but for the kernels'
    rounding).

    Args:
        model: in evaluation mode.
        windows: what to score.
        batch_size: windows at a time.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(windows)), key=lambda n: -len(windows[n].inputs))  # the longest first: no surprise later
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
    """Of hidden states (m, n_embd) and the tokens (m,) after them; added up in fp64."""
    total = 0.0
    for begin in range(0, len(targets), HEAD_ROWS):
        logits = model.lm_head(states[begin : begin + HEAD_ROWS]).float()
        nats = F.cross_entropy(logits, targets[begin : begin + HEAD_ROWS], reduction="none")
        total -= nats.double().sum().item()
    return total

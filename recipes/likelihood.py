"""How likely a model finds texts: the log-probabilities that few-shot scores and perplexity are made of.

The conventions are those of lm-eval-harness 0.4.13 (lm_eval/api/model.py, lm_eval/models/huggingface.py), so that
scores are comparable; benchmarks/lm_eval_agreement.py compares them with the harness's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


def encode_pair(tokenizer: Any, context: str, continuation: str, n_positions: int) -> Window:
    """The window that scores `continuation` after `context`.

    Spaces at the context's end go to the continuation; the pair is encoded as one text, and the continuation is what
    the context's own tokens leave over. What is too long loses its beginning.
    """
    stripped = context.rstrip()
    if stripped:
        context, continuation = stripped, context[len(stripped) :] + continuation
        whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        targets = whole[len(tokenizer(context, add_special_tokens=False)["input_ids"]) :]
    else:
        targets = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        whole = [tokenizer.eos_token_id, *targets]
    inputs = whole[-(n_positions + 1) : -1]
    return Window(tuple(inputs), tuple(targets[-len(inputs) :]))


def document_windows(ids: Sequence[int], eos_token_id: int, n_positions: int) -> Iterator[Window]:
    """Windows that predict each token of a document once, its first after end-of-text, as in training.

    All but the last window start where the one before them ended; the last is filled up from there backwards.
    """
    text = (eos_token_id, *ids)
    for begin in range(0, len(ids), n_positions):
        end = min(begin + n_positions, len(ids))
        yield Window(text[max(0, end - n_positions) : end], text[begin + 1 : end + 1])


@torch.no_grad()
def log_probs(model: GPT2LMHeadModel, windows: Sequence[Window], batch_size: int, name: str) -> list[float]:
    """The sum of the targets' log-probabilities, in nats, of each window.

    Windows with the same inputs are computed once, in batches of equal lengths as far as there are any. Padding is on
    the right, and causal attention does not see it from real tokens, so no mask is needed, and a window's number
    depends on no other window (but for the kernels' rounding).

    Args:
        model: in evaluation mode.
        windows: what to score.
        batch_size: windows at a time.
        name: of the progress bar.
    """
    device = next(model.parameters()).device
    wanted: dict[tuple[int, ...], list[int]] = {}
    for index, window in enumerate(windows):
        wanted.setdefault(window.inputs, []).append(index)
    order = sorted(wanted, key=lambda inputs: (-len(inputs), inputs))  # the longest first: no surprise at the end
    sums = [0.0] * len(windows)
    with tqdm(total=len(order), desc=name, unit=" windows", disable=None) as bar:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(batch[0])
            ids = torch.tensor([[*inputs, *[0] * (width - len(inputs))] for inputs in batch], device=device)
            hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, n_embd)
            for row, inputs in enumerate(batch):
                for index in wanted[inputs]:
                    targets = windows[index].targets
                    states = hidden[row, len(inputs) - len(targets) : len(inputs)]
                    sums[index] = _sum_log_probs(model, states, torch.tensor(targets, device=device))
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

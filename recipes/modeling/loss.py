"""The loss of the language model's head: cross entropy over the vocabulary, computed at once or in chunks.

The logits of a microbatch are the largest tensor of a step: 8 · 1,024 · 28,896 of them take 0.95 GB in fp32, and
`cross_entropy` holds three such tensors. In chunks, only a few thousand tokens are converted to fp32 at a time, and the
logits of a chunk are overwritten by their gradient, as in Liger-Kernel's cross entropy (arXiv 2410.10989, section 3.2).
This module uses plain torch operations, so it runs on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

NO_TARGET = -100


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_tokens: int | None
) -> torch.Tensor:
    """Cross entropy of each token in nats, (N,), without gradient. It is 0 if the target is NO_TARGET.

    Args:
        hidden: input of the head, (N, n_embd).
        weight: weight of the head, (vocab_size, n_embd).
        targets: token ids, (N,).
        chunk_tokens: number of tokens whose logits are computed at a time; None: all.
    """
    return torch.cat(
        [
            F.cross_entropy(
                F.linear(hidden[part], weight).float(), targets[part], ignore_index=NO_TARGET, reduction="none"
            )
            for part in _parts(len(hidden), chunk_tokens)
        ]
    )


def mean_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_tokens: int | None
) -> torch.Tensor:
    """Mean cross entropy of the tokens that have a target, in nats per token, ().

    Args:
        hidden: input of the head, (N, n_embd).
        weight: weight of the head, (vocab_size, n_embd).
        targets: token ids, (N,); NO_TARGET if a token has no target.
        chunk_tokens: number of tokens whose logits are in fp32 at a time; None: all, with torch's own cross entropy.
    """
    if chunk_tokens is None:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=NO_TARGET)
    return _ChunkedMeanLoss.apply(hidden, weight, targets, chunk_tokens)  # pyright: ignore[reportReturnType]


class _ChunkedMeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_tokens: int
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        wanted = targets != NO_TARGET
        shares = (wanted / wanted.sum()).unsqueeze(1)  # weight of each token in the mean
        index = targets.clamp(min=0).unsqueeze(1)
        logits = F.linear(hidden, weight)
        loss = torch.zeros((), device=hidden.device)
        for part in _parts(len(hidden), chunk_tokens):
            loss += (gradient_in_place(logits[part], index[part]) * shares[part]).sum()
        ctx.save_for_backward(logits, hidden, weight, shares)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        of_logits, hidden, weight, shares = ctx.saved_tensors
        shares = shares * gradients[0]  # here the tensor is small, unlike that of the logits
        of_hidden = (of_logits @ weight) * shares
        of_weight = of_logits.T @ (hidden * shares).to(hidden.dtype)
        return of_hidden.to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), None, None


def gradient_in_place(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the losses of a chunk's tokens, (N, 1), and overwrite the logits with the gradient of each token's loss.

    Each logit needs only one exponential, that of the softmax: the largest probability gives the logarithm of the sum,
    which the losses need. No operation waits for the device.

    Args:
        logits: logits of the chunk, (N, vocab_size), which are overwritten.
        index: id of each token's target, (N, 1).
    """
    in_fp32 = logits.float()
    probabilities = in_fp32.softmax(-1)
    log_sum = in_fp32.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
    losses = log_sum - in_fp32.gather(1, index)
    logits.copy_(probabilities.scatter_add_(1, index, torch.full_like(losses, -1)))
    return losses


def _parts(tokens: int, chunk_tokens: int | None) -> Iterator[slice]:
    size = chunk_tokens or tokens
    return (slice(start, start + size) for start in range(0, tokens, size))

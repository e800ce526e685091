"""The parity gate: a run whose attention differs from attention with layer scaling that is written out is refused."""

from __future__ import annotations

from typing import Any

import torch
from composer import Callback, Logger, State
from composer.core import Precision, get_precision_context
from composer.utils import dist
from transformers import GPT2LMHeadModel

from recipes.modeling.attention import Parity, attention_parity


class ParityError(RuntimeError):
    """The model's attention is not the one that is written out in recipes/modeling/attention.py."""


class AttentionParity(Callback):
    """Compares the attention of the model that is about to train with one that is written out, on its device and in its
    precision.

    Attributes:
        result: the last comparison.
    """

    result: Parity | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Before the first batch, after sharding and loading.

        Raises:
            ParityError: the difference is more than rounding explains.
        """
        composer_model: Any = state.model.module if hasattr(state.model, "module") else state.model  # DDP wraps it
        model: GPT2LMHeadModel = composer_model.model
        dtype = torch.bfloat16 if state.precision == Precision.AMP_BF16 else torch.float32
        with get_precision_context(state.precision):
            self.result = attention_parity(model, dtype)
        if dist.get_global_rank() == 0:
            print(f"attention parity: {self.result}", flush=True)
        if not self.result.passed:
            raise ParityError(
                f"the {model.config._attn_implementation} attention does not compute this model: {self.result}. "
                "Another version of transformers or of the attention kernel than requirements.txt pins is the usual "
                "cause; nothing was trained."
            )

"""The parity gate: refuse a run whose attention differs from a plain reference implementation with layer scaling."""

from __future__ import annotations

from typing import Any

import torch
from composer import Callback, Logger, State
from composer.core import Precision, get_precision_context
from composer.utils import dist
from transformers import GPT2LMHeadModel

from recipes.modeling.attention import Parity, attention_parity


class ParityError(RuntimeError):
    """The model's attention differs from the reference implementation in recipes/modeling/attention.py."""


class AttentionParity(Callback):
    """Compares the model's attention with the reference implementation, on the device and in the precision of the run.

    Attributes:
        result: result of the last comparison.
    """

    result: Parity | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Compare before the first batch, after the model was sharded and loaded.

        Raises:
            ParityError: the difference is larger than rounding explains.
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
                "The usual cause is a version of transformers or of the attention kernel that differs from "
                "requirements.txt. Nothing was trained."
            )

"""Names and behaviour that differ between releases of transformers."""

from __future__ import annotations

import functools
from typing import Any

import transformers.modeling_utils
from transformers.models.gpt2 import modeling_gpt2

try:
    import transformers.initialization as initialization  # pyright: ignore[reportMissingImports] (of transformers 5)
except ImportError:
    initialization = transformers.modeling_utils

no_init_weights: Any = initialization.no_init_weights  # a context in which weights of new models are not initialised
# Key of a configuration, and argument of functions that load a model. The other name prints a warning or is unknown.
DTYPE = "dtype" if hasattr(transformers.PretrainedConfig, "torch_dtype") else "torch_dtype"


@functools.cache  # so that the function is wrapped once
def mask_without_positions() -> None:
    """Let GPT-2 make its attention mask without checking the positions of the tokens.

    In each forward pass of a training, transformers 5 checks whether positions restart within a sample, which makes the
    CPU wait for the GPU. If they do, it builds a mask of (B, 1, T, T), with which flash attention cannot be used. In
    our samples positions never restart. GPT-2 of transformers 4 does not check, and is left as it is.
    """
    make: Any = getattr(modeling_gpt2, "create_causal_mask", None)
    if make is None:
        return

    def create_causal_mask(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "position_ids": None})

    setattr(modeling_gpt2, "create_causal_mask", create_causal_mask)  # noqa: B010 (transformers 4 has no such name)

"""What differs between releases of transformers, each asked for here and nowhere else."""

from __future__ import annotations

from typing import Any

import transformers.modeling_utils
from transformers.models.gpt2 import modeling_gpt2

try:
    import transformers.initialization as initialization  # pyright: ignore[reportMissingImports] (of transformers 5)
except ImportError:
    initialization = transformers.modeling_utils

no_init_weights: Any = initialization.no_init_weights  # leaves weights as the memory has them
# The key of a configuration, and the argument of what loads a model; the other name warns, or is not known.
DTYPE = "dtype" if hasattr(transformers.PretrainedConfig, "torch_dtype") else "torch_dtype"


def mask_without_positions() -> None:
    """Have GPT-2 make its attention mask without a look at the positions of its tokens.

    transformers 5 looks in each forward pass of a training whether positions start anew within a sample, and makes a
    mask of it: the device is waited for each time, and a mask of (B, 1, T, T) keeps flash attention out. Nothing here
    gives positions that start anew. What GPT-2 of transformers 4 calls, does not look.
    """
    make: Any = getattr(modeling_gpt2, "create_causal_mask", None)
    if make is None or hasattr(make, "without_positions"):
        return

    def create_causal_mask(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "position_ids": None})

    setattr(create_causal_mask, "without_positions", True)  # noqa: B010 (pyright knows no such attribute)
    setattr(modeling_gpt2, "create_causal_mask", create_causal_mask)  # noqa: B010 (nor this one, of transformers 4)

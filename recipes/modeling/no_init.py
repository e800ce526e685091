"""transformers' switch that leaves weights as the memory has them, from where its version keeps it."""

from __future__ import annotations

try:
    from transformers.initialization import no_init_weights  # 5
except ImportError:
    from transformers.modeling_utils import no_init_weights  # 4

__all__ = ["no_init_weights"]

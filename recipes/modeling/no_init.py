"""transformers' switch that leaves weights as the memory has them, from where its version keeps it."""

from __future__ import annotations

from typing import Any

import transformers.modeling_utils

try:
    import transformers.initialization as place  # pyright: ignore[reportMissingImports] (of transformers 5)
except ImportError:
    place = transformers.modeling_utils

no_init_weights: Any = place.no_init_weights

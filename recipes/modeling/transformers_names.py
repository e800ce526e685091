"""What releases of transformers call otherwise, or keep elsewhere."""

from __future__ import annotations

from typing import Any

import transformers.modeling_utils

try:
    import transformers.initialization as initialization  # pyright: ignore[reportMissingImports] (of transformers 5)
except ImportError:
    initialization = transformers.modeling_utils

no_init_weights: Any = initialization.no_init_weights  # leaves weights as the memory has them
# The key of a configuration, and the argument of what loads a model; the other name warns, or is not known.
DTYPE = "dtype" if hasattr(transformers.PretrainedConfig, "torch_dtype") else "torch_dtype"

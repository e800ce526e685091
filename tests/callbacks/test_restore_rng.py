"""A run starts only from a checkpoint whose random state is valid and complete."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from composer.utils import reproducibility

from callbacks.restore_rng import RestoreRNG
from data_prep.common.errors import BadInput


@pytest.mark.parametrize("seed", [0.5, "17", None, True, -1, 2**32, 10**400])
def test_a_seed_that_is_none(seed: Any) -> None:
    state: Any = SimpleNamespace(rank_zero_seed=seed)
    logger: Any = None
    with pytest.raises(BadInput, match=r"the seed of the checkpoint is .*the run resumes from the one before"):
        RestoreRNG().after_load(state, logger)
    RestoreRNG().after_load(SimpleNamespace(rank_zero_seed=17), logger)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
@pytest.mark.parametrize("instead", [None, 3, "text", (), {"a": 1}])
def test_a_random_state_that_is_none(key: str, instead: Any) -> None:
    whole: list[dict[str, Any]] = reproducibility.get_rng_state()
    callback, state, logger = RestoreRNG(), None, None
    callback.rng = [{**whole[0], key: instead}]
    with pytest.raises(BadInput, match="random state of the checkpoint cannot be restored"):
        callback.batch_start(state, logger)  # pyright: ignore[reportArgumentType]
    callback.rng = whole
    callback.batch_start(state, logger)  # pyright: ignore[reportArgumentType]

"""The console prints a loss with its unit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from recipes.finetuning.kinds import KINDS
from recipes.modeling.gpt2 import BioMedLM
from recipes.training.console import Console


@pytest.mark.parametrize("unit", sorted({BioMedLM.loss_unit, *(kind.loss_unit for kind in KINDS.values())}))
def test_the_unit_is_the_models(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer, timestamp = SimpleNamespace(param_groups=[{"lr": 1e-3}]), SimpleNamespace(batch=1, token=64)
    state: Any = SimpleNamespace(model=SimpleNamespace(loss_unit=unit), optimizers=[optimizer], timestamp=timestamp)
    console, logger = Console(1, 2), cast(Any, None)
    for event in (console.init, console.fit_start, console.batch_start):
        event(state, logger)
    console.log_metrics({"loss/train/total": 1.25})
    timestamp.batch = 2
    console.batch_end(state, logger)
    assert f"loss  1.250 {unit} |" in capsys.readouterr().out

"""The environment of processes that run on the no-op CUDA."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import build


@pytest.fixture(scope="session")
def nocuda_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For child processes alone: preloaded beside a real GPU it would train nothing, and say so nowhere."""
    if reason := build.why_not():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    library = build.build(tmp_path_factory.mktemp("nocuda"))
    return {**os.environ, "LD_PRELOAD": str(library)}

"""The no-op CUDA, built once for all tests of this folder."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nocuda_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a child process that has the no-op CUDA preloaded; never of this process."""
    made = runpy.run_path(str(Path(__file__).with_name("build.py")))
    if why := made["why_not"]():
        pytest.skip(why)
    return {**os.environ, "LD_PRELOAD": str(made["build"](tmp_path_factory.mktemp("nocuda")))}

"""The no-op CUDA for child processes, and commands of the recipe that run under it. It is not a GPU."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import warm
from patience import patience_s
from project import ROOT


@pytest.fixture(scope="session")
def nocuda_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a child process that finds one device, which computes nothing. Never set it in this process."""
    builder = runpy.run_path(str(ROOT / "tests/nocuda/build.py"))
    if reason := builder["why_not"]():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    library: Path = builder["build"](tmp_path_factory.mktemp("nocuda"))
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}",
        "OMP_NUM_THREADS": "1",
    }


Command = dict[str, Any]  # `name`, `argv`, `ranks` (1), `code` (expected exit code, 0), `env`, `count_waits`


@pytest.fixture
def run_all(nocuda_env: dict[str, str], tmp_path: Path) -> Callable[[Sequence[Command]], dict[str, str]]:
    """`run_all(commands)` runs commands one after another under the no-op CUDA; name -> output of rank 0."""

    def run(commands: Sequence[Command]) -> dict[str, str]:
        folder = tmp_path / "logs"
        folder.mkdir()
        (folder / "commands.json").write_text(json.dumps(commands))
        # Each block of memory is new and therefore 0, where a kernel would have written.
        env = {**nocuda_env, "NOCUDA_DEVICES": "2", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        script = [str(ROOT / "tests/nocuda/drive.py"), str(folder / "commands.json"), str(folder), str(patience_s())]
        done = warm.run([sys.executable, *script], ROOT, env)
        printed = {}
        for number, command in enumerate(commands):
            logs = sorted(folder.glob(f"{number}-rank*.log"))
            texts = [log.read_text(errors="replace") for log in logs]
            ended = folder / f"{number}.json"
            name, right = command["name"], [command.get("code", 0)] * command.get("ranks", 1)
            assert ended.is_file(), f"{name} did not end\n{done.stdout}\n{done.stderr}\n{''.join(texts)}"
            codes = json.loads(ended.read_text())["codes"]
            assert codes == right, f"{name}: {codes}\n" + "\n".join(texts)
            printed[name] = texts[0]
        print(done.stdout)  # how long each command took
        return printed

    return run

"""Files beside the commands are not mistaken for packages or for Python's own modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from project import ROOT

COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("data_prep", "recipes")
    for path in (ROOT / folder).glob("[!_]*.py")
)
NAMES = ("kernels", "inspect", "evaluate", "datasets", "dataclasses", "json", "tokenizers", "yaml")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, with files beside its commands that are named like other modules and end their importers."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("callbacks", "data_prep", "recipes"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("data_prep", "recipes"):
        for name in NAMES:
            if not (root / folder / f"{name}.py").exists():
                (root / folder / f"{name}.py").write_text(f"raise SystemExit('{folder}/{name}.py was imported')\n")
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_sees_no_file_beside_it(command: str, crowded: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(crowded)}
    done = subprocess.run(
        [sys.executable, crowded / command, "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_nor_do_the_libraries_that_look_for_optional_packages(crowded: Path) -> None:
    """Like transformers: installed modules are found, and others are not."""
    probe = crowded / "recipes/probe.py"
    probe.write_text(
        "import data_prep.common.script_folder\n"
        "import importlib.util, tokenizers\n"
        "print(importlib.util.find_spec('kernels'), tokenizers.__version__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(crowded)}
    done = subprocess.run([sys.executable, probe], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("None 0."), done.stderr

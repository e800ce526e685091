"""Every command prints `--help` at once, because it imports only what it uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from project import COMMANDS, ROOT

# Seconds each: torch alone takes three.
HEAVY = ["composer", "datasets", "lm_eval", "matplotlib", "ray", "streaming", "torch", "transformers"]
SPY = """
import runpy, sys
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
try:
    runpy.run_path({path!r}, run_name="__main__")
finally:
    print("imported:", *sorted(set({heavy!r}) & set(sys.modules)))
"""


def imported(command: str, *arguments: str) -> list[str]:
    """The heavy packages that a command has imported after `--help`."""
    code = SPY.format(root=str(ROOT), argv=[command, *arguments], path=str(ROOT / command), heavy=HEAVY)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout) > 200  # it did print
    return answer.stdout.rpartition("imported:")[2].split()


def test_all_commands_are_found() -> None:
    assert len(COMMANDS) >= 15 and "recipes/train.py" in COMMANDS and "data_prep/shards.py" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert imported(command, "--help") == []


def test_a_dry_run_and_a_plan_import_nothing_heavy() -> None:
    assert imported("recipes/train.py", "yamls/biomedlm-2.7b.yaml", "--dry-run") == []
    assert imported("recipes/plan.py", "yamls/biomedlm-2.7b.yaml", "--gpu", "h100") == []

"""Each stack reads what the other stack has written. The tests need both environments, `.venv` and `.venv-next`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from patience import patience_s
from project import ROOT
from recipes.checkpointing.computed_with import FP32_TOLERANCE, NOT_THE_SAME_BITS

ENVIRONMENTS = {"lock": ROOT / ".venv", "next": ROOT / ".venv-next"}
BATCHES, SAVED_AT = 12, 6  # of on_a_stack.py


def steps(stack: str, *words: str | Path) -> tuple[list[Any], str]:
    """Run steps of on_a_stack.py with the Python of a stack; their results, and all that was printed."""
    done = subprocess.run(
        [ENVIRONMENTS[stack] / "bin/python", ROOT / "tests/helpers/on_a_stack.py", *words], cwd=ROOT, text=True,
        capture_output=True, timeout=patience_s(20),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"made"')]
    return [line["made"] for line in lines], done.stdout


@pytest.fixture(scope="module", params=[("lock", "next"), ("next", "lock")], ids="{0[0]}-{0[1]}".format)
def stacks(request: pytest.FixtureRequest) -> tuple[str, str]:
    for folder in ENVIRONMENTS.values():
        if not (folder / "bin/python").exists():
            missing = f"{folder.name} is not there: make {folder.name}/development"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return request.param


def test_each_reads_what_the_other_made(
    stacks: tuple[str, str], tiny_corpus: Path, tiny_tokenizer: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    one, other = stacks
    mixed, whole = tmp_path / "mixed", tmp_path / "whole"
    for folder in (mixed, whole):
        for name, made in (("corpus", tiny_corpus), ("tokenizer", tiny_tokenizer), ("shards", tiny_shards)):
            shutil.copytree(made, folder / name)

    (made_by_one, begun, uninterrupted, _), _ = steps(
        one, "make", mixed, "begin", mixed, "run", whole, "release", whole
    )
    (made_by_other, read_by_other, resumed, _, written_by_other, written_of_one), printed = steps(
        other, "make", mixed, "read", mixed, "run", mixed, "release", mixed, "write", mixed, "write", whole
    )
    (read_by_one, written_by_one, written_of_own), _ = steps(one, "read", mixed, "write", mixed, "write", whole)

    assert made_by_one == made_by_other, "tokenizers and shards, byte for byte"
    assert made_by_one["tokenizer"].keys() == {"tokenizer.json", "vocab.json", "merges.txt"}
    assert any(".mds" in name for name in made_by_one["shards"])
    (ids,) = {json.dumps(read) for by in (read_by_one, read_by_other) for read in by.values()}
    assert len(read_by_one) == len(read_by_other) == 2 and len(json.loads(ids)[0]) > 2
    assert SAVED_AT <= len(begun) <= SAVED_AT + 1, "the last line may not have been written"
    assert len(resumed) == len(uninterrupted) == BATCHES
    assert [*resumed.values()] == pytest.approx([*uninterrupted.values()], rel=FP32_TOLERANCE)
    assert written_by_one == written_by_other and written_of_own == written_of_one, "the most likely tokens"

    assert f"resuming from {mixed / 'run/checkpoints'}" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("changed since the checkpoint: "))
    assert "versions.torch: " in line and "versions.transformers: " in line and line.endswith(NOT_THE_SAME_BITS)
    assert "within 1e-04 of it" in printed, "the first batch is that of the other stack"

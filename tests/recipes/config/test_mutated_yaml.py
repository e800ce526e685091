"""Whatever a YAML contains, the command prints a plan or names the wrong key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hunting import hunt, hunt_on
from mutations import DEEP, LONG, TEXTS, WORDS, Draw, mutated
from oracle import problems
from project import ROOT

IMPORTED = ("recipes.config.command_line", "recipes.planning.plan_text", "recipes.training.pretraining", "omegaconf")
YAML = (
    (ROOT / "yamls/smoke-cpu.yaml").read_bytes()
    if b"base:" not in (ROOT / "yamls/smoke-cpu.yaml").read_bytes()
    else (ROOT / "yamls/biomedlm-2.7b.yaml").read_bytes()
)
# Values with a special form in YAML, and some that grow.
FORMS = (
    "[" * DEEP + "]" * DEEP, "{a: " * DEEP + "}" * DEEP, "*x", "&x [*x]", "!!python/object/apply:os.system [id]", "? a",
    "${oc.env:HOME}", "${model}", "${a.${b}}", "<<: {a: 1}", "|\n  text", "0o17", "1_000", "12:30:45", "~",
    "2026-01-31", "!!binary aGk=", "\t", "- - - -", "x" * LONG, "1" * LONG,
    "&a [&b [x,x,x,x,x,x,x,x,x], *b, *b, *b, *b, *b, *b, *b, *b]",
)  # fmt: skip
KEYS = (
    "model.n_layer",
    "optimizer.lr",
    "run_name",
    "max_duration",
    "data",
    "callbacks.nan_guard",
    "fsdp",
    "a.b.c",
    "",
    "=",
)
FOUND = {
    "nested 5,000 deep": b"a: " + b"[" * DEEP + b"]" * DEEP,
    "blocks 5,000 deep": b"".join(b" " * n + b"a:\n" for n in range(DEEP)),
    "aliases that grow": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(9)),
    "not UTF-8": b"run_name: \xff\xfe",
    "a number of 200,000 digits": b"seed: " + b"1" * LONG,
}


def find_in(folder: Path) -> Callable[[Draw], list[str]]:
    def find(draw: Draw) -> list[str]:
        content, overrides = YAML, []
        if draw(st.booleans()):
            content = mutated(draw, "run.yaml", YAML)
        if draw(st.booleans()):
            lines = YAML.splitlines()
            number = draw(st.integers(0, len(lines) - 1))
            key = lines[number].partition(b":")[0]
            lines[number] = key + b": " + draw(st.sampled_from(FORMS)).encode()
            content = b"\n".join(lines) + b"\n"
        while draw(st.integers(0, 2)) == 0 and len(overrides) < 4:
            value = draw(st.sampled_from((*FORMS, *WORDS, *TEXTS)))
            if "\0" not in value and "\ud800" not in value and len(value) < LONG:
                overrides.append(f"{draw(st.sampled_from(KEYS))}={value}")
        command = ("recipes/train.py", "run.yaml", "--dry-run", *overrides)
        wrong = problems(command, {"run.yaml": content}, folder / "run", imported=IMPORTED)
        return [f"{content[:3000]!r}, {[text[:200] for text in overrides]}", *wrong] if wrong else []

    return find


def test_whatever_is_in_a_yaml(tmp_path: Path) -> None:
    hunt(find_in(tmp_path), examples=15)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_in_a_yaml(name: str, tmp_path: Path) -> None:
    command = ("recipes/train.py", "run.yaml", "--dry-run")
    assert not problems(command, {"run.yaml": FOUND[name]}, tmp_path / "run", codes=(2,), imported=IMPORTED)


@pytest.mark.chaos
def test_whatever_is_in_a_yaml_for_ten_minutes(tmp_path: Path, outcome: Any) -> None:
    outcome("anything wrong in a YAML", hunt_on({"YAML": find_in(tmp_path)}), "nothing")

"""The installed packages: requirements.in, its lock, and the extras of pyproject.toml agree."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data_prep.common.errors import BadInput
from data_prep.running import workers

ROOT = Path(__file__).parents[1]
ROOMS = ("data_prep", "recipes", "callbacks")
# Packages that a command imports only on demand, in a function that says where to get them.
WHEN_ASKED = ("ray", "gradio", "starlette")


def extras() -> dict[str, set[str]]:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    listed = re.findall(r"^(\w+) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return {name: {canonicalize_name(n) for n in re.findall(r'"([^"]+)"', names)} for name, names in listed}


def wanted(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(Requirement(line).name) for line in lines if line}


def with_dependencies(names: set[str]) -> set[str]:
    """The distributions that these install on this machine."""
    seen: set[tuple[str, str]] = set()
    todo = [(name, "") for name in names]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), extra) for extra in ("", *need.extras)]
    return {name for name, _ in seen}


def imports() -> Iterator[tuple[str, str, bool]]:
    """Each import of other packages: place, package, and whether it is inside a function."""
    for path in (p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            for package in {name.partition(".")[0] for name in names} - {*ROOMS, *sys.stdlib_module_names}:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", package, node.col_offset > 0


def test_the_extras_are_what_requirements_in_says_but_for_development():
    running, heading, development = (
        (ROOT / "requirements.in").read_text().partition("# Development: make test, make check\n")
    )
    assert heading
    parts = extras()
    assert parts["run"] == wanted(running) - {"ray"}
    assert parts["ray"] == {"ray"} and parts["web"] == {"gradio"} <= wanted(development)


def test_each_is_in_the_lock_at_one_version_for_each_python():
    locked = re.findall(r"^([\w.\-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert wanted((ROOT / "requirements.in").read_text()) <= {canonicalize_name(name) for name in locked}
    # In a constraint file, a line without a version has no effect.
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if not line.startswith((" ", "#")))


def test_what_runs_needs_nothing_that_only_development_has():
    brought, distributions = with_dependencies(extras()["run"]), metadata.packages_distributions()
    for place, package, in_function in imports():
        if not {canonicalize_name(name) for name in distributions[package]} & brought:
            asked_for = in_function and package in WHEN_ASKED
            assert asked_for, f"{place} imports {package}, which .venv/installed does not install"


def test_what_is_not_there_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"needs ray, on each machine: make \.venv/development"), workers.connected():
        pass

"""Rooms: imports run one way, no module imports a command, no two files import each other, one page lists all files."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter

from code_map import COMMANDS, FILES, PAGE, code_map, first_line, imported, room_of
from project import ROOT

ROWS = """
data_prep/common
data_prep/files data_prep/running
data_prep/sources data_prep/tasks
data_prep/fetching data_prep/filtering
data_prep/tokenizing data_prep/looking
data_prep/sharding
data_prep
recipes/config recipes/scoring
recipes/modeling recipes/distributed
recipes/planning
recipes/dataloading
recipes/runs
recipes/checkpointing
callbacks
recipes/training
recipes/trials recipes/finetuning
recipes/evaluation recipes/generation
recipes
"""
ROW = {room: row for row, rooms in enumerate(ROWS.split("\n")) for room in rooms.split()}


def test_imports_run_one_way() -> None:
    graph = {module: imported(path) for module, path in FILES.items()}
    assert {room_of(module) for module in graph} == set(ROW)
    wrong = []
    for module, others in graph.items():
        for other in others:
            room, its_room = room_of(module), room_of(other)
            if its_room in COMMANDS or (its_room != room and ROW[its_room] >= ROW[room]):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_a_room_is_said_in_one_line_here_and_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for room in ROW:
        (purpose,) = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(purpose, ast.Expr) and isinstance(purpose.value, ast.Constant), room
        assert f"{room:<22}{purpose.value.value}" in readme, room


def test_a_file_is_said_in_its_first_line_and_on_the_page_of_all() -> None:
    broken = {module: first_line(path) for module, path in FILES.items() if not first_line(path).endswith(".")}
    assert not broken, "first lines that are not whole sentences"
    assert PAGE.read_text(encoding="utf-8") == code_map(), "run: python tests/helpers/code_map.py"


def test_no_file_has_the_name_of_a_package_that_the_stack_may_import() -> None:
    taken = {*sys.stdlib_module_names, "accelerate", "composer", "datasets", "kernels", "streaming", "tokenizers"}
    names = {part for module in FILES for part in module.split("/")}
    assert not taken & names
    # Benchmarks are scripts, so Python puts their folder before the project's own on sys.path.
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not scripts & {*taken, *(module.partition("/")[0] for module in FILES)}


def test_the_map_of_the_tests_has_each_folder_and_its_marks() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(tests[\w/]*)` \| (.+?) \| (\d+) \| (.*?) ?\|$", page, re.MULTILINE)
    marks: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        marked = set(re.findall(r"pytest\.mark\.(chaos|nocuda)", path.read_text()))
        marks.setdefault(path.parent.relative_to(ROOT).as_posix(), set()).update(marked)
    assert [folder for folder, *_ in rows] == sorted(marks)
    assert {folder: set(of.split()) for folder, _, _, of in rows} == marks


def test_data_are_named_by_what_they_are() -> None:
    """A name like `found` does not say whether it holds a match, files or a record."""
    vague = {"found", "told", "here"}
    for folder in ("benchmarks", "callbacks", "data_prep", "recipes", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = {getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname")}
                assert not names & vague, f"{path}:{getattr(node, 'lineno', 0)}: {names & vague}"

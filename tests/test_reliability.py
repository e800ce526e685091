"""Every promise of docs/reliability.md has a test."""

from __future__ import annotations

import ast
import re

from project import ROOT


def test_the_tests_that_it_names_are_there_and_marked_as_it_says() -> None:
    page, named = (ROOT / "docs/reliability.md").read_text(encoding="utf-8"), 0
    for line in page.splitlines():
        path = ""
        for name, test, long in re.findall(r"`(tests/\S+\.py)?::(\w+)`( \(long\))?", line):
            path = name or path
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{path}::{test}"
            marks = [ast.unparse(mark) for mark in functions[test].decorator_list]
            assert ("pytest.mark.chaos" in marks) == bool(long), f"{path}::{test}: {marks}"
            named += 1
    assert named > 20

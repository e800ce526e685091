"""docs/code.md: each file's first line, and the commands that use it. `python tests/helpers/code_map.py` makes it."""

from __future__ import annotations

import ast
from pathlib import Path

from project import ROOT

COMMANDS = ("data_prep", "recipes")  # files that lie directly in these folders
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for folder in ("callbacks", *COMMANDS)
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
}
PAGE = ROOT / "docs/code.md"
HEAD = """# Which file does what

`python tests/helpers/code_map.py` makes this page from first lines and imports of the files, and a test checks it.
Search it for your subject: the file beside it does the work, and the last column names the commands that use the file.
The README lists the rooms in their order; [extending.md](extending.md) shows how to add to them.
"""


def imports(text: str) -> set[str]:
    """Paths of the modules that code imports, anywhere in it; `from a import b` gives both `a` and `a/b`."""
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").replace(".", "/")
            names |= {module, *(f"{module}/{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name.replace(".", "/") for alias in node.names}
    return names


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports."""
    return imports(path.read_text(encoding="utf-8")) & FILES.keys()


def room_of(module: str) -> str:
    """The folder of a module."""
    return module.rpartition("/")[0]


def first_line(path: Path) -> str:
    """First line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def code_map() -> str:
    """The page: one table for each room, commands first."""
    graph = {module: imported(path) for module, path in FILES.items()}
    commands = {module: _reached(module, graph) for module in FILES if room_of(module) in COMMANDS}
    parts = [HEAD]
    for room in sorted({room_of(module) for module in FILES}, key=lambda room: (room not in COMMANDS, room)):
        parts.append(f"\n## {room}\n\n| file | what it is | reached by |\n|---|---|---|\n")
        for module in sorted(module for module in FILES if room_of(module) == room):
            by = [command.rpartition("/")[2] for command, reached in commands.items() if module in reached]
            users = "itself" if room in COMMANDS else "all" if len(by) == len(commands) else ", ".join(sorted(by))
            name = module.rpartition("/")[2]
            parts.append(f"| [{name}.py](../{module}.py) | {first_line(FILES[module])} | {users} |\n")
    return "".join(parts)


def _reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    reached, waiting = set(), [module]
    while waiting:
        for other in graph[waiting.pop()] - reached:
            reached.add(other)
            waiting.append(other)
    return reached


if __name__ == "__main__":
    PAGE.write_text(code_map(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(FILES)} files")

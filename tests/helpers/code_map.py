"""docs/code.md: each file's first line, and the commands that reach it. `python tests/helpers/code_map.py` makes it."""

from __future__ import annotations

import ast
from pathlib import Path

from project import ROOT

COMMANDS = ("data_prep", "recipes")  # what lies in these folders themselves
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for folder in ("callbacks", *COMMANDS)
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
}
PAGE = ROOT / "docs/code.md"
HEAD = """# Which file does what

Made by `python tests/helpers/code_map.py` from the first line of each file and from what imports what; a test holds it.
Search this page for your subject: the file named beside it does the work, for the commands in the last column. How the
rooms stand on each other is in the README; how to add to them, in [extending.md](extending.md).
"""


def imports(text: str) -> set[str]:
    """The modules that code imports, at its top or later, as paths: of `from a import b` both `a` and `a/b`."""
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
    """The folder that a module lies in."""
    return module.rpartition("/")[0]


def first_line(path: Path) -> str:
    """What a file says that it is."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def code_map() -> str:
    """The page: a table a room, commands first."""
    graph = {module: imported(path) for module, path in FILES.items()}
    commands = {module: _reached(module, graph) for module in FILES if room_of(module) in COMMANDS}
    parts = [HEAD]
    for room in sorted({room_of(module) for module in FILES}, key=lambda room: (room not in COMMANDS, room)):
        parts.append(f"\n## {room}\n\n| file | what it is | reached by |\n|---|---|---|\n")
        for module in sorted(module for module in FILES if room_of(module) == room):
            by = [command.rpartition("/")[2] for command, reached in commands.items() if module in reached]
            who = "itself" if room in COMMANDS else "all" if len(by) == len(commands) else ", ".join(sorted(by))
            name = module.rpartition("/")[2]
            parts.append(f"| [{name}.py](../{module}.py) | {first_line(FILES[module])} | {who} |\n")
    return "".join(parts)


def _reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


if __name__ == "__main__":
    PAGE.write_text(code_map(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(FILES)} files")

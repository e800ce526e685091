"""The exit codes in the code and those in the documentation are the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from data_prep.common import exit_codes
from data_prep.common.exit_codes import MEANINGS
from project import ROOT

LEAVING = ("SystemExit", "_exit", "exit")


def documented() -> dict[int, str]:
    """Exit code -> its meaning in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text.partition("| code | meaning | what to do |\n")[2].partition("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:3] for line in table.splitlines()[1:]]
    return {int(code): meaning.strip() for codes, meaning in rows for code in re.findall(r"\d+", codes)}


def test_the_table_and_the_code_agree() -> None:
    meanings = documented()
    assert meanings.keys() == MEANINGS.keys()
    assert [code for code in meanings if not meanings[code].startswith(MEANINGS[code])] == []
    named = {value for value in vars(exit_codes).values() if isinstance(value, int)}
    assert named <= MEANINGS.keys()


def test_no_command_leaves_with_a_code_of_its_own() -> None:
    seen = 0
    for path in (path for folder in ("callbacks", "data_prep", "recipes") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LEAVING and node.args:
                code = node.args[0]
                seen += 1
                if isinstance(code, ast.Constant):
                    assert code.value in MEANINGS, f"{path}:{node.lineno}"
                elif isinstance(code, ast.Name) and code.id.isupper():
                    assert getattr(exit_codes, code.id) in MEANINGS, f"{path}:{node.lineno}"
    assert seen > 8


def test_a_closed_pipe_is_no_traceback() -> None:
    code = (
        "from data_prep.common.errors import run\ndef main():\n  for _ in range(100_000): print('x' * 100)\nrun(main)"
    )
    done = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout and done.stdout.read(10)
    done.stdout.close()
    assert done.wait() == exit_codes.BROKEN_PIPE == 141
    assert done.stderr and done.stderr.read() == b""

"""make quick finds the tests of changed files, and runs them until its time is up, in a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from code_map import FILES
from patience import patience_s
from project import ROOT
from quick import OF_EVERY_MODULE, cheapest_first, find_tests

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
OF_A, OF_ROOMS, OTHER = "tests/data_prep/common/test_a.py", OF_EVERY_MODULE, "tests/test_other.py"
SMALL = {
    OF_A: "from data_prep.common import a\n\n\ndef test_a() -> None:\n    assert a.A == 1\n",
    OF_ROOMS: "def test_rooms() -> None:\n    pass\n",
    OTHER: 'PAGE = "docs/page.md"\n\n\ndef test_other() -> None:\n    from helping import HELP\n\n    assert HELP\n',
}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        (["data_prep/common/a.py"], {OF_A, OF_ROOMS}),
        (["data_prep/common/b.py"], {OF_A, OF_ROOMS}),
        (["data_prep/common/page.html.jinja"], {OF_A, OF_ROOMS}),
        (["recipes/runs/b.py"], {OF_ROOMS}),
        (["tests/helpers/helping.py"], {OTHER}),
        (["tests/data_prep/conftest.py"], {OF_A}),
        (["tests/conftest.py"], {OF_A, OF_ROOMS, OTHER}),
        (["tests/data_prep/common/driven.py"], {OF_A}),
        ([OF_A], {OF_A}),
        (["docs/page.md"], {OTHER}),
        (["docs/other.md"], {OTHER}),
        (["yamls/x.yaml", "LICENSE"], set()),
        (["docs/page.md", "data_prep/common/a.py"], {OF_A, OF_ROOMS, OTHER}),
        (["tests/test_gone.py"], set()),
    ],
)
def test_the_tests_of_what_changed(changed: list[str], tests: set[str]) -> None:
    assert set(find_tests(changed, SMALL)) == tests


def test_a_test_that_cannot_be_read_is_still_run_when_it_changed() -> None:
    assert find_tests([OF_A], {**SMALL, OF_A: "def ("}) == [OF_A]


@pytest.mark.parametrize("folder", ["recipes", "data_prep", "callbacks", "docs", "yamls", "benchmarks"])
def test_a_file_has_tests_and_not_all_there_are(folder: str) -> None:
    paths = [path for path in (ROOT / folder).rglob("[!_]*.*") if path.suffix in (".py", ".md", ".yaml", ".jinja")]
    tests_of = {path: set(find_tests([path.relative_to(ROOT).as_posix()], TEXTS)) - {OF_EVERY_MODULE} for path in paths}
    assert not [path for path in paths if len(tests_of[path]) > len(TEXTS) * 0.8]
    assert len([path for path in paths if tests_of[path]]) > len(paths) * 0.8, [
        path for path in paths if not tests_of[path]
    ]


def test_each_import_is_found() -> None:
    for module, path in FILES.items():
        line = f"from {module.rpartition('/')[0].replace('/', '.')} import {path.stem}"
        for text in (line, f"def test() -> None:\n    import {module.replace('/', '.')} as it\n"):
            assert "tests/test_it.py" in find_tests([f"{module}.py"], {"tests/test_it.py": text}), text


def test_the_cheapest_come_first_and_the_unknown_last() -> None:
    assert cheapest_first(SMALL, {OF_A: 3.0, OTHER: 2.0}, SMALL) == [OTHER, OF_A, OF_ROOMS]
    assert cheapest_first(SMALL, {}, {**SMALL, OTHER: ""})[0] == OTHER


DEAF = """
import time

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_setupnodes():
    try:
        time.sleep(3600)
    except Exception:
        pass
"""


class Clone:
    """A small project under git, with the recipe's own helper."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tests/helpers").mkdir(parents=True)
        for name in ("quick", "code_map", "project"):
            shutil.copy(ROOT / f"tests/helpers/{name}.py", folder / "tests/helpers")
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.write("tests/helpers/helping.py", "HELP = 1\n")
        self.write("data_prep/common/a.py", "A = 1\n")
        self.write(".gitignore", "__pycache__/\n.pytest_cache/\n")
        for name, text in SMALL.items():
            self.write(name, text)
        self.git("init", "--initial-branch", "main")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=self.folder, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--message", "x")

    def quick(self, *words: str) -> tuple[int, str]:
        """The result of make quick: exit code and output."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GIT_"))}
        done = subprocess.run(
            [sys.executable, "tests/helpers/quick.py", *words], cwd=self.folder, text=True, capture_output=True,
            env={**own, "PYTHONPATH": str(self.folder)}, timeout=patience_s(),
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def test_a_clean_tree_says_so_and_what_to_type(clone: Clone) -> None:
    assert clone.quick() == (
        0, "nothing changed against main; make test runs all tests, make quick BASE=HEAD~1 the last commit's\n"
    )  # fmt: skip
    code, output = clone.quick("--base", "nowhere")
    assert code == 2 and "nowhere" in output and "Traceback" not in output
    clone.git("branch", "--move", "trunk")
    assert "nothing changed against HEAD (there is no branch main here)" in clone.quick()[1]
    shutil.rmtree(clone.folder / ".git")
    code, output = clone.quick()
    assert code == 2 and "make test runs all tests" in output and "Traceback" not in output


def test_what_a_branch_has_is_run_committed_or_not(clone: Clone) -> None:
    clone.git("switch", "--create", "mine")
    clone.write("data_prep/common/a.py", "A = 1  # still\n")
    clone.commit()
    clone.write("tests/test_new.py", "def test_new() -> None:\n    pass\n")
    code, output = clone.quick("--seconds", str(patience_s()))
    assert code == 0 and re.search(r"^3 of 3 test files run in \d+ s$", output, re.MULTILINE), output
    assert "2 files changed against main, 3 test files are theirs" in output
    clone.write("data_prep/common/a.py", "A = 2\n")
    code, output = clone.quick("--seconds", str(patience_s()))
    assert code == 1 and "FAILED tests/data_prep/common/test_a.py::test_a" in output, output
    clone.commit()
    clone.git("switch", "main")
    assert "nothing changed" in clone.quick()[1]


def test_when_the_time_is_up_it_says_what_was_left_out(clone: Clone) -> None:
    """The time limit holds whatever the running tests do, and even if they catch the exception that ends them."""
    clone.write(OTHER, "import time\n\n\ndef test_other() -> None:\n    while True:\n        time.sleep(1)\n")
    clone.write(OF_A, "def test_a() -> None:\n    assert False\n")
    clone.write("tests/conftest.py", DEAF)
    code, output = clone.quick("--seconds", "15")
    assert re.search(r"^[012] of 3 test files run in \d+ s; the rest: make test$", output, re.MULTILINE), output
    assert code == int("FAILED" in output), "a failure before the end counts"


def test_make_quick_calls_it() -> None:
    for words, ends in (([], "quick.py"), (["BASE=HEAD~1"], "quick.py --base 'HEAD~1'")):
        command = ["make", "--no-print-directory", "-n", "-o", ".venv/development", "quick", *words]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert printed.strip().endswith(ends)

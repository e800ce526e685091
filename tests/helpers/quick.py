"""`make quick`: the tests of changed files, fastest first, within a minute.

The changed files are those that git lists since the branch left main, with uncommitted changes. Their tests are the
test files that changed, that import or name a changed file, and those in the folder of the same name, such as
`tests/recipes/runs` for `recipes/runs`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import psutil
import pytest

from code_map import imports
from project import ROOT

BUDGET_S = 60.0
# Part of the budget for the end, in which all processes of the tests are killed and pytest-xdist waits for its workers.
ENDING_S = 15.0
AGAIN_S = 1.0  # the exception that ends the tests may be caught by the running code, so it is repeated
BUDGET = "budget"  # name of the plugin
SECONDS = "quick/seconds"  # key in pytest's cache: test file -> longest time in seconds so far
BASES = ("main", "origin/main")
ROOMS = ("callbacks", "data_prep", "recipes")
OF_EVERY_MODULE = "tests/test_rooms.py"


def passed_s() -> float:
    """Seconds since this process began, including its imports."""
    return time.time() - psutil.Process().create_time()


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return done.stdout


def base_of(given: str | None) -> tuple[str, str]:
    """The commit to compare with, and its name.

    Args:
        given: a branch or commit; None: main, or HEAD if there is no main.

    Raises:
        LookupError: this is no git checkout, or the commit does not exist.
    """
    git("rev-parse", "--verify", "HEAD")
    for name in [given] if given else BASES:
        try:
            return git("merge-base", name, "HEAD").strip(), name
        except LookupError:
            if given:
                raise
    return "HEAD", "HEAD (there is no branch main here)"


def changed_since(commit: str) -> list[str]:
    """Files that were changed, removed or added, committed or not, as paths from the root."""
    tracked = git("diff", "--name-only", "--no-renames", "-z", commit, "--")
    new = git("ls-files", "--others", "--exclude-standard", "-z")
    return sorted({name for name in (tracked + new).split("\0") if name})


@functools.cache
def imported_by(text: str) -> set[str]:
    try:
        return imports(text)
    except SyntaxError:  # a file that is being written does not parse; pytest reports where
        return set()


def find_tests(changed: Iterable[str], texts: dict[str, str]) -> list[str]:
    """The test files for the changed files.

    Args:
        changed: paths from the root.
        texts: all test files, path -> content.
    """
    tests, modules, folders, named = set[str](), set[str](), set[str](), set(changed)
    for name in named.copy():
        path = PurePosixPath(name)
        if path.parts[0] in ROOMS:
            modules.add(name.removesuffix(".py"))
            folders.add(f"tests/{path.parent}")
            tests.add(OF_EVERY_MODULE)
        elif path.parts[:2] == ("tests", "helpers"):
            modules.add(path.stem)
        elif path.name == "conftest.py":
            tests |= {test for test in texts if PurePosixPath(test).is_relative_to(path.parent)}
        elif path.parts[0] == "tests" and path.suffix == ".py":
            folders |= set() if path.name.startswith("test_") else {str(path.parent)}
        else:  # a page or a YAML: tests may also go through its whole folder
            named |= {path.name, *([f'"{path.parent}"', f'"{path.parent}/'] if len(path.parts) > 1 else [])}
    for test, text in texts.items():
        near = test in named or str(PurePosixPath(test).parent) in folders
        if near or any(name in text for name in named) or modules & imported_by(text):
            tests.add(test)
    return sorted(tests & texts.keys())


def cheapest_first(tests: Iterable[str], seconds: dict[str, float], texts: dict[str, str]) -> list[str]:
    """In the order of their time on this machine; then files without a time, the shortest first."""
    return sorted(tests, key=lambda test: (test not in seconds, seconds.get(test, 0.0), len(texts[test])))


class Budget:
    """A plugin that ends the tests when the time is up, and knows which test files were finished.

    Args:
        tests: test files to run.
    """

    __name__ = BUDGET

    def __init__(self, tests: Sequence[str]) -> None:
        # Number of tests that have not ended; one for each file until they are counted.
        self.left = dict.fromkeys(tests, 1)
        self.failed = self.cut = False

    def run(self, seconds: float) -> int:
        """Run the tests for this long; pytest's exit code."""
        self.end_s = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self.end)
        try:
            how = ("-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
            return pytest.main([*how, *self.left], plugins=[self])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Start the timer only now, because an interrupted import is reported as an error of the imported module."""
        signal.setitimer(signal.ITIMER_REAL, max(0.1, self.end_s - time.monotonic()), AGAIN_S)

    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        counts = Counter(test.partition("::")[0] for test in ids)
        self.left = {test: counts[test] for test in self.left}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed
        if report.when == "teardown":
            self.left[report.nodeid.partition("::")[0]] -= 1

    def pytest_sessionfinish(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def end(self, *_: object) -> None:
        self.cut = True
        # Workers, and the processes that their tests wait for.
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        pytest.exit("the time is up", returncode=pytest.ExitCode.OK)

    def finished(self) -> int:
        return sum(left <= 0 for left in self.left.values())


def remember(config: pytest.Config, reports: Iterable[object]) -> None:
    """Store how long each test file took, for the order of the next run."""
    took = defaultdict[str, float](float)
    for report in reports:
        if isinstance(report, pytest.TestReport):
            took[report.nodeid.partition("::")[0]] += report.duration
    if took and (cache := getattr(config, "cache", None)):  # the cache can be switched off
        known = cache.get(SECONDS, {})
        seen = {test: round(max(seconds, known.get(test, 0.0)), 2) for test, seconds in took.items()}
        cache.set(SECONDS, known | seen)


def remembered() -> dict[str, float]:
    path = ROOT / ".pytest_cache/v" / SECONDS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="branch or commit to compare with (default main)")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="for everything (default 60)")
    parser.add_argument("--list", action="store_true", help="print the test files, and run none")
    arguments = parser.parse_args(argv)
    try:
        commit, called = base_of(arguments.base)
        changed = changed_since(commit)
    except (LookupError, OSError) as error:
        print(f"error: make quick asks git what changed ({error}); make test runs all tests", file=sys.stderr)
        return 2
    if not changed:
        print(f"nothing changed against {called}; make test runs all tests, make quick BASE=HEAD~1 the last commit's")
        return 0
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
    }
    tests = cheapest_first(find_tests(changed, texts), remembered(), texts)
    print(f"{len(changed)} files changed against {called}, {len(tests)} test files are theirs", flush=True)
    if arguments.list or not tests:
        print(*tests or ["no test imports or names them; make test runs all tests"], sep="\n")
        return 0
    budget = Budget(tests)
    code = budget.run(arguments.seconds - ENDING_S - passed_s())
    took = f"{budget.finished()} of {len(tests)} test files run in {passed_s():.0f} s"
    print(took + ("; the rest: make test" if budget.cut else ""))
    return int(budget.failed or code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED))


if __name__ == "__main__":
    sys.exit(main())

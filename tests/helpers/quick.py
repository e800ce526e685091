"""`make quick`: the tests of what changed, cheapest first, within a minute.

What changed is what git sees between here and where this branch left main, with all that is not committed. Its tests
are the test files that changed, that import or name what changed, and those in the folder of the same name, as
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
ENDING_S = 15.0  # of it, for the end: all that the tests have started is killed, and pytest-xdist waits for its workers
AGAIN_S = 1.0  # what ends the tests is an exception, which whatever runs at that moment may have caught
BUDGET = "budget"  # what the plugin is called
SECONDS = "quick/seconds"  # of pytest's cache: test file -> the most seconds that it was seen to take
BASES = ("main", "origin/main")
ROOMS = ("callbacks", "data_prep", "recipes")
OF_EVERY_MODULE = "tests/test_rooms.py"


def passed_s() -> float:
    """Seconds since this process began, with what it imported first."""
    return time.time() - psutil.Process().create_time()


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return done.stdout


def base_of(said: str | None) -> tuple[str, str]:
    """The commit that is compared with, and what it is called.

    Args:
        said: a branch or commit; None: main, and where there is none HEAD.

    Raises:
        LookupError: this is no checkout of git, or there is no such commit.
    """
    git("rev-parse", "--verify", "HEAD")
    for name in [said] if said else BASES:
        try:
            return git("merge-base", name, "HEAD").strip(), name
        except LookupError:
            if said:
                raise
    return "HEAD", "HEAD (there is no branch main here)"


def changed_since(commit: str) -> list[str]:
    """Files that differ, are gone or are new, committed or not, by their paths from the root."""
    told = git("diff", "--name-only", "--no-renames", "-z", commit, "--")
    new = git("ls-files", "--others", "--exclude-standard", "-z")
    return sorted({name for name in (told + new).split("\0") if name})


@functools.cache
def imported_by(text: str) -> set[str]:
    try:
        return imports(text)
    except SyntaxError:  # of a file that is being written; pytest says where
        return set()


def find_tests(changed: Iterable[str], texts: dict[str, str]) -> list[str]:
    """The test files of what changed.

    Args:
        changed: paths from the root.
        texts: all test files, path -> content.
    """
    found, modules, folders, named = set[str](), set[str](), set[str](), set(changed)
    for name in named.copy():
        path = PurePosixPath(name)
        if path.parts[0] in ROOMS:
            modules.add(name.removesuffix(".py"))
            folders.add(f"tests/{path.parent}")
            found.add(OF_EVERY_MODULE)
        elif path.parts[:2] == ("tests", "helpers"):
            modules.add(path.stem)
        elif path.name == "conftest.py":
            found |= {test for test in texts if PurePosixPath(test).is_relative_to(path.parent)}
        elif path.parts[0] == "tests" and path.suffix == ".py":
            folders |= set() if path.name.startswith("test_") else {str(path.parent)}
        else:  # a page, a YAML: tests go through all of a folder, too
            named |= {path.name, *([f'"{path.parent}"', f'"{path.parent}/'] if len(path.parts) > 1 else [])}
    for test, text in texts.items():
        near = test in named or str(PurePosixPath(test).parent) in folders
        if near or any(name in text for name in named) or modules & imported_by(text):
            found.add(test)
    return sorted(found & texts.keys())


def cheapest_first(tests: Iterable[str], seconds: dict[str, float], texts: dict[str, str]) -> list[str]:
    """By the time that they took here; then those that were not seen yet, the shortest file first."""
    return sorted(tests, key=lambda test: (test not in seconds, seconds.get(test, 0.0), len(texts[test])))


class Budget:
    """A plugin that ends the tests when the time is up, and knows which files came to their end.

    Args:
        tests: files that are run.
    """

    __name__ = BUDGET

    def __init__(self, tests: Sequence[str]) -> None:
        self.left = dict.fromkeys(tests, 1)  # tests that have not ended; until they are counted one each
        self.failed = self.cut = False

    def run(self, seconds: float) -> int:
        """Run them for so long; pytest's exit code."""
        self.end_s = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self.end)
        try:
            how = ("-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
            return pytest.main([*how, *self.left], plugins=[self])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Not before: an import that is cut short is an error of what is imported."""
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
        for process in psutil.Process().children(recursive=True):  # workers, and what their tests wait for
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        pytest.exit("the time is up", returncode=pytest.ExitCode.OK)

    def finished(self) -> int:
        return sum(left <= 0 for left in self.left.values())


def remember(config: pytest.Config, reports: Iterable[object]) -> None:
    """Keep how long each test file took, for the order of the next time."""
    took = defaultdict[str, float](float)
    for report in reports:
        if isinstance(report, pytest.TestReport):
            took[report.nodeid.partition("::")[0]] += report.duration
    if took and (cache := getattr(config, "cache", None)):  # it can be switched off
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
    """Command line; the exit code."""
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

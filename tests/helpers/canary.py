"""`make canary`: install the newest release of every package in an environment aside, and find which one breaks tests.

The packages that requirements.in and overrides-next.txt name are installed without any bounds. If tests fail with all
of the new releases, the failed tests run again for each package, with this package and its dependencies put back to
their releases in requirements-next.txt. If a test then passes, the new release of the package broke it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from project import ROOT

# Tests that a new torch, transformers, Composer, Streaming, tokenizers or wandb has broken before. They take a quarter
# of an hour on two cores.
TESTS = (
    "tests/recipes/modeling", "tests/recipes/training", "tests/recipes/checkpointing/test_checkpoint.py",
    "tests/recipes/checkpointing/test_export.py", "tests/recipes/finetuning/test_finetune.py",
    "tests/recipes/evaluation", "tests/data_prep/sharding/test_shards.py", "tests/data_prep/tokenizing",
    "tests/data_prep/filtering/test_corpus.py",
)  # fmt: skip
UV = Path(sys.executable).with_name("uv")
Versions = Mapping[str, str]  # package -> release


@dataclass(frozen=True)
class Change:
    """A package with its release in the lock and its newest release; None: the package is not needed there."""

    name: str
    locked: str | None
    newest: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.locked or '(none)'} -> {self.newest or '(none)'}"


def run(*command: str | Path) -> str:
    """Run a command in the project's folder, and return what it prints.

    Raises:
        LookupError: the command failed; the message quotes its output.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise LookupError(f"{' '.join(words[:4])} …: {done.stdout.strip()[-2000:]}")
    return done.stdout


def names(path: Path) -> list[str]:
    """The package names of a file of requirements, without bounds but with extras, as in `moto[s3]`."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [re.match(r"[\w.\-]+(\[[^]]*\])?", line)[0] for line in lines if line]  # pyright: ignore[reportOptionalSubscript]


def locked(path: Path) -> dict[str, str]:
    """The releases that a lock has for this Python and this machine."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one in wanted
        if one.marker is None or one.marker.evaluate()
    }


def changes(lock: Versions, newest: Versions) -> list[Change]:
    return [
        Change(name, lock.get(name), newest.get(name))
        for name in sorted({*lock, *newest})
        if lock.get(name) != newest.get(name)
    ]


class Canary:
    """An environment with the newest releases.

    Args:
        folder: folder of the environment, which is removed first.
        requirements: file that names the direct dependencies, such as requirements.in.
        overrides: file that names packages whose bounds in other packages are ignored, such as overrides-next.txt.
        lock: file of the releases that are known to work, such as requirements-next.txt.
        project: folder of a project to install as a link; None: no project.
    """

    def __init__(self, folder: Path, requirements: Path, overrides: Path, lock: Path, project: Path | None) -> None:
        self.folder, self.lock, self.project = folder, locked(lock), project
        self.python, self.newest_file = folder / "bin/python", folder / "requirements.txt"
        self.wanted, self.overridden = names(requirements), [*names(requirements), *names(overrides)]
        self.changes: list[Change] = []

    def resolve(self) -> None:
        """Create the environment, still empty, and find the newest releases that can be installed together."""
        shutil.rmtree(self.folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", "--without-pip", self.folder)
        wanted, overrides = self.folder / "wanted.in", self.folder / "overrides.txt"
        wanted.write_text("\n".join(self.wanted) + "\n", encoding="utf-8")
        overrides.write_text("\n".join(name.partition("[")[0] for name in self.overridden) + "\n", encoding="utf-8")
        run(
            UV, "pip", "compile", "--quiet", "--python", self.python, "--no-header", "--no-annotate",
            "--override", overrides, "--output-file", self.newest_file, wanted,
        )  # fmt: skip
        self.changes = changes(self.lock, locked(self.newest_file))

    def install(self, *requirements: str | Path) -> None:
        run(UV, "pip", "install", "--quiet", "--python", self.python, "--no-deps", *requirements)

    def install_all(self) -> None:
        self.install("--requirement", self.newest_file, *(["--editable", self.project] if self.project else []))

    def failures(self, tests: Sequence[str], show: bool = False) -> set[str]:
        """Run tests, and return pytest's names of those that fail; for a file that cannot be imported, its path.

        Raises:
            LookupError: pytest itself failed.
        """
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        command = [self.python, "-m", "pytest", "-q", "-o", f"cache_dir={cache}", *tests]
        done = subprocess.run(
            command, cwd=ROOT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.STDOUT,
            stdout=None if show else subprocess.PIPE,
        )  # fmt: skip
        if done.returncode not in (0, 1, 2):
            raise LookupError(f"pytest ended with exit code {done.returncode}: {(done.stdout or '')[-2000:]}")
        failed = cache / "v/cache/lastfailed"
        names = set(json.loads(failed.read_text(encoding="utf-8"))) if failed.exists() else set[str]()
        if done.returncode and not names:  # pytest, or a plugin, could not be imported
            raise LookupError(f"pytest ended with exit code {done.returncode}: {(done.stdout or '')[-2000:]}")
        return names

    def needs(self, name: str) -> set[str]:
        """The names of an installed package and of all its dependencies."""
        code = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1]) or []))"
        seen, todo = set[str](), [name]
        while todo:
            if (name := canonicalize_name(todo.pop())) in seen:
                continue
            seen.add(name)
            try:
                required = map(Requirement, json.loads(run(self.python, "-c", code, name)))
            except LookupError:  # a package that this machine does not need
                continue
            todo += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
        return seen

    def causes(self, failed: set[str]) -> Iterator[tuple[Change, set[str]]]:
        """Yield each change that breaks tests, with these tests: they pass when the change is undone."""
        changed = {change.name: change for change in self.changes}
        for change in self.changes:
            if not (change.locked and change.newest):
                continue
            family = [changed[name] for name in sorted(self.needs(change.name) & changed.keys())]
            self.install(*(f"{one.name}=={one.locked}" for one in family if one.locked))
            try:
                mended = failed - self.failures(sorted(failed))
            except LookupError:  # the old release of this package does not work with the new ones of others
                mended = set[str]()
            self.install(*(f"{one.name}=={one.newest}" for one in family if one.newest))
            if mended:
                yield change, mended


def report(canary: Canary, tests: Sequence[str]) -> int:
    """Resolve, install, test and print what broke; return the exit code, which is 1 if tests failed."""
    print("looking up the newest release of each package", flush=True)
    canary.resolve()
    print(f"{len(canary.changes)} of {len(canary.lock)} differ from the lock", *canary.changes, sep="\n  ", flush=True)
    if not canary.changes:
        return 0
    print(f"installing into {canary.folder}", flush=True)
    canary.install_all()
    failed = canary.failures(tests, show=True)
    if not failed:
        print("all tests pass; to lock these releases: make lock LOCK=--upgrade, then make test STACK=next")
        return 0
    print(f"{len(failed)} tests fail; putting back one package at a time", flush=True)
    explained = set[str]()
    for change, mended in canary.causes(failed):
        explained |= mended
        print(f"{change} broke {len(mended)} tests", *sorted(mended), sep="\n  ", flush=True)
    if left := sorted(failed - explained):
        print(f"no single package explains {len(left)} tests", *left, sep="\n  ")
    print("until this is fixed, set a bound in requirements.in, with the reason, to keep the old release")
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tests", nargs="*", default=TESTS, help="files, folders or tests (default: a quarter of an hour)"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".venv-canary", help="its folder, removed first (default .venv-canary)"
    )
    arguments = parser.parse_args(argv)
    try:
        asked, overrides = ROOT / "requirements.in", ROOT / "overrides-next.txt"
        return report(Canary(arguments.folder, asked, overrides, ROOT / "requirements-next.txt", ROOT), arguments.tests)
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

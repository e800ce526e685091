"""`make canary` finds new releases, and the one that breaks a test; here the packages come from a folder."""

from __future__ import annotations

import os
import sysconfig
import zipfile
from pathlib import Path

import pytest

import canary
from canary import Canary, Change, locked, names, report
from project import ROOT

LOCK = "alpha==1.0\n    # via beta\nbeta==1.0\ngamma==1.0\ndelta==1.0 ; python_full_version >= '3.10'\n"


def wheel(folder: Path, name: str, version: str, content: str, needs: str = "") -> None:
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{information}/METADATA": about,
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{information}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in (files | {f"{information}/RECORD": record}).items():
            archive.writestr(path, text)


@pytest.fixture
def bird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    """The canary of a project that needs beta, gamma and delta; beta needs alpha. It uses these tests' pytest."""
    index = tmp_path / "index"
    index.mkdir()
    for version, end in (
        ("1.0", "\n"),
        ("2.0", "  # of another size, or Python would run what it has compiled before\n"),
    ):
        wheel(index, "alpha", version, f"VALUE = {version}{end}")
        wheel(index, "beta", version, f"import alpha\nSUM = alpha.VALUE + {version}{end}", "alpha<2")
        wheel(index, "gamma", version, f"VALUE = {version}{end}")
    wheel(index, "delta", "1.0", "")
    (tmp_path / "requirements.in").write_text("# why\nbeta==1.0  # a pin\ngamma<2\ndelta\n")
    (tmp_path / "overrides.txt").write_text("alpha  # beta says below 2\n")
    (tmp_path / "lock.txt").write_text(LOCK)
    for name, value in {"UV_FIND_LINKS": index, "UV_NO_INDEX": 1, "UV_OFFLINE": 1, "UV_NO_CACHE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join({sysconfig.get_paths()[key] for key in ("purelib", "platlib")}))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(canary, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:xdist -p no:hypothesispytest -p no:anyio\n")
    asked, overrides, lock = (tmp_path / name for name in ("requirements.in", "overrides.txt", "lock.txt"))
    return Canary(tmp_path / ".venv-canary", asked, overrides, lock, None)


def tests(bird: Canary, **lines: str) -> list[str]:
    path = bird.folder.parent / "test_it.py"
    path.write_text("".join(f"def test_{name}():\n    {line}\n\n\n" for name, line in lines.items()))
    return [path.name]


def test_each_failure_is_of_the_package_that_broke_it(bird: Canary, capfd: pytest.CaptureFixture[str]) -> None:
    asked = tests(
        bird,
        gamma="import gamma; assert gamma.VALUE == 1",
        beta="import beta; assert beta.SUM == 2",
        both="import beta, gamma; assert beta.SUM + gamma.VALUE in (3, 6)",
        fine="import delta",
        never="assert False",
    )
    assert report(bird, asked) == 1
    said = capfd.readouterr().out
    assert "3 of 4 differ from the lock\n  alpha 1.0 -> 2.0\n  beta 1.0 -> 2.0\n  gamma 1.0 -> 2.0\n" in said
    assert "gamma 1.0 -> 2.0 broke 1 tests\n  test_it.py::test_gamma\n" in said
    # alpha 1.0 with beta 2.0 makes 3: it is taken back with what it brings, and then passes
    assert "beta 1.0 -> 2.0 broke 1 tests\n  test_it.py::test_beta\n" in said and "alpha 1.0 -> 2.0 broke" not in said
    assert "no single package explains 1 tests\n  test_it.py::test_never\n" in said and "test_fine" not in said
    assert bird.failures(asked) == {f"test_it.py::test_{name}" for name in ("gamma", "beta", "never")}, (
        "all are new again"
    )


def test_nothing_broken_says_how_to_take_them(bird: Canary, capfd: pytest.CaptureFixture[str]) -> None:
    assert report(bird, tests(bird, gamma="import gamma; assert gamma.VALUE == 2")) == 0
    assert capfd.readouterr().out.endswith("make lock LOCK=--upgrade, then make test STACK=next\n")
    bird.lock.update(alpha="2.0", beta="2.0", gamma="2.0")
    assert report(bird, ["not/run"]) == 0 and "0 of 4 differ from the lock" in capfd.readouterr().out


def test_what_cannot_be_resolved_or_run_is_said(bird: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LookupError, match="exit code 4"):
        report(bird, ["tests/gone.py"])
    bird.wanted.append("nowhere")
    with pytest.raises(LookupError, match="nowhere"):
        bird.resolve()


def test_bounds_are_left_out_and_releases_of_other_machines_too(tmp_path: Path) -> None:
    (tmp_path / "wanted").write_text("# no\nmoto[s3]>=5,<6  # why\ns3fs>=2026\n\nray==2.60.0\n")
    assert names(tmp_path / "wanted") == ["moto[s3]", "s3fs", "ray"]
    (tmp_path / "lock").write_text(
        "A_b==1\n    # via c\nd==2 ; python_full_version < '3'\nd==3 ; python_full_version >= '3'\n"
    )
    assert locked(tmp_path / "lock") == {"a-b": "1", "d": "3"}
    assert canary.changes({"a": "1", "b": "1"}, {"a": "2", "c": "1"}) == [
        Change("a", "1", "2"), Change("b", "1", None), Change("c", None, "1")
    ]  # fmt: skip


def test_its_tests_are_there() -> None:
    assert all((ROOT / path).exists() for path in canary.TESTS)

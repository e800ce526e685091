"""The steps of the Dockerfile, run without Docker and without downloads; this builds no image."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOT_OF_AN_IMAGE = (
    ".venv/bin/python",
    ".venv-next/bin/python",
    "data/pubmed/corpus.zst",
    "runs/a/run.json",
    "recipes/__pycache__/a.pyc",
    ".whl/a",
)


def steps() -> list[tuple[str, str]]:
    """The instructions with their arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore excludes a file from the image; only for the two forms that it uses."""
    parts = path.split("/")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        anywhere = line.startswith("**/")
        if any(fnmatch(part, line.removeprefix("**/")) for part in (parts if anywhere else parts[:1])):
            return True
    return False


def tracked() -> list[str]:
    """The files of the checkout."""
    asked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in asked.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("venv", "asked"),
    [
        (".venv", "--constraint requirements.txt --editable .[run]"),
        (".venv-next", "--no-deps --requirement requirements-next.txt --editable ."),
    ],
)
def test_its_steps_end_in_a_checkout_that_plans_a_run(venv: str, asked: str, tmp_path: Path):
    work, tools = tmp_path / "work", tmp_path / "tools"
    work.mkdir()
    tools.mkdir()
    # Instead of downloads: the packages of these tests, and a link to the project's folder.
    places = [str(work), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    (tools / "uv").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nfor site in .venv*/lib/python*/site-packages; do\n'
        f"printf '%s\\n' {shlex.join(places)} > $site/all.pth\ndone\n"
    )
    (tools / "uv").chmod(0o755)
    environment = {
        "VENV": venv, "HOME": str(tmp_path), "LANG": "C.UTF-8",
        "PATH": f"{tools}:{Path(sys.executable).resolve().parent}:/usr/bin:/bin",
    }  # fmt: skip
    is_root = True
    for name, rest in steps():
        if name == "USER":
            is_root = rest in ("root", "0")
        elif name == "ENV":
            for setting in shlex.split(rest.replace("/work", str(work))):
                key, _, value = setting.partition("=")
                environment[key] = value.replace("$PATH", environment["PATH"]).replace("$VENV", venv)
        elif name == "COPY":
            *wanted, to = [part for part in rest.split() if not part.startswith("--")]
            files = [file for file in tracked() if wanted == ["."] or file in wanted]
            assert to in (".", "./") and (wanted == ["."] or len(files) == len(wanted)), rest
            for file in files:
                assert not is_ignored(file), f"{file} is in the checkout and would be missing in the image"
                (work / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, work / file)
        elif name == "RUN" and not is_root:
            ran = subprocess.run(["/bin/sh", "-c", rest], cwd=work, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stdout + ran.stderr
        else:
            assert name in ("ARG", "FROM", "WORKDIR", "CMD", "RUN"), name
    assert not is_root
    assert asked in (tmp_path / "asked").read_text()

    def output_of(*command: str) -> str:
        ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "make smoke" in output_of("make")
    output_of("make", "--question", f"{venv}/installed")  # files of a later layer do not make the target older
    assert output_of("python", "-c", "import recipes; print(recipes.__path__)") == f"['{work}/recipes']\n"
    assert "checkpoints     every 200ba" in output_of("python", "recipes/train.py", "yamls/smoke-cpu.yaml", "--dry-run")


def test_what_is_no_part_of_the_checkout_is_no_part_of_the_image():
    assert all(map(is_ignored, NOT_OF_AN_IMAGE))
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[:1] not in ("", "#")]
    for pattern in ignored:
        assert is_ignored(f"{pattern.replace('*', 'x')}/file"), f".dockerignore lacks {pattern}"


def test_it_is_what_the_cluster_files_start():
    (pod,) = yaml.safe_load((ROOT / "yamls/cluster/kubernetes.yaml").read_text())["spec"]["replicatedJobs"]
    container = pod["template"]["spec"]["template"]["spec"]["containers"][0]
    named = dict(steps())
    assert container["workingDir"] == named["WORKDIR"] and container["image"].endswith("/biomedlm:1")
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    security = pod["template"]["spec"]["template"]["spec"]["securityContext"]
    assert user and security["runAsUser"] == security["fsGroup"] == int(user[1])
    assert f"{named['WORKDIR']}/$VENV/bin" in named["ENV"] and os.sep in named["ENV"]

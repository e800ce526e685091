"""The walk-throughs of docs/extending.md work: their blocks are put into a copy of the repository and run there."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from project import ROOT
from warm import Ended, run

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
# Walk-throughs: heading -> text. The first part of the page is a table.
WALKS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
PRINTED = re.compile(r"^`(\S+)`:\n\n```(python|diff)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COPIED = ("callbacks", "data_prep", "recipes", "tests", "yamls", "docs", "benchmarks")
COPIED += ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile")
# Modules that are slow to import; the commands of the copy are forks of a process that has imported them.
SLOW = ("composer", "pytest", "peft", "streaming", "torch", "transformers", "wandb")
# Overrides for a run of a few seconds on the tiny shards, after the printed command.
SHORT = [
    "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=32",
    "model.n_layer=2", "max_duration=4ba", "scheduler.t_warmup=2ba", "eval_interval=4ba", "save_interval=4ba",
    "loggers.wandb=null",
]  # fmt: skip
# Where the commands of a walk-through show what it added: in a file of the copy, or in the last output.
SHOWN = {
    "A callback": ("runs/smoke/metrics.jsonl", '"loss/train/smoothed": '),
    "A source of text": ("data/pubtator/corpus/manifest.json", '"pubtator"'),
    "A learning-rate schedule": ("", "constant, in the last 0.2 of the run by 1 - sqrt to 0.00015"),
    "A set of questions": ("", "task: mednli"),
    "A kind of task": ("", "task: biosses"),
}


def changed(text: str, diff: str) -> str:
    """Apply a diff: lines with a blank or - must occur once, and are replaced by lines with a blank or +.

    A line `@@` begins another place.
    """
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = [line or " " for line in hunk.splitlines()]
        assert all(line[0] in " +-" for line in lines), hunk
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        if not old.strip():
            raise AssertionError(f"nothing says where this goes:\n{hunk}")
        assert text.count(old) == 1, f"found {text.count(old)} times, not once:\n{old}"
        text = text.replace(old, new)
    return text


def write(walk: str, folder: Path) -> None:
    """Put the blocks of a walk-through into a copy of the repository."""
    for name, kind, block in PRINTED.findall(WALKS[walk]):
        path = folder / name
        assert path.exists() == (kind == "diff"), f"{walk}: {name}"
        path.write_text(changed(path.read_text(), block) if kind == "diff" else block)


def commands(walk: str, of_tests: bool) -> Iterator[list[str]]:
    """The commands of a walk-through: its tests, or the others."""
    for block in re.findall(r"^```bash\n(.*?)^```$", WALKS[walk], re.DOTALL | re.MULTILINE):
        for words in map(shlex.split, block.splitlines()):
            assert words[0] == "python", words
            if (words[1:3] == ["-m", "pytest"]) == of_tests:
                yield words[1:]


def typed(words: list[str], folder: Path) -> Ended:
    """Run a command of the copy with the modules of the copy."""
    if words[:2] == ["-m", "pytest"]:
        code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
        words = ["-c", code, "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tests-of-it"), *words[2:]]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return run([sys.executable, *words], folder, environment, SLOW, starts=30)


def extend(folder: Path, walks: Iterable[str]) -> Path:
    """A copy of the repository with the blocks of some walk-throughs."""
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for walk in walks:
        write(walk, folder)
    done = typed(["tests/helpers/code_map.py"], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with all blocks of the page."""
    return extend(tmp_path_factory.mktemp("extended") / "biomedlm", WALKS)


def test_a_diff_says_where_it_goes() -> None:
    text = "a\nb\nc\nb\n"
    assert changed(text, " a\n+x\n b\n@@\n-c\n") == "a\nx\nb\nb\n"
    for wrong in ("+x\n", " b\n+x\n", " d\n+x\n", " a\n c\n+x\n"):
        with pytest.raises(AssertionError):
            changed(text, wrong)


@pytest.mark.parametrize("walk", WALKS)
def test_it_is_at_most_three_files_and_a_test(walk: str) -> None:
    names = [name for name, _, _ in PRINTED.findall(WALKS[walk])]
    tests = [name for name in names if name.startswith("tests/")]
    assert len(names) == len(set(names)) and 1 <= len(tests) <= 2, "a test, and a line in the tables of other tests"
    assert len(names) - len(tests) <= 3, names
    blocks = len(re.findall(r"^```\w+$", WALKS[walk], re.MULTILINE))
    assert blocks == len(names) + 1, "a block without the name of its file, or more than one block of commands"
    assert any(tests[-1] in words for words in commands(walk, of_tests=True)), f"{tests[-1]} is not run"
    assert list(commands(walk, of_tests=False)), "no command uses it"
    head = PAGE.partition("\n## ")[0]
    anchor = walk.lower().replace(" ", "-")
    assert f"](#{anchor})" in head, f"the table does not link to {walk}"


def test_the_printed_tests_pass_and_the_commands_show_it(
    extended: Path, tiny_shards: Path, tiny_tokenizer: Path
) -> None:
    """One test for all, because its parts share a copy and a process that has imported their modules."""
    data = [f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}"]
    check_style(extended)
    write_inputs(extended)
    pytest_of_all(extended)
    for walk in WALKS:
        output = ""
        for words in commands(walk, of_tests=False):
            more: list[str] = []
            if words[0] == "recipes/train.py":
                more = [*SHORT, *data, *([] if walk == "A callback" else [f"run_name={walk.split()[-1]}"])]
            elif words[0] == "recipes/finetune.py":
                more = ["seq_len=64"]
            elif words[0].startswith("tests/"):
                continue
            done = typed([*words, *more], extended)
            output = done.stdout
            assert done.returncode == 0, f"{words}\n{output[-4000:]}{done.stderr[-4000:]}"
        name, shown = SHOWN[walk]
        assert shown in ((extended / name).read_text() if name else output), walk


def write_inputs(folder: Path) -> None:
    """Make the inputs of the page's commands, beside the tiny shards."""
    draw, files = random.Random(3), folder / "data/pubtator/files"
    files.mkdir(parents=True)
    entries = (f"{n}|t|Title {n}\n{n}|a|Text {draw.random()}\n{n}\t0\t5\tTitle\n\n" for n in range(1, 60))
    (files / "a.pubtator").write_text("".join(entries))
    for name in ("mednli", "biosses"):
        (folder / "data/tasks" / name).mkdir(parents=True)
    for split in ("train", "dev", "test"):
        record = {"pairID": split, "sentence1": "No pain.", "sentence2": f"Of {split}.", "gold_label": "neutral"}
        lines = (json.dumps({**record, "pairID": f"{split}{n}"}) + "\n" for n in range(20))
        (folder / f"data/tasks/mednli/mli_{split}_v1.jsonl").write_text("".join(lines))
        lines = (json.dumps({"source": f"One of {split}. Two of {n}.", "target": str(n / 4)}) + "\n" for n in range(16))
        (folder / f"data/tasks/biosses/{split}.jsonl").write_text("".join(lines))


def check_style(folder: Path) -> None:
    for check in (["format", "--check"], ["check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def pytest_of_all(folder: Path) -> None:
    """Run the tests that the page types for each walk-through, all at once."""
    typed_words = [words[2:] for walk in WALKS for words in commands(walk, of_tests=True)]
    files = sorted({word for words in typed_words for word in words if word.endswith(".py")})
    chosen = [words[words.index("-k") + 1] if "-k" in words else Path(words[0]).stem for words in typed_words]
    done = typed(["-m", "pytest", *files, "-k", " or ".join(chosen), "-rA"], folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    for file in files:
        assert f"PASSED {file}" in done.stdout, f"{file}: no test of it was run"


# The tests of the tables, which the page names.
OF_TABLES = (
    "tests/test_rooms.py", "tests/test_command_lines.py", "tests/callbacks/test_watching.py", "tests/recipes/config",
    "tests/recipes/evaluation/test_contamination.py", "tests/recipes/training/test_schedules.py",
    "tests/recipes/finetuning/test_a_new_kind.py", "tests/recipes/finetuning/test_model_card.py",
    "tests/data_prep/tasks", "tests/data_prep/sources",
)  # fmt: skip


@pytest.mark.chaos
@pytest.mark.parametrize("walk", WALKS)
def test_each_alone_leaves_the_tests_of_the_tables_as_they_were(walk: str, tmp_path: Path) -> None:
    folder = extend(tmp_path / "biomedlm", [walk])
    check_style(folder)
    done = typed(["-m", "pytest", *OF_TABLES], folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

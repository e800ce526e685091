"""Every block of commands on the pages runs as printed, or a comment before it says why no test runs it.

The text of the block is typed, byte for byte, into `bash -e` in a clone of the project (`scratch_clone`), so the block
fails at its first failing line. The clone is small: it has little data, small runs and models, and YAMLs with the usual
names and a few settings that make a run short. A block that is about the YAMLs themselves (a plan of the 2.7B) gets the
original YAMLs, and no data. `python` and `composer` are forks of a process that has imported torch (`warm_python`);
with `as_users_do`, nothing is replaced.

Other blocks have `<!-- not run: REASON -->` before them. Blocks of more than 20 s run with `make chaos`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pages import DATA_OF, MARK, PAGES, RUN_BY, Block, blocks, blocks_of
from project import ROOT
from scratch_clone import copy_project, make_runs, make_small, type_in
from warm_python import Warm


@dataclass(frozen=True)
class Run:
    """How a block is run, and its required result.

    Attributes:
        page: page of the block.
        begins: beginning of the block.
        makes: files that exist afterwards.
        says: regular expressions that match its output.
        fresh: files and folders of the clone that are removed before, because the block makes them.
        before: commands that are typed before it, if the page says what must exist.
        whole: whether the clone has the original YAMLs, and only the project.
        long: whether `make chaos` runs it.
        as_users_do: whether the environment's own `python` and `composer` are used.
    """

    page: str
    begins: str
    makes: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    before: str = ""
    whole: bool = False
    long: bool = False
    as_users_do: bool = False


SHARDS, MODEL = "data/{}/manifest.json", "runs/{}/model/model.safetensors"
TUNE = "python recipes/finetune.py yamls/finetune/pubmedqa.yaml model=biomedlm seed={}\n"
PLAN = (r"memory|GB", r"\$|cost|price")
RUNS = (
    Run("README.md", "make smoke", ("runs/smoke/report.html", MODEL.format("smoke"), "runs/smoke/samples.json"),
        (r"bits per byte +1\.\d",), whole=True, long=True, as_users_do=True),
    Run("README.md", "make shards SOURCE=text INPUT=notes SEQ_LEN=256", (MODEL.format("own-text"),),
        (r"\[The first words of a text\]",)),
    Run("README.md", "make shards\n", ("runs/smoke-gpu/checkpoints",), fresh=("data/sample",), long=True),
    Run("README.md", "make shards SOURCE='medline pmc'", (SHARDS.format("pubmed/shards"),), fresh=("data/pubmed",)),
    Run("README.md", "make plan", says=PLAN, whole=True),
    Run("README.md", "make shards SOURCE=text INPUT=notes TOKENIZER=biomedlm", ("runs/domain/checkpoints",)),
    Run("README.md", "python recipes/export.py", ("released/README.md",), (r"\[Photosynthesis is\]",)),
    Run("README.md", "python recipes/finetune.py --describe", (MODEL.format("pubmedqa-17"),), ("pubmedqa",)),
    Run("README.md", "python recipes/evaluate.py", ("scores/results.json",), (r"mmlu.*\d",)),
    Run("README.md", "python recipes/report.py", ("runs/biomedlm-2.7b/report.html",), ("finished",)),
    Run("docs/cluster.md", ". .venv/bin/activate", says=(*PLAN, "128"), whole=True, long=True),
    Run("docs/cluster.md", "python recipes/sweep.py", says=(r"(?m)^ *71\b",)),
    Run("docs/configuration.md", "python recipes/train.py", says=(r"lr: 0\.0002", "wandb: null", "next: ")),
    Run("docs/continue.md", "grep", says=(r'"last": "\d{4}',)),
    Run("docs/continue.md", "make shards SOURCE=medline", ("runs/refresh/checkpoints",),
        fresh=("data/refresh", "runs/refresh"), long=True),
    Run("docs/continue.md", "for run in", tuple(f"exported/{run}-on-{text}/results.json"
        for run in ("biomedlm-125m", "refresh") for text in ("pubmed", "refresh")), long=True),
    Run("docs/data.md", "make shards SOURCE=pile", (SHARDS.format("pubmed/shards"),), fresh=("data/pubmed",),
        long=True),
    Run("docs/data.md", "make shards SOURCE='medline pmc'", (SHARDS.format("pubmed/shards"),),
        fresh=("data/pubmed",), long=True),
    Run("docs/data.md", "make shards SOURCE=medline", (
        SHARDS.format("medline/shards"), SHARDS.format("pmc/shards"), SHARDS.format("text/shards-256")), long=True),
    Run("docs/data.md", "make shards CORPUS", (SHARDS.format("sample/shards"),), fresh=("data/sample",), long=True),
    Run("docs/data.md", "python data_prep/look.py", ("data/sample/corpus-look.html",), (": 50 documents",)),
    Run("docs/evaluation.md", "mkdir", ("scores/results.json", MODEL.format("mine-17")), long=True),
    Run("docs/finetuning.md", "python recipes/evaluate.py --runs", ("scores/results.json",),
        before=TUNE.format(1) + TUNE.format(2), long=True),
    Run("docs/finetuning.md", "python recipes/sweep.py", says=(r"(?m)^ *71\b",)),
    Run("docs/ladder.md", "make ladder", says=(r"ladder-1\.3b .*\d",), whole=True),
    Run("docs/ladder.md", "make shards SEQ_LEN=256", ("runs/ladder-tiny/ladder.html",), fresh=("data/sample",),
        long=True),
    Run("docs/own-text.md", "make shards SOURCE=text INPUT=notes SEQ_LEN=256", (MODEL.format("own-text"),),
        (r"\[The first words of a text\]",), long=True),
    Run("docs/own-text.md", ".venv/bin/composer", (MODEL.format("own-text-gpu"),),
        before="make shards SOURCE=text INPUT=notes SEQ_LEN=256", long=True),
    Run("docs/own-text.md", "make shards SOURCE=text INPUT=notes TOKENIZER=biomedlm", ("runs/domain/checkpoints",),
        long=True),
    Run("docs/training.md", "python recipes/train.py", says=(*PLAN, "128"), whole=True, long=True),
    Run("docs/training.md", "python recipes/report.py", ("a-and-b.html", "spike.html"), ("docs/runs.md",)),
    Run("docs/training.md", "python recipes/export.py", ("biomedlm/README.md",), fresh=("biomedlm",)),
)  # fmt: skip
OF_COMMANDS = [block for page in PAGES for block in blocks(page) if block.is_of_commands and block.page not in RUN_BY]


def how(run: Run) -> Block:
    """The block of a row of `RUNS`."""
    mine = [block for block in OF_COMMANDS if block.page == run.page and block.text.startswith(run.begins)]
    begun = [block for block in mine if block.mark is None]
    assert len(begun) == 1, f"{run.page}: {len(begun)} blocks without a mark begin with {run.begins!r}"
    return begun[0]


def test_every_block_is_run_or_says_why_not() -> None:
    run = {how(run).commands for run in RUNS}  # equal blocks on several pages are run once
    for block in OF_COMMANDS:
        if block.mark is None:
            assert block.commands in run, f"{block.place}: add it to RUNS, or put <!-- not run: REASON --> before it"
    for page, test in RUN_BY.items():
        assert Path(page).name in test.read_text(encoding="utf-8")
    places = [how(run).place for run in RUNS]
    assert len(set(places)) == len(RUNS) > 25


def test_a_mark_stands_before_a_block_and_has_a_reason() -> None:
    for page in PAGES:
        on_page = list(blocks(page))
        marks = MARK.findall(page.read_text(encoding="utf-8"))
        assert marks == [block.mark for block in on_page if block.mark is not None and block.is_of_commands], page
        for mark in marks:
            reason = re.fullmatch(r": (\S+( \S+)+) ", mark)
            assert reason, f"{page}: '<!-- not run{mark}-->' gives no reason"
            for path in re.findall(r"(?:tests|docs|benchmarks)/[\w/.]*\w", reason[1]):
                assert (ROOT / path).exists(), f"{page}: {path}"
        for block in on_page:
            assert block.is_of_commands or block.kind in DATA_OF, f"{block.place}: {block.kind}"


def test_blocks_and_marks_are_found_however_they_are_written() -> None:
    text = (
        "<!-- not run: so -->\n```\na\n```\n<!-- not run: x y -->\ntext\n~~~bash\nb\n~~~\n"
        "- item\n\n  ```sh\n  c # why\n  ```\n````text\n```\nd\n```\n````\n"
    )
    in_text = list(blocks_of(text, "page"))
    assert [(block.kind, block.line, block.mark, block.commands) for block in in_text] == [
        ("", 2, ": so ", "a"), ("bash", 7, None, "b"), ("sh", 12, None, "c"), ("text", 15, None, "```\nd\n```"),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short, and tmp_path is long
        answering = Warm(Path(folder))
        yield answering
        answering.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """The small clone, made once for all workers of pytest; each test uses a copy."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-clone"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            copy_project(folder)
            warm.write(folder / ".venv/bin")
            make_small(folder)
            make_runs(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.mark.parametrize("run", [
    pytest.param(run, id=how(run).place, marks=[pytest.mark.chaos] * run.long) for run in RUNS
])  # fmt: skip
def test_a_block_ends_in_what_it_is_for(run: Run, warm: Warm, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    clone = tmp_path / "biomedlm"
    if run.whole:
        clone.mkdir()
        copy_project(clone)
    else:
        shutil.copytree(request.getfixturevalue("small"), clone, symlinks=True)
    if not run.as_users_do:
        warm.write(clone / ".venv/bin")
    for name in run.fresh:
        shutil.rmtree(clone / name)
    before = type_in(clone, run.before)
    assert before.code == 0, before.output
    assert not any((clone / name).exists() for name in run.makes), "it exists before the block makes it"
    ended = type_in(clone, how(run).text)
    assert ended.code == 0, f"{how(run).place}\n{ended.output}"
    for name in run.makes:
        assert (clone / name).exists(), f"{how(run).place} did not make {name}\n{ended.output}"
    for text in run.says:
        assert re.search(text, ended.output), f"{how(run).place} did not say {text}\n{ended.output}"

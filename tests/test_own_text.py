"""The blocks of docs/own-text.md, typed into an empty clone as printed, end in a model of own text."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.filtering.corpus_format import read_documents
from last_line import next_command
from project import ROOT
from recipes.config.loading import load_config
from scratch_clone import write_notes
from warm import Ended, run

BLOCK, ON_A_GPU, _ = re.findall(r"```\n(.*?)```", (ROOT / "docs/own-text.md").read_text(encoding="utf-8"), re.DOTALL)
# The training of the page takes minutes; other tests cover what is left out.
SHORT = ["max_duration=2ba", "scheduler.t_warmup=1ba", "eval_interval=1ba", "data.num_workers=0", "loggers.wandb=null"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git tracks, and a folder of notes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "recipes", "data_prep", "callbacks", "yamls"):
        (folder / name).symlink_to(ROOT / name)
    write_notes(folder / "notes")
    return folder


def commands(line: str, folder: Path) -> list[list[str]]:
    """Commands of a line of the block, with this Python; trainings are shortened."""
    if line.startswith("make"):
        dry = line.replace("make", "make --no-print-directory -n -o .venv/installed PYTHON=none", 1)
        printed = subprocess.run(["bash", "-c", dry], cwd=folder, capture_output=True, text=True, check=True).stdout
        return [words for each in printed.splitlines() for words in commands(each, folder)]
    words = shlex.split(line)
    assert words[0] == ".venv/bin/python", line
    return [[sys.executable, *words[1:], *(SHORT if words[1] == "recipes/train.py" else [])]]


@pytest.fixture(scope="module")
def ended(clone: Path) -> dict[str, Ended]:
    by_command = {}
    for line in BLOCK.splitlines():
        for command in commands(line, clone):
            by_command[command[1]] = done = run(command, clone)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return by_command


def test_the_block_ends_in_a_model_that_writes(clone: Path, ended: dict[str, Ended]) -> None:
    assert list(ended) == [
        "data_prep/corpus.py", "data_prep/tokenizer.py", "data_prep/shards.py",
        "recipes/train.py", "recipes/export.py", "recipes/generate.py",
    ]  # fmt: skip
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (clone / "runs/own-text/model").iterdir()
    }
    assert "[The first words of a text]" in ended["recipes/generate.py"].stdout


def test_the_model_has_the_vocabulary_of_the_text_and_the_plan_says_what_it_is_too_little_for(
    clone: Path, ended: dict[str, Ended]
) -> None:
    entries = json.loads((clone / "data/text/tokenizer/manifest.json").read_text())["tokenizer"]["vocab_size"]
    assert json.loads((clone / "runs/own-text/model/config.json").read_text())["vocab_size"] == entries < 28_896
    assert f"a vocabulary of {entries:,} entries" in ended["data_prep/tokenizer.py"].stdout
    assert "too little text" in ended["recipes/train.py"].stdout


def test_each_command_says_the_next_one(clone: Path, ended: dict[str, Ended]) -> None:
    """Each command prints the next one of the block; commands that only read name another command."""
    following = list(ended)[1:]
    for command, done in ended.items():
        words = next_command(done.stdout, clone)
        assert command == "recipes/generate.py" or words[1] == following.pop(0)
    for command in (
        ["data_prep/verify.py", "--shards", "data/text/shards-256"],
        ["recipes/report.py", "runs/own-text"],
        ["recipes/train.py", "yamls/own-text-cpu.yaml", "seed=3", "--dry-run"],
        ["recipes/plan.py", "yamls/own-text-gpu.yaml", "--gpu", "a10"],
    ):
        done = run([sys.executable, *command], clone)
        assert done.returncode == 0, done.stderr
        words = next_command(done.stdout, clone)
        assert words[1] != command[0] or "--dry-run" in command, words


def test_it_is_asked_to_go_on_as_texts_of_val_begin(clone: Path, ended: dict[str, Ended]) -> None:
    texts = [" ".join(document.text.split()) for document in read_documents(clone / "data/text/corpus", "val")]
    written = [json.loads(line) for line in (clone / "runs/own-text/texts.jsonl").read_text().splitlines()]
    prompts = {line["prompt"] for line in written}
    assert len(prompts) == 3
    for prompt in prompts:
        assert len(prompt.split()) > 1 and any(" ".join(prompt.split()) in text for text in texts), prompt


def test_the_gpu_reads_the_same_shards_and_its_block_names_its_own_run() -> None:
    cpu, gpu = (load_config(ROOT / f"yamls/own-text-{kind}.yaml") for kind in ("cpu", "gpu"))
    assert (cpu.data.shards, cpu.data.tokenizer, cpu.data.seq_len) == (
        gpu.data.shards, gpu.data.tokenizer, gpu.data.seq_len,
    )  # fmt: skip
    train, export = ON_A_GPU.splitlines()
    assert train.endswith("recipes/train.py yamls/own-text-gpu.yaml")
    assert f"--checkpoint {gpu.run_dir} --out {gpu.run_dir}/model" in export
    assert gpu.device is None and gpu.precision == "amp_bf16"

"""A clone of the project into which tests type blocks of commands, with little data and small runs.

It holds the files that git tracks, and
- `.venv`: this environment, by links;
- a sample of a few hundred real records instead of 33,255 (PYTHONPATH precedes the installed package);
- `yamls/X.yaml` with few settings: its base is `X-whole.yaml`, the original, and it makes the run small, with a few
batches of a narrow model on the CPU;
- what a user of the block has made before: text, question sets, shards, runs and a model, made by the same commands.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import zstandard

from patience import patience_s
from project import ROOT

STAMPS = ("installed", "development", "chromium")  # stamps of finished installations, so that make does not install
RECORDS = 400  # of the first file of the sample; half as many more get new dates
NEW_YEAR, NOTICE = "2027", "© 2021 The Society. All rights reserved."
_RUN = """
device: cpu
precision: fp32
data: {num_workers: 0, num_canonical_nodes: 1}
max_duration: 2ba
global_train_batch_size: 2
device_train_microbatch_size: 2
device_eval_batch_size: 2
scheduler: {t_warmup: 1ba}
eval_interval: 2ba
eval_subset_num_batches: 1
save_interval: 2ba
world_size: 1
loggers: {wandb: null}
"""
_PRETRAINING = _RUN + "callbacks: {memory_monitor: null, generate_samples: {max_new_tokens: 2}}\n"
_NARROW = _PRETRAINING + "model: {vocab_size: null, n_embd: 16, n_layer: 2, n_head: 2}\n"
_TUNING = """
preset: cpu
max_duration: 2ba
global_train_batch_size: 2
device_train_microbatch_size: 2
device_eval_batch_size: 8
eval_interval: 2ba
save_interval: 2ba
seq_len: 128
"""
NAMES = ("biomedlm-2.7b", "biomedlm-125m", "smoke-cpu", "smoke-gpu", "own-text-cpu", "own-text-gpu")
SMALL = {
    **dict.fromkeys(NAMES, _NARROW),
    "continue/domain": _PRETRAINING,  # the shape comes from the model that is continued
    "finetune/pubmedqa": _TUNING,
}


@dataclass(frozen=True)
class Typed:
    """The result of a text that was typed into a shell.

    Attributes:
        code: exit code of the first line that failed, or 0.
        output: stdout and stderr.
    """

    code: int
    output: str


def copy_project(folder: Path) -> Path:
    """Copy the project's files, with uncommitted changes, and link this environment as its `.venv`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # without files that were removed meanwhile
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    environment = folder / ".venv"
    (environment / "bin").mkdir(parents=True)
    for path in (*Path(sys.prefix).iterdir(), *(Path(sys.prefix) / "bin").iterdir()):
        place = environment / path.relative_to(sys.prefix)
        if path.name not in STAMPS and path.name != "bin":
            place.symlink_to(path)
    for name in STAMPS:
        (environment / name).touch()
    return folder


def type_in(folder: Path, text: str, starts: float = 100) -> Typed:
    """Type a text into a shell in the folder, up to the first line that fails.

    Args:
        folder: a clone.
        text: text of a block.
        starts: time limit, in the unit of `patience_s`.
    """
    path = os.pathsep.join([str(folder / ".venv/bin"), os.environ["PATH"]])
    # The clone's modules, not those of the installed project.
    modules = os.pathsep.join([str(folder / ".cache/small"), str(folder)])
    env = {**os.environ, "PATH": path, "PYTHONPATH": modules, "HF_HUB_OFFLINE": "1", "MAKEFLAGS": ""}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text], cwd=folder, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patience_s(starts),
    )  # fmt: skip
    return Typed(done.returncode, done.stdout)


def make_small(clone: Path) -> None:
    """Add small YAMLs, a small sample, and the text and questions that a user has before the first command."""
    for name, settings in SMALL.items():
        path = clone / f"yamls/{name}.yaml"
        whole = path.with_name(f"{path.stem}-whole.yaml")
        path.rename(whole)
        path.write_text(f"base: {whole.name}\n{settings}")
    _small_sample(clone / ".cache/small")
    _published(clone / "data", clone / ".cache/small/data")
    write_notes(clone / "notes")
    _questions(clone)


def make_runs(clone: Path) -> None:
    """Make shards, a run and its model by the project's own commands, and copy them to the names that blocks use."""
    made = type_in(
        clone,
        "make shards\nmake shards SEQ_LEN=256\ncp -r data/sample data/pubmed\n"
        "python recipes/train.py yamls/biomedlm-2.7b.yaml\n"
        "python recipes/export.py --checkpoint runs/biomedlm-2.7b --out biomedlm\n",
    )
    assert made.code == 0, made.output
    for name in ("smoke", "a", "b", "biomedlm-125m", "refresh"):
        shutil.copytree(clone / "runs/biomedlm-2.7b", clone / "runs" / name)
    shutil.copytree(clone / "data/pubmed", clone / "data/refresh")


def _small_sample(folder: Path) -> None:
    from data_prep.sources import sample

    (folder / "data").mkdir(parents=True)
    first, *_ = sample.paths(".xml.gz")
    old, _ = _records(Path(first))
    articles = [Path(path) for path in sample.paths(".nxml")]
    for path in articles:
        shutil.copy(path, folder / "data")
    (folder / "data" / Path(first).name).write_bytes(old)
    about = folder / f"{sample.PACKAGE}-0.5.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {sample.PACKAGE}\nVersion: 0.5.1\n")
    names = [f"data/{path.name}" for path in (*articles, Path(first))]
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def _records(file: Path) -> tuple[bytes, bytes]:
    """Two compressed files of PubMed's first records, and the next records with dates of a later year.

    Each abstract gets an added notice, so that a rule changes a document.
    """
    count = RECORDS + RECORDS // 2
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        text = "".join(itertools.islice(lines, count * 300))
    head, *records = re.split(r"(?=<PubmedArticle>)", text)[: count + 1]
    assert len(records) == count and all("</PubmedArticle>" in record for record in records)
    records = [record.replace("</AbstractText>", f" {NOTICE}</AbstractText>", 1) for record in records]
    new = [re.sub(r"<Year>\d+<", f"<Year>{NEW_YEAR}<", record) for record in records[RECORDS:]]
    old, new = (
        gzip.compress("".join([head, *some, "</PubmedArticleSet>\n"]).encode()) for some in (records[:RECORDS], new)
    )
    return old, new


def _published(data: Path, sample_files: Path) -> None:
    """Files of PubMed, PMC and the Pile, as if downloaded by acquire.py."""
    from data_prep.sources import sample

    for name in ("medline", "pmc", "pile"):
        (data / f"{name}/files").mkdir(parents=True)
    for path in sample_files.iterdir():
        shutil.copy(path, data / ("pmc" if path.suffix == ".nxml" else "medline") / "files")
    _, new = _records(Path(sample.paths(".xml.gz")[0]))
    (data / "medline/files/pubmed27n0001.xml.gz").write_bytes(new)
    texts = [f"Abstract {n} says that {n * n} cells grew in {n + 3} days. " * 12 for n in range(200)]
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": "PubMed Abstracts"}}) for text in texts]
    (data / "pile/files/00.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))


def write_notes(folder: Path) -> None:
    """Texts that suffice for a batch and a sample of val."""
    folder.mkdir()
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghiklmnoprstu", k=draw.randint(2, 9))) for _ in range(800)]
    for n in range(30):
        text = "\n".join(" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(24))
        (folder / f"{n}.txt").write_text(text)


def _questions(clone: Path) -> None:
    """`questions.csv`, and PubMedQA and MMLU in their published formats under data/tasks."""
    tasks = clone / "data/tasks"
    records = {
        str(100 + n): {"QUESTION": f"Does drug {n} work?", "CONTEXTS": ["Aim.", "Results."], "final_decision": label}
        for n, label in enumerate(("yes", "no", "maybe") * 20)
    }
    ids = list(records)
    fold = tasks / "pubmedqa/pqal_fold0"
    fold.mkdir(parents=True)
    for path, content in (
        (tasks / "pubmedqa/ori_pqal.json", records),
        (tasks / "pubmedqa/test_ground_truth.json", {id_: records[id_]["final_decision"] for id_ in ids[:10]}),
        (fold / "train_set.json", {id_: records[id_] for id_ in ids[10:50]}),
        (fold / "dev_set.json", {id_: records[id_] for id_ in ids[50:]}),
    ):
        path.write_text(json.dumps(content))
    (tasks / "mmlu/test").mkdir(parents=True)
    with (tasks / "mmlu/test/anatomy_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Which is a bone?", "femur", "aorta", "liver", "skin", "A"]])
    with (clone / "questions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([f"How is case {n}?", ("mild", "severe")[n % 2]] for n in range(60))
    (clone / "eval_pmids.tsv").write_text("".join(f"{id_}\n" for id_ in ids))
    shutil.copy(tasks / "pubmedqa/ori_pqal.json", clone / "pubmedqa.json")
    (clone / "medmcqa").mkdir()
    options = {"opa": "femur", "opb": "aorta", "opc": "liver", "opd": "skin"}
    record = {"question": "Which of these is a bone of the leg?", "cop": 1, "id": "1", "choice_type": "single"}
    (clone / "medmcqa/dev.json").write_text(json.dumps({**record, **options}) + "\n")

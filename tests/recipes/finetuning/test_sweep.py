"""A sweep resumes after a kill, names failed runs, chooses by dev alone, and scores test once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import warm
from data_prep.common.errors import BadInput
from holder import Holder
from last_line import next_command
from patience import patience_s
from project import ROOT
from recipes import finetune, sweep
from recipes.evaluation.over_seeds import evaluate_runs
from recipes.finetuning import sweep as grid
from recipes.runs import processes
from recipes.runs.signals import STOP_SIGNALS

WORDS = ["cyt", "gen", "hep", "lip", "myo", "neu", "ro", "thro"]
GRID = {"optimizer.lr": [1e-6, 3e-3], "seed": [1, 2]}
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def base(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 600, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1,
        "bos_token_id": 599, "eos_token_id": 599, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "model"
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(base: Path, tmp_path: Path) -> Arguments:
    """`arguments(grid, "key=value", …)`: command line of a sweep of short runs on a CPU, with 160 questions."""
    draw, data = random.Random(1), tmp_path / "data/medmcqa"
    data.mkdir(parents=True)
    for split, n in (("train", 160), ("dev", 40)):
        lines = []
        for i in range(n):
            options = draw.sample(WORDS, 4)
            right = draw.randrange(4)
            named = dict(zip(("opa", "opb", "opc", "opd"), options, strict=True))
            question = {"id": f"{split}{i}", "question": f"Which is {options[right]}?", "cop": right + 1}
            lines.append(json.dumps(question | named) + "\n")
        (data / f"{split}.json").write_text("".join(lines))

    def make(grid: Any, *more: str) -> list[str]:
        path = tmp_path / "toy-sweep.yaml"
        path.write_text(json.dumps({"base": str(ROOT / "yamls/finetune/medmcqa.yaml"), "grid": grid}))
        shared = [] if "max_duration" in grid else ["max_duration=8ep"]
        if "global_train_batch_size" not in grid:
            shared.append("global_train_batch_size=16")
        return [
            str(path), *shared, f"model={base}", f"data={tmp_path / 'data'}", f"run_dir={tmp_path / 'sweep'}",
            "preset=cpu", "seq_len=64", "warmup_share=0.1",
            "eval_interval=1000ba", "save_interval=50ba", "callbacks.console.interval=1000ba",
            "stall_timeout_s=null", *more,
        ]  # fmt: skip

    return make


class Forked:
    """Replaces the process of a run, with the same command line."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        Forked.started.append(list(command))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.process = warm.Started(command, folder, None, file, file)
        self.wait = self.process.wait

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Forked]]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    Forked.started.clear()
    monkeypatch.setattr(processes, "start", Forked)
    yield Forked
    for number, handler in handlers.items():
        signal.signal(number, handler)


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())["scores"]


def test_the_best_by_dev_is_tested_once(
    forked: type[Forked], arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    sweep.command_line(arguments(GRID))
    assert [command[-1] for command in forked.started] == ["score_test=false"] * 4 + ["score_test=true"] * 2
    runs = {path.name: scores(path) for path in (folder / "runs").iterdir()}
    assert len(runs) == 4
    results = json.loads((folder / "results.json").read_text())
    best = results["configurations"][0]
    dev = {
        lr: fmean(runs[f"lr-{lr}_seed-{seed}"]["dev"]["acc"]["value"] for seed in (1, 2)) for lr in ("1e-06", "0.003")
    }
    assert dev["0.003"] > dev["1e-06"] and best["configuration"] == "optimizer.lr=0.003"
    assert best["mean"] == pytest.approx(dev["0.003"]) and results["compared"] == 2
    assert results["configurations"][1]["mean"] == pytest.approx(dev["1e-06"])

    # test: only the best configuration, in the format of evaluate.py --runs
    tested = {name for name, splits in runs.items() if "test" in splits}
    assert tested == {"lr-0.003_seed-1", "lr-0.003_seed-2"} == set(best["runs"])
    assert {path.parent.name for path in folder.rglob("predictions-test.jsonl")} == tested
    each = [runs[name]["test"]["acc"]["value"] for name in sorted(tested)]
    assert results["test"]["acc"]["value"] == pytest.approx(fmean(each))
    table = (folder / "table.md").read_text()
    assert "The best of 2 configurations on dev is optimizer.lr=0.003" in table
    assert "mean of 2 seeds" in table and "*57.3*" in table, "and the published score"
    assert (folder / "dev.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "toy-sweep: 4 runs of 2 configurations" in output and "[4/4] lr-0.003_seed-2: dev acc" in output
    assert next_command(output, tmp_path)[1] == "recipes/report.py"
    loaded = sweep.load_sweep(Path(arguments(GRID)[0]), arguments(GRID)[1:])
    logs = {path.name for path in (folder / "logs").iterdir()}
    assert logs == {f"{number}-{job.name}.log" for number, job in enumerate(loaded.jobs)}, "as --only counts"

    untested = folder / "runs/lr-1e-06_seed-1"
    with pytest.raises(
        BadInput, match=r"lr-1e-06_seed-1 has no scores of test yet: type its command again with score_"
    ):
        evaluate_runs([untested], tmp_path / "scores")

    # typed again, nothing is run; with another grid, test is not scored again
    sweep.command_line(arguments(GRID))
    assert len(forked.started) == 6 and "finished, dev acc" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"(?s)chosen its best and scored test.*run_name"):
        sweep.command_line(arguments({**GRID, "seed": [1, 2, 3]}))
    assert len(forked.started) == 6


def test_a_sweep_that_another_process_runs_is_refused(arguments: Arguments, tmp_path: Path) -> None:
    with Holder(tmp_path / "sweep") as holder:
        sweep.command_line([*arguments(GRID), "--dry-run"])
        with pytest.raises(BadInput, match=rf"(?s){holder.says}.*give this sweep a name"):
            sweep.command_line(arguments(GRID))


def spoil(command: list[str], number: int) -> tuple[str, Path]:
    """Let a run of a sweep fail; its name, and the file that takes the place of a folder."""
    job = grid.load_sweep(Path(command[0]), command[1:]).jobs[number]
    job.folder.mkdir(parents=True)
    record = {"identity": job.identity, "starts": [], "finished": False}
    (job.folder / "run.json").write_text(json.dumps(record))
    (job.folder / "checkpoints").write_text("")
    return job.name, job.folder / "checkpoints"


@pytest.mark.chaos
def test_a_failed_run_is_named_and_the_others_go_on(
    forked: type[Forked], arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments({"seed": [1, 2], "max_duration": ["1ep", "2ep"]})
    name, _ = spoil(command, 1)
    with pytest.raises(SystemExit) as stopped:
        sweep.command_line(command)
    output = capsys.readouterr().out
    assert stopped.value.code == 1 and len(forked.started) == 4
    assert f"[2/4] {name} failed with exit code 1: " in output and "[4/4] seed-2_max_duration-2ep: dev" in output
    assert f"1 of 4 runs failed: {name}\nNothing is chosen yet" in output
    assert not (tmp_path / "sweep/results.json").exists() and not list(tmp_path.rglob("predictions-test.jsonl"))

    # the command with --without-failed: runs are tried again, and then left out
    sweep.command_line([*command, "--without-failed"])
    results = json.loads((tmp_path / "sweep/results.json").read_text())
    assert [c[-1] for c in forked.started[4:]] == ["score_test=false"] + ["score_test=true"] * 2
    assert results["compared"] == 1 and results["left_out"] == [name]
    assert f"Left out because they failed: {name}." in (tmp_path / "sweep/table.md").read_text()


@pytest.mark.chaos
def test_what_failed_is_tried_again(forked: type[Forked], arguments: Arguments, tmp_path: Path) -> None:
    command = arguments({"max_duration": ["1ep", "2ep"]})
    _, bad = spoil(command, 1)
    with pytest.raises(SystemExit):
        sweep.command_line(command)
    bad.unlink()
    sweep.command_line(command)
    assert [c[-1] for c in forked.started] == ["score_test=false"] * 3 + ["score_test=true"]
    assert json.loads((tmp_path / "sweep/results.json").read_text())["compared"] == 2


def test_the_choice_stands_once_test_was_looked_at(
    forked: type[Forked], arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep stopped between choosing and scoring: the same command ends it, and another grid does not."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    command = arguments({"max_duration": ["1ep", "2ep"]})
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "evaluate_runs", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.command_line(command)
    with pytest.raises(BadInput, match="A second choice would be influenced by the test scores"):
        sweep.command_line(arguments({"max_duration": ["1ep", "2ep", "3ep"]}))
    assert len(forked.started) == 3
    sweep.command_line(arguments({"max_duration": ["1ep", "2ep"]}))
    assert len(forked.started) == 3, "a scored test is not scored again"
    assert json.loads((tmp_path / "sweep/results.json").read_text())["test"]["acc"]["n"] == 40


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


@pytest.mark.chaos
def test_a_killed_sweep_goes_on(arguments: Arguments, tmp_path: Path) -> None:
    """SIGKILL during the second run also ends that run; later it resumes from its checkpoint."""
    given = arguments({"max_duration": ["20ba", "400ba"]})
    quick, slow = grid.load_sweep(Path(given[0]), given[1:]).jobs
    assert Forked(quick.command(ROOT / "yamls/finetune/medmcqa.yaml", False), tmp_path / "log", ROOT).wait() == 0
    stamp = (quick.folder / "predictions-dev.jsonl").stat().st_mtime_ns
    command = [sys.executable, str(ROOT / "recipes/sweep.py"), *given]
    # A rank, which this process counts as after other tests trained in it, would end with its parent anyway.
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    deadline_s = time.monotonic() + patience_s()
    while not list(slow.folder.glob("checkpoints/ep*-ba*")) and time.monotonic() < deadline_s:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (child,) = (pid for pid in children if "finetune.py" in Path(f"/proc/{pid}/cmdline").read_text())
    process.kill()
    process.wait()
    while is_running(int(child)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not is_running(int(child)), "no process is left that holds the GPU"
    assert not slow.scores, "the run was killed in the middle"
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=patience_s())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (quick.folder / "predictions-dev.jsonl").stat().st_mtime_ns == stamp, "the first run was not repeated"
    assert len(json.loads((slow.folder / "run.json").read_text())["starts"]) == 2
    batches = [json.loads(line)["batch"] for line in (slow.folder / "metrics.jsonl").read_text().splitlines()]
    assert batches.count(1) == 1 and max(batches) == 400, "the run resumed from a checkpoint"
    assert "[1/1] max_duration-400ba: dev acc" in done.stdout
    assert json.loads((tmp_path / "sweep/results.json").read_text())["test"]["acc"]["n"] == 40


RAY = """
import sys
from recipes import sweep
sweep.command_line(sys.argv[1:])
on_ray = "ray" in sys.modules
from ray._common.usage import usage_lib
print("reports home:", usage_lib.usage_stats_enabled(), "on Ray:", on_ray)
"""


@pytest.mark.chaos
def test_runs_on_ray(arguments: Arguments, tmp_path: Path) -> None:
    """A real Ray on this machine with its own workers, and real processes for the runs."""
    given = arguments({"max_duration": ["20ba", "40ba"]})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", RAY, *given, "--cluster", "ray"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=patience_s(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reports home: False on Ray: True" in done.stdout
    results = json.loads((tmp_path / "sweep/results.json").read_text())
    assert results["compared"] == 2 and results["test"]["acc"]["n"] == 40
    assert len(list((tmp_path / "sweep/runs").rglob("predictions-test.jsonl"))) == 1


def test_no_ray_at_the_address(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments({"seed": [1]})
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/sweep.py"), *given, "--cluster", "ray"],
        capture_output=True, text=True, check=False, timeout=patience_s(),
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 2 and "error: no Ray cluster at 127.0.0.1:1" in done.stderr, done.stderr


@pytest.mark.chaos
def test_preemption_goes_on_to_the_run(forked: type[Forked], arguments: Arguments, tmp_path: Path) -> None:
    given = arguments({"max_duration": ["4000ba"]}, "save_interval=1000ba")
    (job,) = grid.load_sweep(Path(given[0]), given[1:]).jobs

    def preempt() -> None:
        while not (job.folder / "metrics.jsonl").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        sweep.command_line(given)
    assert stopped.value.code == 75 and len(forked.started) == 1
    assert list(job.folder.glob("checkpoints/ep*-ba*")), "it has saved"


def test_one_run_of_the_grid_alone(
    forked: type[Forked], arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a scheduler's job array starts it, this process becomes the run, and no configuration is chosen."""
    become: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: become.append([path, *command[1:]]))
    given = arguments(GRID)
    sweep.command_line([*given, "--only", "2"])
    job = grid.load_sweep(Path(given[0]), given[1:]).jobs[2]
    assert job.values == {"optimizer.lr": 3e-3, "seed": 1}
    assert become == [job.command(ROOT / "yamls/finetune/medmcqa.yaml", score_test=False)]
    assert not forked.started and not (tmp_path / "sweep").exists()
    for number, says in (("4", "--only 4: the grid has 4 runs, 0 to 3"), ("-1", "--only: '-1' must be a whole number")):
        with pytest.raises(BadInput, match=says):
            sweep.command_line([*given, "--only", number])


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"optimizer.lrr": [1e-6]}, r"toy-sweep.yaml: grid: unknown key 'optimizer.lrr'; did"),
        ({"optimizer.lr": []}, "grid: optimizer.lr is an empty list"),
        ({"optimizer.lr": 1e-6}, "grid: optimizer.lr = 1e-06 is not a list"),
        ({"optimizer": {"lr": [1e-6]}}, r"is not a list of values; a key within a section is written a.b"),
        ({"optimizer.lr": ["fast"]}, "optimizer.lr = 'fast', but it must be a number above 0"),
        ({"optimizer.lr": [1e-6, 0.000001]}, "two runs of the grid are the same"),
        ({"seed": [1, 2, 1]}, "two runs of the grid are the same"),
        ({"progress_bar": [True, False]}, "two runs of the grid are the same"),
        ({"optimizer.lr": [-1.0]}, "optimizer.lr = -1.0, but it must be a number above 0"),
        ({"global_train_batch_size": [16, 1000]}, "fewer than one batch of 1000"),
        ({"task": ["medqa"]}, "task cannot differ between the runs"),
        ({"seq_len": [32, 64]}, "seq_len is in the grid of .* and also after the YAML"),
        ({}, "`grid` must hold keys with lists"),
        ([1], "`grid` must hold keys with lists"),
    ],
)
def test_bad_grids_die_before_anything_starts(
    grid: Any, says: str, forked: type[Forked], arguments: Arguments, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        sweep.command_line(arguments(grid))
    assert not forked.started and not (tmp_path / "sweep").exists()


def test_bad_sweeps(arguments: Arguments, tmp_path: Path) -> None:
    given = arguments({"seed": [1]})
    for content, says in (
        ("grid: {seed: [1]}", "`base` is missing"),
        (
            "base: x.yaml\ngrid: {seed: [1]}\noptimizer: {lr: 1}",
            "unknown key 'optimizer'; a sweep holds `base` and `grid`",
        ),
        ("base: absent.yaml\ngrid: {seed: [1]}", "absent.yaml: No such file"),
    ):
        Path(given[0]).write_text(content)
        with pytest.raises(BadInput, match=says):
            sweep.command_line(given)
    given = arguments({"seed": [1]})
    with pytest.raises(BadInput, match="a sweep itself scores test"):
        sweep.command_line([*given, "score_test=true"])
    with pytest.raises(BadInput, match=r"holds a grid of runs: python recipes/sweep.py"):
        finetune.command_line(given)
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/sweep.py"), *arguments({"sead": [1]})],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "did you mean 'seed'" in done.stderr


def test_the_published_grid(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run lists 72 runs on 450 questions, and their cost."""
    folder = tmp_path / "pubmedqa"
    (folder / "pqal_fold0").mkdir(parents=True)
    labels = ("yes", "no", "maybe")
    records = {
        str(i): {"QUESTION": "Does it?", "CONTEXTS": [f"cyt {i}"], "final_decision": labels[i % 3]} for i in range(510)
    }
    ids = list(records)
    files = {
        "ori_pqal.json": records,
        "test_ground_truth.json": {i: records[i]["final_decision"] for i in ids[500:]},
        "pqal_fold0/train_set.json": {i: {} for i in ids[:450]},
        "pqal_fold0/dev_set.json": {i: {} for i in ids[450:500]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    yaml = ROOT / "yamls/finetune/pubmedqa-sweep.yaml"
    given = [str(yaml), f"model={base}", f"data={tmp_path}", "preset=cpu", "seq_len=64"]
    sweep.command_line([*given, "--dry-run"])
    output = capsys.readouterr().out
    assert "pubmedqa-sweep: 72 runs of 24 configurations, in runs/pubmedqa-sweep" in output
    assert next_command(output, ROOT)[1:] == ["recipes/sweep.py", *given]
    jobs = sweep.load_sweep(yaml, given[1:]).jobs
    rows = re.findall(r"^ +(\d+)  (lr-\S+)", output, re.MULTILINE)
    assert rows == [(str(number), job.name) for number, job in enumerate(jobs)] and len(rows) == 72
    batches = 2 * 3 * sum(epochs * (450 // size) for epochs in (5, 10, 20, 50) for size in (8, 16, 32))
    assert f"total: 72 runs, {batches:,} batches" in output
    assert "lr-5e-06_global_train_batch_size-32_max_duration-50ep_seed-3" in output

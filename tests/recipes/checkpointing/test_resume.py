"""Runs that are killed, stopped, damaged or stuck, in their own processes; long ones are marked `chaos`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from callbacks.checkpoint_writer import FILES_PER_RANK
from callbacks.preemption import SAME_INTERRUPT_S
from data_prep.common.exit_codes import BAD_NUMBERS, INTERRUPTED, PREEMPTED, STALLED
from data_prep.files import json_lines
from data_prep.sharding.build_shards import build_shards
from data_prep.sharding.shard_format import read_documents
from data_prep.sources.document import ABSTRACTS, Document
from data_prep.tokenizing.training import build_tokenizer
from patience import patience_s, start_s
from project import ROOT
from recipes.checkpointing.checkpoint import complete_checkpoints
from recipes.dataloading import skipped_data
from recipes.runs.reading import LR, TRAIN_LOSS, read_run

FINGERPRINT = "data/batch_fingerprint"
NO_DROPOUT = ["model.attn_pdrop=0", "model.resid_pdrop=0", "model.embd_pdrop=0"]
DROPOUT = ["model.attn_pdrop=0.1", "model.resid_pdrop=0.1", "model.embd_pdrop=0.1"]

Run = Callable[..., subprocess.CompletedProcess[str]]
Outcome = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def make_command(tiny_shards: Path, tiny_tokenizer: Path) -> Callable[..., list[str]]:
    """`make_command(folder, "key=value", …, ranks=2, faults=[…])`: a run of 60 batches in `folder`, 46 per epoch."""

    def make(folder: Path, *more: str, ranks: int = 1, faults: list[str] | None = None) -> list[str]:
        launcher = [sys.executable]
        if ranks > 1:
            launcher = [str(Path(sys.executable).with_name("composer")), "-n", str(ranks)]
        script = ["tests/helpers/inject.py", *faults, "--"] if faults else ["recipes/train.py"]
        return [
            *launcher, *script, "yamls/smoke-cpu.yaml",
            f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={folder}",
            "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
            "model.n_layer=3", "max_duration=60ba", "global_train_batch_size=8", "device_train_microbatch_size=4",
            "scheduler.t_warmup=5ba", "optimizer.lr=3e-3", "eval_interval=20ba", "save_interval=8ba",
            "save_num_checkpoints_to_keep=3", "loggers.wandb=null", f"stall_timeout_s={patience_s(3)}", *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def command(make_command: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """`make_command` for a run folder in `tmp_path`, given by its name."""
    return lambda name, *more, **options: make_command(tmp_path / name, *more, **options)


@pytest.fixture
def run(command: Callable[..., list[str]]) -> Run:
    """`run("name", …, code=0)` runs it to its end and compares the exit code."""
    return lambda name, *more, code=0, **options: run_to_end(command(name, *more, **options), code)


def run_to_end(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = warm.run(command, ROOT)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def whole(make_command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one rank with dropout."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_to_end(make_command(folder, *DROPOUT))
    return folder


@pytest.fixture(scope="module")
def whole_on_two(make_command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of two ranks with dropout."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run_to_end(make_command(folder, *DROPOUT, ranks=2))
    return folder


def metric(folder: Path, name: str) -> dict[int, float]:
    """A metric by batch; if a batch was computed twice, the later value."""
    return dict(read_run(folder).series[name])


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, samples, final weights and optimizer state are equal bit for bit."""
    assert metric(one, FINGERPRINT) == metric(other, FINGERPRINT)
    assert metric(one, TRAIN_LOSS) == metric(other, TRAIN_LOSS)
    files = [complete_checkpoints(folder / "checkpoints")[-1] for folder in (one, other)]
    assert files[0].name == files[1].name
    if (files[0] / "rank0.pt").is_file():
        states = [torch.load(path / "rank0.pt", weights_only=False)["state"] for path in files]  # made by this test
        assert_equal(states[0]["model"], states[1]["model"])
        assert_equal(states[0]["optimizers"], states[1]["optimizers"])
    else:
        for part in sorted(path.name for path in files[0].glob("*.distcp")):
            assert tensors(files[0], part) == tensors(files[1], part)


def tensors(checkpoint: Path, part: str) -> dict[str, bytes]:
    """Raw bytes of each model and optimizer entry in the file of one rank."""
    import pickle

    index = pickle.loads((checkpoint / ".metadata").read_bytes())  # made by this test
    data = (checkpoint / part).read_bytes()
    return {
        str(key): data[entry.offset : entry.offset + entry.length]
        for key, entry in index.storage_data.items()
        if entry.relative_path == part and key.fqn.startswith(("state.model", "state.optimizers"))
    }


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def kill_at_random_moments(command: list[str], folder: Path, kills: int, seed: int) -> int:
    """Start the run again and again, and send SIGKILL each time, until it was killed so often; its batches so far."""
    draw = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        lines_before = count_lines(folder)
        # Half of the kills come after some batches, half at any time from the start of the process.
        batches, seconds = draw.randint(1, 12), draw.uniform(0.1, 3.5) * start_s()
        by_batches, deadline_s = draw.random() < 0.5, time.monotonic() + patience_s()
        begin_s = time.monotonic()
        while process.poll() is None and time.monotonic() < deadline_s:
            if count_lines(folder) - lines_before > batches if by_batches else time.monotonic() - begin_s > seconds:
                break
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return count_lines(folder)


def recomputed(folder: Path) -> str:
    """The number of batches that were computed more than once."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    batches = [json.loads(line)["batch"] for line in lines if TRAIN_LOSS in line]
    return f"{len(batches) - len(set(batches))} batches, computed again"


def count_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.chaos
def test_killed_three_times_it_is_the_same_run(
    outcome: Outcome, whole: Path, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """SIGKILL of the whole process group, with dropout and two loader workers, across the end of an epoch."""
    settings = [*DROPOUT, "data.num_workers=2"]
    kill_at_random_moments(command("killed", *settings), tmp_path / "killed", kills=3, seed=4)
    run("killed", *settings)
    assert len(read_run(tmp_path / "killed").starts) >= 2
    assert_same_run(whole, tmp_path / "killed")
    names = [path.name for path in complete_checkpoints(tmp_path / "killed/checkpoints")]
    assert names == ["ep1-ba48", "ep1-ba56", "ep1-ba60"], "the newest three are kept"
    outcome(
        "SIGKILL at three random moments, one rank",
        "the uninterrupted run, bit for bit",
        recomputed(tmp_path / "killed"),
    )


def test_preempted_on_two_ranks_it_goes_on_bit_for_bit(
    outcome: Outcome, whole_on_two: Path, run: Run, tmp_path: Path
) -> None:
    """After SIGTERM to rank 1 alone, under the launcher, both ranks save and ask to be started again."""
    done = run("left", *DROPOUT, ranks=2, faults=["SIGTERM:1:13"], code=PREEMPTED)
    assert "preempted after batch 13" in done.stdout
    assert [p.name for p in complete_checkpoints(tmp_path / "left/checkpoints")] == ["ep0-ba8", "ep0-ba13"]
    done = run("left", *DROPOUT, ranks=2, faults=["flip:1:0"], code=2)
    assert "ep0-ba13: 1 of" in done.stdout + done.stderr and "exp_avg of model.transformer" in done.stdout + done.stderr
    done = run("left", *DROPOUT, ranks=2)
    assert "tensors of weights and moments are equal to the saved ones, bit for bit" in done.stdout
    assert read_run(tmp_path / "left").starts == [0, 13]
    assert_same_run(whole_on_two, tmp_path / "left")
    outcome("SIGTERM to rank 1 of 2", "saved, exit code 75, the same run", recomputed(tmp_path / "left"))


@pytest.mark.chaos
def test_signals_in_evaluation_saving_and_start_up(
    outcome: Outcome, whole: Path, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    faults = (["SIGUSR1:0:5"], ["eval-SIGTERM:0:20"], ["save-SIGTERM:0:32"])
    for fault, saved in zip(faults, ("ep0-ba5", "ep0-ba20", "ep0-ba32"), strict=True):
        run("left", *DROPOUT, faults=fault, code=PREEMPTED)
        assert complete_checkpoints(tmp_path / "left/checkpoints")[-1].name == saved
    process = subprocess.Popen(command("left", *DROPOUT), cwd=ROOT, stdout=subprocess.DEVNULL)
    await_handler(process, signal.SIGTERM)  # at this time the process imports its libraries
    process.terminate()
    assert process.wait(patience_s()) == PREEMPTED
    run("left", *DROPOUT)
    assert_same_run(whole, tmp_path / "left")
    outcome(
        "signals in training, evaluation, saving, start-up", "exit code 75, the same run", recomputed(tmp_path / "left")
    )


def in_the_foreground() -> None:
    """Enable Ctrl-C in a new process, because background jobs of a shell ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def await_output(file: Path, text: str, process: subprocess.Popen[Any]) -> None:
    deadline_s = time.monotonic() + patience_s()
    while text not in file.read_text():
        assert process.poll() is None and time.monotonic() < deadline_s, file.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_ctrl_c_saves_and_says_what_to_type(
    outcome: Outcome, run: Run, command: Callable[..., list[str]], tmp_path: Path, ranks: int
) -> None:
    """A terminal signals launcher, ranks and workers at once; Composer's launcher then sends SIGTERM, too."""
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command("left", "data.num_workers=1", ranks=ranks), cwd=ROOT, stdout=file, stderr=file,
            start_new_session=True, preexec_fn=in_the_foreground,
        )  # fmt: skip
    await_lines(process, tmp_path / "left", 5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(patience_s()) == INTERRUPTED
    output = log.read_text()
    batch = int(complete_checkpoints(tmp_path / "left/checkpoints")[-1].name.split("ba")[-1])
    assert f"interrupted after batch {batch}: saved, exit code 130; the same command resumes from here" in output
    assert "Ctrl-C again ends it at once" in output
    if ranks == 1:  # with two ranks, Composer's launcher prints its own traceback
        assert "Traceback" not in output, output
    run("left", "data.num_workers=1", ranks=ranks)
    assert read_run(tmp_path / "left").starts == [0, batch]
    outcome(f"Ctrl-C, {ranks} ranks", "saved, exit code 130", recomputed(tmp_path / "left"))


@pytest.mark.chaos
def test_ctrl_c_before_there_is_anything_to_save_and_twice(command: Callable[..., list[str]], tmp_path: Path) -> None:
    log = tmp_path / "log"
    for moment in ("start", "save"):
        with log.open("w") as file:
            slow = ["hang:0:3"] if moment == "save" else None
            process = subprocess.Popen(
                command("left", faults=slow), cwd=ROOT, stdout=file, stderr=file, preexec_fn=in_the_foreground
            )
        if moment == "start":
            await_handler(process, signal.SIGUSR1)
            process.send_signal(signal.SIGINT)
            expected = "interrupted: type the same command to resume"
        else:
            await_output(log, "hangs", process)
            process.send_signal(signal.SIGINT)
            await_output(log, expected := "Ctrl-C again ends it at once", process)
            time.sleep(SAME_INTERRUPT_S)
            process.send_signal(signal.SIGINT)
        assert process.wait(patience_s()) == INTERRUPTED
        assert expected in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
        assert not complete_checkpoints(tmp_path / "left/checkpoints")


@pytest.mark.chaos
def test_a_damaged_checkpoint_is_passed_over(outcome: Outcome, whole: Path, run: Run, tmp_path: Path) -> None:
    run("left", *DROPOUT, faults=["SIGTERM:0:20"], code=PREEMPTED)
    newest = tmp_path / "left/checkpoints/ep0-ba20/rank0.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = run("left", *DROPOUT)
    assert f"ignored a checkpoint: {newest}" in done.stdout and "ep0-ba16" in done.stdout
    assert_same_run(whole, tmp_path / "left")
    outcome("newest checkpoint truncated", "named, the one before it used, the same run", recomputed(tmp_path / "left"))


def test_one_rank_two_ranks_one_rank(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    """Each batch has the same samples; the losses agree to rounding, which 60 steps amplify."""
    run("whole", *NO_DROPOUT)
    run("moved", *NO_DROPOUT, faults=["SIGTERM:0:10"], code=PREEMPTED)
    run("moved", *NO_DROPOUT, ranks=2, faults=["SIGTERM:0:30"], code=PREEMPTED)
    run("moved", *NO_DROPOUT)
    assert read_run(tmp_path / "moved").starts == [0, 10, 30]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert metric(moved, FINGERPRINT) == metric(whole, FINGERPRINT)
    assert metric(moved, TRAIN_LOSS) == pytest.approx(metric(whole, TRAIN_LOSS), abs=1e-4)
    outcome("1 -> 2 -> 1 ranks", "the same samples a batch, losses within 1e-4", recomputed(moved))


def await_handler(process: subprocess.Popen[Any], number: int) -> None:
    """Wait until the process handles that signal."""
    deadline_s = time.monotonic() + patience_s()
    while process.poll() is None:
        caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def await_lines(process: subprocess.Popen[Any], folder: Path, lines: int) -> None:
    deadline_s = time.monotonic() + patience_s()
    while count_lines(folder) < lines:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.chaos
def test_ranks_do_not_outlive_their_launcher(
    outcome: Outcome, whole_on_two: Path, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """After SIGKILL of the launcher alone, both ranks save and leave."""
    launch = command("orphaned", *DROPOUT, "data.num_workers=1", ranks=2)
    launcher = subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_lines(launcher, tmp_path / "orphaned", 5)
    ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(ranks) == 2
    launcher.kill()
    launcher.wait()
    deadline_s = time.monotonic() + patience_s(3)
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() < deadline_s, "a rank continues without its launcher"
        time.sleep(0.05)
    saved = complete_checkpoints(tmp_path / "orphaned/checkpoints")[-1]
    run("orphaned", *DROPOUT, "data.num_workers=1", ranks=2)
    start = read_run(tmp_path / "orphaned").starts[-1]
    assert 0 < start < 60 and saved.name.endswith(f"-ba{start}")
    assert_same_run(whole_on_two, tmp_path / "orphaned")
    outcome(
        "SIGKILL of the launcher of 2 ranks", "both save and leave, the same run", recomputed(tmp_path / "orphaned")
    )


@pytest.mark.chaos
def test_a_signal_to_all_processes_at_once(
    outcome: Outcome, whole: Path, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Slurm's --signal=USR1 reaches the whole step: the rank, the workers of the loaders and Python's helpers."""
    launch = command("left", *DROPOUT, "data.num_workers=2")
    process = subprocess.Popen(launch, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    await_lines(process, tmp_path / "left", 5)
    os.killpg(process.pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=patience_s())
    assert process.returncode == PREEMPTED and "resource_tracker" not in errors, errors
    run("left", *DROPOUT, "data.num_workers=2")
    assert_same_run(whole, tmp_path / "left")
    outcome("SIGUSR1 to all processes of a rank", "saved, exit code 75, the same run", recomputed(tmp_path / "left"))


@pytest.mark.chaos
def test_a_signal_to_the_launcher_reaches_the_ranks(
    outcome: Outcome, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A scheduler stops the launcher, which passes on the exit code of the ranks."""
    launch = command("left", "data.num_workers=1", ranks=2)
    launcher = subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_lines(launcher, tmp_path / "left", 5)
    launcher.terminate()
    assert launcher.wait(patience_s()) == PREEMPTED
    saved = complete_checkpoints(tmp_path / "left/checkpoints")[-1]
    run("left", "data.num_workers=1", ranks=2)
    start = read_run(tmp_path / "left").starts[-1]
    assert 0 < start < 60 and saved.name.endswith(f"-ba{start}")
    outcome("SIGTERM to the launcher of 2 ranks", "saved, exit code 75", recomputed(tmp_path / "left"))


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.chaos
def test_one_process_a_run_folder(
    outcome: Outcome, whole: Path, run: Run, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A second start is refused while the first runs, and accepted at once after a kill, even if workers are left."""
    settings = [*DROPOUT, "data.num_workers=2"]
    first = subprocess.Popen(command("run", *settings, faults=["hang:0:10"]), cwd=ROOT, stdout=subprocess.DEVNULL)
    await_lines(first, tmp_path / "run", 9)
    workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    before = (tmp_path / "run/run.json").read_bytes()
    done = run("run", *settings, code=2)
    assert f"another process is writing {tmp_path / 'run'} (pid {first.pid} on host" in done.stderr
    assert (tmp_path / "run/run.json").read_bytes() == before
    for worker in workers:  # a worker that outlives its rank
        os.kill(int(worker), signal.SIGSTOP)
    first.kill()
    first.wait()
    run("run", *settings)
    for worker in workers:
        if alive(worker):
            os.kill(int(worker), signal.SIGKILL)
    assert_same_run(whole, tmp_path / "run")
    outcome("a second start beside the first", "refused with code 2 and its pid", "nothing")


def test_a_rank_on_another_disk_ends_the_run_before_it_begins(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("run", ranks=2, faults=["own-disk:1:0"], code=2)
    assert done.stderr.count("rank 1 of 2 does not see the files that rank 0 wrote there") == 1
    assert not (tmp_path / "run/metrics.jsonl").exists()
    outcome("a run folder that rank 1 does not share", "refused with code 2", "nothing")


@pytest.mark.chaos
def test_no_checkpoint_lacks_a_part(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("run", "on_save_error=stop", ranks=2, faults=["lose-part:1:16"], code=1)
    assert "ep0-ba16 was not written (BadInput: __1_0.distcp is missing or incomplete" in done.stderr
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["ep0-ba8"]
    outcome("rank 1's part of a checkpoint is lost", "not published, exit code 1", "batches since the last checkpoint")


@pytest.mark.chaos
def test_a_nan_on_one_rank_skips_the_step_on_all(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("nan", *NO_DROPOUT, ranks=2, faults=["nan:1:7"])
    assert "batch 7 has NaN or Inf and was skipped; training samples [" in done.stdout
    losses = metric(tmp_path / "nan", TRAIN_LOSS)
    assert [batch for batch, loss in losses.items() if loss != loss] == [7]
    assert metric(tmp_path / "nan", "guard/skipped_batches") == {7: 1}
    outcome("NaN loss on rank 1 of 2", "step skipped on both, samples printed", "1 batch")


def test_three_bad_batches_in_a_row_end_the_run(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("nan", faults=["nan:0:10", "nan:0:11", "nan:0:12"], code=BAD_NUMBERS)
    assert "3 bad batches in a row, up to batch 12" in done.stdout
    assert complete_checkpoints(tmp_path / "nan/checkpoints")[-1].name == "ep0-ba8"
    outcome("NaN in three batches in a row", "exit code 3, samples printed", "nothing that was saved")


SPIKES = [f"callbacks.spike_guard.{key}" for key in ("window_batches=10", "patience_batches=3", "min_rise=0.5")]


@pytest.mark.chaos
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_spike_is_rewound_and_its_data_left_out(
    outcome: Outcome, run: Run, tmp_path: Path, tiny_shards: Path, ranks: int
) -> None:
    """Four batches of noise from batch 28 on: at batch 30 the spike is certain, and the run rewinds to batch 24."""
    done = run("spike", *DROPOUT, *SPIKES, ranks=ranks, faults=["noise:0:28"])
    assert "warning: loss spike: batches 28 to 30" in done.stdout and "back to batch 24" in done.stdout
    assert read_run(tmp_path / "spike").starts == [0, 24]
    whole = tmp_path / "whole"
    run("whole", *DROPOUT, "callbacks.spike_guard=null", ranks=ranks)
    expected, fingerprints = metric(whole, FINGERPRINT), metric(tmp_path / "spike", FINGERPRINT)
    assert [fingerprints[batch] for batch in range(1, 25)] == [expected[batch] for batch in range(1, 25)]
    # Of six skipped batches, three were noise; the fourth noisy one is still read, but alone is no spike. The epoch
    # ends at 40, not 46.
    assert [fingerprints[batch] for batch in range(25, 55)] == [expected[batch] for batch in range(31, 61)]
    assert metric(tmp_path / "spike", TRAIN_LOSS)[60] < 5.5

    (entry,) = skipped_data.read(tmp_path / "spike")
    assert entry["windows"] == [(0, 24 * 8, 30 * 8)] and entry["samples"] == 48 and entry["to_batch"] == 24
    details = [record for _, record in json_lines.read(tmp_path / "spike" / entry["details"])]
    samples = [record["sample"] for record in details if "sample" in record]
    documents = {record["document"] for record in details if "document" in record}
    assert len(set(samples)) == 48 and len(documents) == entry["documents"]
    overlapping = set()
    for start, record in read_documents(tiny_shards / "train"):
        tokens = range(start, start + record["tokens"])
        if not set(samples).isdisjoint(token // 64 for token in tokens):
            overlapping.add(record["id"])
    assert documents == overlapping

    # A run that is killed after the rewind and before the next checkpoint still becomes the same run.
    run("again", *DROPOUT, *SPIKES, ranks=ranks, faults=["noise:0:28", "SIGTERM:0:31"], code=PREEMPTED)
    run("again", *DROPOUT, *SPIKES, ranks=ranks, faults=["noise:0:28"])
    assert_same_run(tmp_path / "spike", tmp_path / "again")
    limits = [metric(tmp_path / name, "guard/loss_limit") for name in ("spike", "again")]
    assert limits[0] == limits[1] and 32 in limits[0], "the losses that the guard compares with are in the checkpoint"
    outcome(f"3 batches of a loss spike, {ranks} ranks", "rewound, its data left out and listed", "6 batches of data")


@pytest.mark.chaos
def test_a_loss_that_spikes_again_and_again_ends_the_run(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    """After a spike before the first checkpoint the run begins again; the spike after max_rewinds ends it."""
    more = [*SPIKES, "save_interval=40ba", "callbacks.spike_guard.max_rewinds=1"]
    done = run("spikes", *more, faults=["noise:0:20", "noise:0:44"], code=BAD_NUMBERS)
    assert "back to batch 0" in done.stdout and "after 1 rewinds" in done.stdout
    assert (
        "warning: this run was rewound 1 times; the next spike ends the run" in done.stdout.split("back to batch 0")[1]
    )
    assert read_run(tmp_path / "spikes").starts == [0, 0]
    outcome("a second loss spike, one rewind allowed", "exit code 3", "nothing that was saved")


@pytest.mark.chaos
def test_a_full_disk_costs_a_checkpoint_or_the_run(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("goes-on", "on_save_error=continue", "max_duration=30ba", faults=["small-disk:0:10"], code=1)
    assert done.stdout.count("was not written") == 2 and "the run continues" in done.stdout
    assert "ep0-ba30 was not written" in done.stderr, "a run without its last checkpoint is not finished"
    assert [p.name for p in (tmp_path / "goes-on/checkpoints").iterdir()] == ["ep0-ba8"]
    done = run("stops", "on_save_error=stop", faults=["small-disk:0:10"], code=1)
    assert "the earlier ones are intact" in done.stderr
    assert [p.name for p in (tmp_path / "stops/checkpoints").iterdir()] == ["ep0-ba8"]
    outcome("full disk while saving", "continues or stops, as configured", "the checkpoints that did not fit")


@pytest.mark.chaos
def test_a_run_whose_folder_vanishes_ends_at_once(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    done = run("gone", faults=["no-folder:0:10"], code=1)
    assert f"No such file or directory: '{tmp_path / 'gone/metrics.jsonl'}'" in done.stderr
    assert not (tmp_path / "gone").exists(), "no folder is left that looks like a run"
    outcome("the run's folder is removed", "exit code 1, the file is named", "the run")


@pytest.mark.chaos
def test_a_read_only_folder_is_named(outcome: Outcome, run: Run, small_disk: Callable[..., Path]) -> None:
    disk = small_disk(50_000_000)
    run("left", f"run_dir={disk / 'run'}", faults=["SIGTERM:0:10"], code=PREEMPTED)
    small_disk(50_000_000, "ro")
    for name in ("run", "new"):
        done = run("left", f"run_dir={disk / name}", code=2)
        assert "Read-only file system" in done.stderr and str(disk / name) in done.stderr
        assert "Traceback" not in done.stderr
    small_disk(50_000_000, "rw")
    run("left", f"run_dir={disk / 'run'}")
    assert read_run(disk / "run").starts == [0, 10]
    outcome("a file system that was mounted read-only", "exit code 2, it is named; later it resumes", "nothing")


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["hang", "no-data"])
def test_a_stall_ends_the_run_with_stacks(outcome: Outcome, run: Run, tmp_path: Path, fault: str) -> None:
    """Rank 1 hangs, or its loader delivers nothing, and rank 0 waits for it."""
    stall = f"stall_timeout_s={3 * start_s()}"
    run("stuck", stall, "data.num_workers=1", ranks=2, faults=[f"{fault}:1:6"], code=STALLED)
    for rank in (0, 1):
        text = (tmp_path / f"stuck/stall-rank{rank}.txt").read_text()
        assert "nothing for" in text and "Thread" in text
    where = "inject.py" if fault == "hang" else "dataloader.py"
    assert where in (tmp_path / "stuck/stall-rank1.txt").read_text(), "the stack of the rank that hangs"
    outcome(f"{fault} on rank 1 of 2", "exit code 4, stacks of both ranks", "batches since the last checkpoint")


OPTIMIZER = [
    "optimizer.lr=1e-3", "optimizer.betas=[0.5,0.6]", "optimizer.eps=1e-3", "optimizer.weight_decay=1e-2",
    "resume.allow=[optimizer]",
]  # fmt: skip


def change_the_optimizer(run: Run, name: str, *more: str, faults: Sequence[str] = (), ranks: int = 1) -> None:
    """A run of 30 batches, resumed from its tenth with another optimizer."""
    settings = [*NO_DROPOUT, "max_duration=30ba", "device_train_microbatch_size=2", *more]
    run(name, *settings, ranks=ranks, faults=[*faults, "SIGTERM:0:10"], code=PREEMPTED)
    run(name, *settings, *OPTIMIZER, ranks=ranks, faults=list(faults))


def test_what_must_match_is_compared_and_what_is_allowed_acts(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    """The same on one rank and on two, with a sharded checkpoint. test_settings_on_resume.py tests each setting."""
    change_the_optimizer(run, "one")
    change_the_optimizer(run, "two", ranks=2)
    one, two = tmp_path / "one", tmp_path / "two"
    assert metric(two, TRAIN_LOSS) == pytest.approx(metric(one, TRAIN_LOSS), abs=1e-5)
    rates = metric(two, LR)
    assert max(rate for batch, rate in rates.items() if batch > 10) < 1e-3 < rates[9]
    done = run("two", "seed=18", ranks=2, code=2)
    assert "sample_order.seed: 17 -> 18   (cannot change: under another order" in done.stderr + done.stdout
    record = json.loads((two / "run.json").read_text())
    assert record["starts"][1]["batch"] == 10
    assert "optimizer.lr: 0.003 -> 0.001" in record["starts"][1]["allowed_differences"]
    outcome("another optimizer on 1 and 2 ranks, another seed", "acts where it is allowed; is refused", "nothing")


@pytest.mark.chaos
def test_an_allowed_optimizer_acts_under_fsdp1(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    change_the_optimizer(run, "one")
    change_the_optimizer(run, "fsdp1", "fsdp.version=1", faults=["fsdp1-on-cpu:0:0"], ranks=2)
    assert metric(tmp_path / "fsdp1", TRAIN_LOSS) == pytest.approx(metric(tmp_path / "one", TRAIN_LOSS), abs=1e-5)
    outcome("another optimizer under FSDP1", "acts as on one rank", "nothing")


def test_no_room_for_a_checkpoint_is_said_before_the_start(run: Run) -> None:
    done = run("big", "model.n_embd=65536", "model.n_head=64", "model.n_layer=1000", code=2)
    assert "GB free, but one checkpoint takes" in done.stderr


@pytest.mark.chaos
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_twenty_times_it_is_the_same_run(
    outcome: Outcome, run: Run, command: Callable[..., list[str]], tmp_path: Path, ranks: int
) -> None:
    settings = [*DROPOUT, "data.num_workers=2", "max_duration=140ba"]
    run("whole", *settings, ranks=ranks)
    kill_at_random_moments(command("killed", *settings, ranks=ranks), tmp_path / "killed", kills=20, seed=ranks)
    run("killed", *settings, ranks=ranks)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    outcome(
        f"SIGKILL at 20 random moments, {ranks} ranks", "the same run, bit for bit", recomputed(tmp_path / "killed")
    )


@pytest.mark.chaos
def test_two_ranks_one_rank_two_ranks(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    run("whole", *NO_DROPOUT, ranks=2)
    run("moved", *NO_DROPOUT, ranks=2, faults=["SIGTERM:1:10"], code=PREEMPTED)
    run("moved", *NO_DROPOUT, faults=["SIGTERM:0:30"], code=PREEMPTED)
    run("moved", *NO_DROPOUT, ranks=2)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert metric(moved, FINGERPRINT) == metric(whole, FINGERPRINT)
    assert metric(moved, TRAIN_LOSS) == pytest.approx(metric(whole, TRAIN_LOSS), abs=1e-4)
    outcome("2 -> 1 -> 2 ranks", "the same samples a batch, losses within 1e-4", recomputed(moved))


@pytest.mark.chaos
def test_callbacks_may_come_and_go(run: Run, tmp_path: Path) -> None:
    """A sharded checkpoint contains the state of each callback, and torch refuses to load a state that is missing."""
    more = "callbacks.runtime_estimator=null", "callbacks.spike_guard=null"
    run("run", *more, ranks=2, faults=["SIGTERM:0:10"], code=PREEMPTED)
    run("run", "callbacks.speed_monitor=null", ranks=2)
    assert read_run(tmp_path / "run").starts == [0, 10]


@pytest.mark.chaos
def test_replicas_of_shards_are_the_run_of_one_rank(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    """HSDP 2 x 2, then 2 ranks without replicas. Clipping acts in some batches only, so a wrong average would show."""
    settings = [*NO_DROPOUT, "device_train_microbatch_size=1", "max_duration=30ba"]
    run("whole", *settings)
    replicated = [*settings, "fsdp.data_parallel_replicate_degree=2"]
    run("moved", *replicated, ranks=4, faults=["SIGTERM:3:20"], code=PREEMPTED)
    parts = (tmp_path / "moved/checkpoints/ep0-ba20").glob("*.distcp")
    written = Counter(int(part.name.split("_")[2]) for part in parts if part.stat().st_size > 0)
    assert written == {0: FILES_PER_RANK, 1: FILES_PER_RANK}, "only one replica is saved"
    run("moved", *settings, ranks=2)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert read_run(moved).starts == [0, 20]
    assert metric(moved, FINGERPRINT) == metric(whole, FINGERPRINT)
    assert metric(moved, TRAIN_LOSS) == pytest.approx(metric(whole, TRAIN_LOSS), abs=1e-5)
    outcome("2 x 2 ranks (HSDP) -> 2 ranks", "the same samples a batch, losses within 1e-5", recomputed(moved))


@pytest.mark.chaos
def test_fsdp1_is_the_run_of_one_rank_and_of_fsdp2(outcome: Outcome, run: Run, tmp_path: Path) -> None:
    """Composer's FSDP1 requires a CUDA device, and the test presents the CPU as one; FSDP2 can read its checkpoints."""
    settings = [*NO_DROPOUT, "device_train_microbatch_size=2", "max_duration=30ba"]
    run("whole", *settings)
    first, on_cpu = ["fsdp.version=1", "activation_checkpointing=true"], "fsdp1-on-cpu:0:0"
    run("moved", *settings, *first, ranks=2, faults=[on_cpu, "SIGTERM:1:10"], code=PREEMPTED)
    run("moved", *settings, ranks=2, faults=["SIGTERM:1:20"], code=PREEMPTED)
    run("moved", *settings, *first, "fsdp.reshard_after_forward=false", ranks=2, faults=[on_cpu])
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert read_run(moved).starts == [0, 10, 20]
    assert metric(moved, FINGERPRINT) == metric(whole, FINGERPRINT)
    assert metric(moved, TRAIN_LOSS) == pytest.approx(metric(whole, TRAIN_LOSS), abs=1e-5)
    outcome("FSDP1 -> FSDP2 -> FSDP1, 2 ranks", "the same samples a batch, losses within 1e-5", recomputed(moved))


@pytest.fixture
def large_vocabulary(make_corpus: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Overrides for shards and a tokenizer of 28,896 entries, made from 20,000 synthetic words, each used twice."""
    draw = random.Random(17)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(20_000)]
    words += draw.sample(words, len(words))  # in another order, because the corpus keeps only one of equal texts
    documents = [
        Document(f"pmid:{number}", " ".join(words[begin : begin + 100]), ABSTRACTS, None, "2021-03")
        for number, begin in enumerate(range(0, len(words), 100))
    ]
    folders = [tmp_path / name for name in ("corpus", "tokenizer", "shards")]
    build_tokenizer(make_corpus(folders[0], documents), folders[1], 28_896)
    build_shards(*folders, seq_len=64)
    return [f"data.tokenizer={folders[1]}", f"data.shards={folders[2]}", "model.vocab_size=28896"]


@pytest.mark.chaos
def test_ranks_that_divide_no_dimension(
    outcome: Outcome, run: Run, large_vocabulary: list[str], tmp_path: Path
) -> None:
    """FSDP2 pads uneven parts: 5 divides neither 28,896 nor any other dimension here, and 3 does not divide n_embd."""
    settings = [
        *NO_DROPOUT, *large_vocabulary, "global_train_batch_size=15", "device_train_microbatch_size=15",
        "model.n_layer=2", "max_duration=28ba", "device_eval_batch_size=2", "eval_subset_num_batches=2",
    ]  # fmt: skip
    run("whole", *settings)
    run("moved", *settings, faults=["SIGTERM:0:6"], code=PREEMPTED)
    run("moved", *settings, ranks=5, faults=["SIGTERM:4:13"], code=PREEMPTED)
    run("moved", *settings, ranks=3, faults=["SIGTERM:2:21"], code=PREEMPTED)
    run("moved", *settings)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert read_run(moved).starts == [0, 6, 13, 21]
    assert metric(moved, FINGERPRINT) == metric(whole, FINGERPRINT)
    assert metric(moved, TRAIN_LOSS) == pytest.approx(metric(whole, TRAIN_LOSS), abs=1e-5)
    outcome("1 -> 5 -> 3 -> 1 ranks, uneven shards", "the same samples a batch, losses within 1e-5", recomputed(moved))

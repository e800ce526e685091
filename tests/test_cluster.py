"""Runs on several hosts, and the files that start them: ranks that do not meet, a link that is cut, Slurm."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import report

ROOT = Path(__file__).parents[1]
COMPOSER = str(Path(sys.executable).with_name("composer"))
PATIENCE_S = 300  # a hang is a failure

Outcome = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def settings(tiny_shards: Path, tiny_tokenizer: Path) -> list[str]:
    """YAML and overrides of a run of 60 batches with dropout."""
    return [
        "yamls/smoke-cpu.yaml", f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}",
        "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
        "model.n_layer=3", "model.resid_pdrop=0.1", "max_duration=60ba", "global_train_batch_size=8",
        "device_train_microbatch_size=4", "scheduler.t_warmup=5ba", "optimizer.lr=3e-3", "eval_interval=20ba",
        "save_interval=8ba", "save_num_checkpoints_to_keep=3", "loggers.wandb=null", "stall_timeout_s=120",
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_to_end(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def losses(folder: Path) -> dict[int, float]:
    return dict(report.read_run(folder).series[report.TRAIN_LOSS])


def of_two_hosts(node_rank: int, address: str, port: int) -> list[str]:
    """The launcher of one of two hosts with a rank each."""
    return [
        COMPOSER, "--nproc", "1", "--world_size", "2", "--node_rank", str(node_rank), "--master_addr", address,
        "--master_port", str(port),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("node_rank", "message"),
    [
        (0, "rank 1 of 2 did not come to rank 0 on {host} in 3 s"),
        (1, "rank 1 on {host} cannot reach rank 0 at 127.0.0.1:{port} since 3 s: Connection refused"),
    ],
    ids=["nobody-comes", "nobody-listens"],
)
def test_a_host_that_is_alone_says_whom_it_misses(
    outcome: Outcome, settings: list[str], tmp_path: Path, node_rank: int, message: str
) -> None:
    port, start_s = free_port(), time.monotonic()
    command = [*of_two_hosts(node_rank, "127.0.0.1", port), "recipes/train.py", *settings]
    done = run_to_end([*command, f"run_dir={tmp_path / 'run'}", "connect_timeout_s=3"], code=2)
    assert message.format(host=socket.gethostname(), port=port) in done.stderr, done.stderr
    assert "--master_addr" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - start_s < 120 and not (tmp_path / "run").exists()
    outcome(f"host {1 - node_rank} of 2 does not come", "exit code 2 after connect_timeout_s, with its rank", "nothing")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("other-torch", "versions.torch: '2.7.0"),
        ("no-data-path", "rank 1 on {host} has met the others and no data passes between them"),
    ],
)
def test_ranks_that_are_unlike_or_deaf_do_not_begin(
    outcome: Outcome, settings: list[str], tmp_path: Path, fault: str, message: str
) -> None:
    command = [COMPOSER, "-n", "2", "tests/inject.py", f"{fault}:1:0", "--", *settings]
    done = run_to_end([*command, f"run_dir={tmp_path / 'run'}", "connect_timeout_s=20"], code=2)
    said = done.stdout + done.stderr  # the launcher prints what ranks other than 0 said to stdout
    assert message.format(host=socket.gethostname()) in said and "Traceback" not in said, said
    assert not (tmp_path / "run/metrics.jsonl").exists()
    if fault == "other-torch":
        assert said.count("would not compute the same run") == 1 and "-> '2.6.0'" in said
        assert f"-> rank 1 on {socket.gethostname()}:" in said
    outcome(f"{fault} on rank 1 of 2", "exit code 2, what differs or does not pass", "nothing")


def test_hosts_that_were_given_other_commands_do_not_begin(
    outcome: Outcome, settings: list[str], tmp_path: Path
) -> None:
    """A key that one of two commands has: neither trains with the other."""
    port = free_port()
    commands = [
        [*of_two_hosts(rank, "127.0.0.1", port), "recipes/train.py", *settings, f"run_dir={tmp_path / 'run'}", *more]
        for rank, more in enumerate(([], ["optimizer.lr=1e-3"]))
    ]
    hosts = [subprocess.Popen(c, cwd=ROOT, stdout=-1, stderr=subprocess.PIPE, text=True) for c in commands]
    for host in hosts:
        _, errors = host.communicate(timeout=PATIENCE_S)
        assert host.returncode == 2 and "configuration.optimizer.lr: 0.003 -> 0.001" in errors, errors
    outcome("another learning rate in the command of one host", "exit code 2 on both, with the key", "nothing")

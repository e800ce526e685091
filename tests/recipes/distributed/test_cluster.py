"""Runs on several hosts, and the files that start them: missing ranks, a cut link, Slurm."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import warm
from data_prep.common.errors import BadInput
from data_prep.common.exit_codes import BAD_INPUT, BAD_NUMBERS, PREEMPTED, RESUMES, STALLED
from patience import patience_s, start_s
from project import ROOT
from recipes.config.loading import load_config
from recipes.distributed import rendezvous
from recipes.planning.run_plan import make_plan
from recipes.runs.reading import TRAIN_LOSS, read_run

COMPOSER = str(Path(sys.executable).with_name("composer"))

Outcome = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def settings(tiny_shards: Path, tiny_tokenizer: Path) -> list[str]:
    """YAML and overrides of a run of 60 batches with dropout."""
    return [
        "yamls/smoke-cpu.yaml", f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}",
        "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
        "model.n_layer=3", "model.resid_pdrop=0.1", "max_duration=60ba", "global_train_batch_size=8",
        "device_train_microbatch_size=4", "scheduler.t_warmup=5ba", "optimizer.lr=3e-3", "eval_interval=20ba",
        "save_interval=8ba", "save_num_checkpoints_to_keep=3", "loggers.wandb=null", f"stall_timeout_s={patience_s(3)}",
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_to_end(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = warm.run(command, ROOT)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def losses(folder: Path) -> dict[int, float]:
    return dict(read_run(folder).series[TRAIN_LOSS])


def of_two_hosts(node_rank: int, address: str, port: int) -> list[str]:
    """The launcher of one of two hosts, each with one rank."""
    return [
        COMPOSER, "--nproc", "1", "--world_size", "2", "--node_rank", str(node_rank), "--master_addr", address,
        "--master_port", str(port),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "ranks 1, 2 of 3 did not come to rank 0 on {host} in 2 s"),
        (1, "rank 1 on {host} cannot reach rank 0 at 127.0.0.1:{port} since 2 s: Connection refused"),
    ],
    ids=["nobody-comes", "nobody-listens"],
)
def test_a_rank_that_is_alone_says_whom_it_misses(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, rank: int, message: str
) -> None:
    port = free_port()
    for name, value in {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    begin_s = time.monotonic()
    with pytest.raises(BadInput, match=message.format(host=socket.gethostname(), port=port) + ".*--master_addr"):
        rendezvous.meet({}, timeout_s=2)
    assert time.monotonic() - begin_s < 2 + patience_s(1), "the limit of two seconds holds"
    outcome(f"rank {rank} of 3 is alone", "exit code 2 after connect_timeout_s, with whom it misses", "nothing")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(BadInput, match=rf"rank 0 cannot listen at 127.0.0.1:{port}, or .*: .*in use"):
            rendezvous.meet({}, timeout_s=patience_s())


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64])
def test_something_else_listens_where_rank_0_should(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    """Other services at the port accept the connection and send nothing, close it, or speak another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        callers: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    callers.append(other.accept()[0])
                    if answer is not None:
                        callers[-1].sendall(answer)
                        callers[-1].close()

        threading.Thread(target=serve, daemon=True).start()
        for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        begin_s = time.monotonic()
        with pytest.raises(BadInput, match=f"something else than rank 0 listens at 127.0.0.1:{port}"):
            rendezvous.meet({}, timeout_s=3)
        assert time.monotonic() - begin_s < 3 + patience_s(1), "the limit of three seconds holds"
        for caller in callers:
            caller.close()
    outcome("another service at MASTER_PORT", "exit code 2 after connect_timeout_s at the latest", "nothing")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("other-torch", "versions.torch: '2.7.0"),
        pytest.param(
            "no-data-path",
            "rank 1 on {host} has met the others and no data passes between them",
            marks=pytest.mark.chaos,
        ),
    ],
)
def test_ranks_that_are_unlike_or_deaf_do_not_begin(
    outcome: Outcome, settings: list[str], tmp_path: Path, fault: str, message: str
) -> None:
    # Without a data path, the whole time must pass.
    soon_s = 5 * start_s() if fault == "no-data-path" else patience_s(3)
    command = [COMPOSER, "-n", "2", "tests/helpers/inject.py", f"{fault}:1:0", "--", *settings]
    done = run_to_end([*command, f"run_dir={tmp_path / 'run'}", f"connect_timeout_s={soon_s}"], code=2)
    output = done.stdout + done.stderr  # the launcher prints output of ranks other than 0 to stdout
    assert message.format(host=socket.gethostname()) in output and "Traceback" not in output, output
    assert not (tmp_path / "run/metrics.jsonl").exists()
    if fault == "other-torch":
        assert output.count("would not compute the same run") == 1 and "-> '2.6.0'" in output
        assert f"-> rank 1 on {socket.gethostname()}:" in output
    outcome(f"{fault} on rank 1 of 2", "exit code 2, what differs or does not pass", "nothing")


@pytest.mark.chaos
def test_hosts_that_were_given_other_commands_do_not_begin(
    outcome: Outcome, settings: list[str], tmp_path: Path
) -> None:
    """If only one of two commands has a key, neither host trains."""
    port = free_port()
    commands = [
        [*of_two_hosts(rank, "127.0.0.1", port), "recipes/train.py", *settings, f"run_dir={tmp_path / 'run'}", *more]
        for rank, more in enumerate(([], ["optimizer.lr=1e-3"]))
    ]
    hosts = [subprocess.Popen(c, cwd=ROOT, stdout=-1, stderr=subprocess.PIPE, text=True) for c in commands]
    for host in hosts:
        _, errors = host.communicate(timeout=patience_s())
        assert host.returncode == 2 and "configuration.optimizer.lr: 0.003 -> 0.001" in errors, errors
    outcome("another learning rate in the command of one host", "exit code 2 on both, with the key", "nothing")


def test_all_machines_are_claimed_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs start together on the same two machines: neither keeps one machine while it waits for the other."""
    from recipes.dataloading import shared_memory

    monkeypatch.setattr(
        shared_memory, "MACHINE_MEMORY", tmp_path
    )  # runs of other tests claim this machine's real folder
    answers = iter([[True, False], [True, True]])

    def is_free() -> bool:
        lock = shared_memory._claim_machine()
        if lock is not None:
            os.close(lock)
        return lock is not None

    seen = []
    monkeypatch.setattr(shared_memory.dist, "all_gather_object", lambda mine: next(answers) if mine else [])
    monkeypatch.setattr(shared_memory.time, "sleep", lambda _: seen.append(is_free()))
    with shared_memory.registering():
        seen.append(is_free())
    assert [*seen, is_free()] == [True, False, True]


class TwoHosts:
    """Two network namespaces with a cable between them, in place of two hosts; each has its own /dev/shm."""

    def __init__(self) -> None:
        tag = f"{os.getpid() % 100_000}"
        self.names = [f"host0-{tag}", f"host1-{tag}"]
        self.links = [f"a{tag}", f"b{tag}"]  # at most 15 characters
        self.addresses = ["10.231.7.1", "10.231.7.2"]

    def plug_in(self) -> None:
        ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
            ip("netns", "add", name)
            ip("link", "set", link, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")

    def link(self, state: str) -> None:
        """Set the link of host 1 `up` or `down`."""
        ip("-n", self.names[1], "link", "set", self.links[1], state)

    def start(self, command: list[str]) -> list[subprocess.Popen[str]]:
        """Start the command on both hosts, as a user would type it."""
        return [
            subprocess.Popen(
                [
                    "ip", "netns", "exec", self.names[rank], "unshare", "--mount", "sh", "-c",
                    'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh",
                    *of_two_hosts(rank, self.addresses[0], 29500), *command,
                ],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": self.links[rank]},
            )
            for rank in (0, 1)
        ]  # fmt: skip

    def run(self, command: list[str]) -> None:
        for host in self.start(command):
            out, errors = host.communicate(timeout=patience_s())
            assert host.returncode == 0, f"{out}\n{errors}"

    def unplug(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.links[0]], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def two_hosts() -> Iterator[TwoHosts]:
    if not (shutil.which("ip") and shutil.which("unshare")) or os.geteuid() != 0:
        pytest.skip("two hosts on one machine: run as root, with apt install iproute2 util-linux")
    hosts = TwoHosts()
    try:
        hosts.plug_in()
    except subprocess.CalledProcessError as error:
        hosts.unplug()
        pytest.skip(f"two hosts on one machine: run where network namespaces can be made ({error.stderr.strip()})")
    yield hosts
    hosts.unplug()


def count_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def await_batches(hosts: list[subprocess.Popen[str]], folder: Path, batches: int) -> None:
    deadline_s = time.monotonic() + patience_s()
    while count_lines(folder) < batches:
        assert all(host.poll() is None for host in hosts) and time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("limit", "other", "code", "message"),
    [
        ("stall_timeout_s", "dist_timeout_s", STALLED, "nothing for "),
        ("dist_timeout_s", "stall_timeout_s", 1, "another rank has gone, or the network to it"),
    ],
    ids=["stall-watch", "collective"],
)
def test_a_link_that_is_cut_ends_the_run_on_both_hosts(
    outcome: Outcome,
    two_hosts: TwoHosts,
    settings: list[str],
    tmp_path: Path,
    limit: str,
    other: str,
    code: int,
    message: str,
) -> None:
    limit_s = math.ceil(3 * start_s())
    limits = [f"{limit}={limit_s}", f"{other}={100 * limit_s}"]
    command = ["recipes/train.py", *settings, "max_duration=120ba"]
    hosts = two_hosts.start([*command, f"run_dir={tmp_path / 'cut'}", *limits])
    await_batches(hosts, tmp_path / "cut", 20)
    two_hosts.link("down")
    begin_s = time.monotonic()
    for rank, host in enumerate(hosts):
        out, errors = host.communicate(timeout=patience_s())
        assert host.returncode == code, f"{out}\n{errors}"
        assert f"rank {rank} on {socket.gethostname()}: {message}" in errors and RESUMES in errors, errors
    assert time.monotonic() - begin_s < limit_s + patience_s(2), "the lower limit holds"
    two_hosts.link("up")
    two_hosts.run([*command, f"run_dir={tmp_path / 'cut'}"])
    two_hosts.run([*command, f"run_dir={tmp_path / 'whole'}"])
    assert len(read_run(tmp_path / "cut").starts) == 2
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole"), "bit for bit"
    outcome(f"the link of host 1 of 2 is cut, {limits}", f"exit code {code} on both, the same run", "some batches")


SBATCH = "yamls/cluster/slurm.sbatch"
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """slurmctld and two slurmd on this machine; each node has its own /dev/shm and a name that can be resolved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, list[subprocess.Popen[bytes]]()
        (folder / "state").mkdir()
        ports = [free_port() for _ in range(3)]
        conf, hosts = folder / "slurm.conf", folder / "hosts"
        conf.write_text(SLURM_CONF.format(host=socket.gethostname(), folder=folder, ports=ports))
        hosts.write_text(f"127.0.0.1 localhost n0 n1 {socket.gethostname()}\n")
        self.environment = {**os.environ, "SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT)}
        self.environment |= {"RANKS_PER_NODE": "1", "OMP_NUM_THREADS": "1"}
        private = 'mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        for command in (
            ["slurmctld", "-D", "-f", str(conf)],
            *(["unshare", "-m", "sh", "-c", private, "sh", str(hosts), "slurmd", "-D", "-N", n] for n in ("n0", "n1")),
        ):
            with (folder / "daemons.log").open("ab") as log:
                self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        self.wait_for(lambda: self("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        return done.stdout

    def submit(self, checkout: Path, *command: str) -> str:
        """Submit a job; its number."""
        answer = self("sbatch", "--parsable", "--gpus-per-node=0", *command, cwd=checkout)
        assert answer.strip().isdigit(), f"{answer!r}: {self.log}"
        return answer.strip()

    def state(self, job: str, *, field: str = "JobState") -> str:
        """RUNNING, PENDING, COMPLETED, FAILED, …"""
        match = re.search(rf"\b{field}=(\S+)", self("scontrol", "show", "job", job))
        return match[1] if match else ""

    def end(self, job: str) -> str:
        """Wait for the job's end; its exit code. A requeued job starts again after seconds instead of two minutes."""
        hastened = {"0"}

        def ended() -> bool:
            state, restarts = self.state(job), self.state(job, field="Restarts")
            if state == "PENDING" and restarts not in hastened:
                hastened.add(restarts)
                self("scontrol", "update", f"JobId={job}", "StartTime=now+4", "TimeLimit=60")
            return state in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED")

        self.wait_for(ended)
        return self.state(job, field="ExitCode").partition(":")[0]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + patience_s()
        while not condition():
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.3)

    @property
    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        self("scancel", "--user=root")
        time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            daemon.wait(patience_s())


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := [name for name in ("slurmctld", "slurmd", "sbatch", "unshare") if not shutil.which(name)]:
        pytest.skip(f"slurm: apt install slurmctld slurmd slurm-client util-linux ({missing[0]} is not there)")
    if os.geteuid() != 0:
        pytest.skip("slurm: run as root, for two slurmd with a /dev/shm each")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


def checkout(folder: Path, environment: Path) -> Path:
    """A folder like the root of a checkout, with this environment as its .venv."""
    folder.mkdir()
    for name in ("recipes", "yamls"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(environment)
    return folder


@pytest.mark.chaos
def test_slurm_preempts_requeues_and_ends_the_same_run(
    outcome: Outcome, slurm: Slurm, settings: list[str], tmp_path: Path
) -> None:
    """The signal before the walltime's end reaches a run on two nodes; Slurm requeues the job, and the run resumes."""
    if not (Path(sys.prefix) / "bin/activate").is_file():
        pytest.skip("slurm: run pytest from a virtual environment, which the job file activates")
    folder = checkout(tmp_path / "checkout", Path(sys.prefix))
    run = [*settings, "max_duration=1500ba", "save_interval=200ba", "eval_interval=1500ba"]
    command = ["--nodes=2", "--time=60", "--signal=USR1@60", SBATCH, *run]
    job = slurm.submit(folder, *command, f"run_dir={tmp_path / 'left'}")
    slurm.wait_for(lambda: count_lines(tmp_path / "left") > 20)
    # Shorten the walltime so that it is nearly over; Slurm looks every 30 s, and then sends the signal.
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    assert slurm.end(job) == "0", slurm.log
    log = (folder / f"biomedlm-{job}.log").read_text()
    assert "start 1 of at most 21" in log and "start 2 of at most 21" in log and "exit code 75" in log, log
    logs = [(folder / f"logs/biomedlm-{job}-node{node}.log").read_text() for node in (0, 1)]
    assert "preempted after batch" in logs[0] and "1500/1500" in logs[0] and "1500/1500" not in logs[1]
    starts = read_run(tmp_path / "left").starts
    assert len(starts) == 2 and starts[1] % 200, f"not at a checkpoint that was due anyway: {starts}"

    whole = slurm.submit(folder, *command, f"run_dir={tmp_path / 'whole'}")
    slurm.wait_for(lambda: count_lines(tmp_path / "whole") > starts[1] + 100)
    slurm("scancel", whole)
    expected = losses(tmp_path / "whole")
    assert max(expected) > starts[1] + 50
    assert {batch: loss for batch, loss in losses(tmp_path / "left").items() if batch in expected} == expected
    outcome("Slurm's walltime signal to 2 nodes", "saved, requeued, the same run", "nothing")


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Path]:
    """`fake("exit 4")`: a checkout whose `composer` and `python` print their arguments and run this script."""

    def make(script: str) -> Path:
        binaries = tmp_path / "fake/bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
        for name in ("composer", "python"):
            (binaries / name).write_text(f'#!/bin/bash\necho {name} "$@"\n{script}\n')
            (binaries / name).chmod(0o755)
        return checkout(tmp_path / "checkout", tmp_path / "fake")

    return make


def test_slurm_restarts_are_bounded(slurm: Slurm, fake: Callable[[str], Path]) -> None:
    folder = fake("exit 75")
    job = slurm.submit(folder, "--nodes=2", "--export=ALL,MAX_RESTARTS=1", SBATCH, "a.yaml", "run_name=two words")
    assert slurm.end(job) == "75"
    log = (folder / f"biomedlm-{job}.log").read_text()
    assert "start 2 of at most 2" in log and log.count("back into the queue") == 1, log
    lines = (folder / f"logs/biomedlm-{job}-node1.log").read_text().splitlines()
    assert lines[0].startswith("node 1 of 2: n1,")
    assert lines[1::2] == [  # a port that is taken does not stop the job forever
        f"composer --nproc 1 --world_size 2 --node_rank 1 --master_addr n0 --master_port {port} recipes/train.py "
        "a.yaml run_name=two words"
        for port in (20000 + int(job), 24001 + int(job))
    ]


def test_slurm_passes_on_the_code_that_came_first(slurm: Slurm, fake: Callable[[str], Path]) -> None:
    folder = fake(f'[ "$SLURM_NODEID" = 1 ] && exit 4; sleep {start_s()}; exit 143')
    job = slurm.submit(folder, "--nodes=2", SBATCH, "a.yaml")
    assert slurm.end(job) == "4"
    assert slurm.state(job, field="Restarts") == "0" and not list((folder / "logs").glob("*.code"))


def test_slurm_runs_a_sweep_as_an_array(slurm: Slurm, fake: Callable[[str], Path]) -> None:
    folder = fake('[ "${SLURM_RESTART_COUNT-0}$SLURM_ARRAY_TASK_ID" = 01 ] && exit 75; exit 0')
    job = slurm.submit(folder, "--nodes=1", "--oversubscribe", "--array=0-1", SBATCH, "sweep.yaml", "model=m")
    ends = [slurm.end(f"{job}_{task}") for task in (0, 1)]
    logs = sorted(path.read_text().splitlines()[1::2] for path in (folder / "logs").glob("*.log"))
    lines = [f"python recipes/sweep.py sweep.yaml model=m --only {task}" for task in (0, 1)]
    assert ends == ["0", "0"] and logs == [[lines[0]], [lines[1]] * 2], "run 1 alone was started again"


FILES = ("slurm.sbatch", "kubernetes.yaml", "skypilot.yaml", "mcli.yaml")


def test_the_job_file_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", SBATCH], cwd=ROOT, check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", SBATCH], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_job_file_says_where_it_is_submitted_from(tmp_path: Path) -> None:
    """Without a container line by the user, srun gets none: the fake `srun` prints its arguments."""
    script = (ROOT / SBATCH).read_text()
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "j"}
    run = ["bash", "-s", "some.yaml"]
    done = subprocess.run(run, input=script, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"no .venv in {tmp_path}; submit from the checkout's root after make .venv/installed" in done.stderr
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("scontrol() { echo n; }; srun() { printf '<%s>' \"$@\"; }")
    for container, first in (("", "<--ntasks=1>"), ("'--image=a b'", "<--image=a b><--ntasks=1>")):
        own = script.replace("container=()", f"container=({container})")
        done = subprocess.run(run, input=own, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and first in done.stdout and "exit code 0" in done.stdout, done.stderr


@pytest.mark.parametrize("name", FILES)
def test_each_file_names_switches_keys_and_files_that_there_are(name: str) -> None:
    """The arguments of `composer` and recipes/train.py are valid: launcher switches, a YAML, keys of the schema."""
    text = (ROOT / "yamls/cluster" / name).read_text()
    (launch,) = re.findall(
        r"composer((?: -|\s+\\\n\s+-|[^#])*?)(?:recipes/train\.py|\"\$RECIPE\")(.*?)(?:\n\S|\n\n|\n +env:|\n +fi\n|$)",
        text,
        re.S,
    )
    package = importlib.util.find_spec("composer")
    assert package and package.origin
    launcher = Path(package.origin).with_name("cli").joinpath("launcher.py").read_text()
    switches = re.findall(r"--\w+", launch[0])
    assert all(f"'{switch}'" in launcher for switch in switches), switches
    overrides = [word.replace('"', "") for word in re.findall(r"(\S+=\S+)", launch[1])]
    overrides = [word.replace("$BUCKET", "s3://bucket/x") for word in overrides]
    yamls = set(re.findall(r"yamls/[\w./-]+\.yaml", text)) - {f"yamls/cluster/{name}"}
    assert "yamls/biomedlm-2.7b.yaml" in yamls and all((ROOT / yaml).is_file() for yaml in yamls)
    load_config(ROOT / "yamls/biomedlm-2.7b.yaml", overrides)
    if name != "slurm.sbatch":  # its user sets data.shards
        assert "data.shards" in {override.partition("=")[0] for override in overrides}


def test_the_walk_through_can_be_typed() -> None:
    """For each sbatch line of docs/cluster.md that trains, the configuration loads and has a plan on those nodes."""
    text = (ROOT / "docs/cluster.md").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if re.match(r"(\w+=\S+ )?sbatch", line) and SBATCH in line]
    runs = [line for line in lines if line[line.index(SBATCH) + 1] == "yamls/biomedlm-2.7b.yaml"]
    assert len(lines) == 3 and len(runs) == 2
    for line in runs:
        after = line[line.index(SBATCH) + 1 :]
        nodes = next((int(word[len("--nodes=") :]) for word in line if word.startswith("--nodes=")), 16)
        make_plan(load_config(ROOT / after[0], after[1:]), 8 * nodes, None)


# Fields that JobSet v1alpha2, batch/v1 and core/v1 document, as far as the file uses them: nested names, None for any
# value. The file was compared with JobSet's own CRD; this is the part that finds a typing error.
CONTAINER = {
    "name": None, "image": None, "workingDir": None, "command": None, "env": [{"name": None, "value": None}],
    "ports": [{"containerPort": None}], "resources": {"limits": {"nvidia.com/gpu": None}},
    "lifecycle": {"preStop": {"exec": {"command": None}}}, "volumeMounts": [{"name": None, "mountPath": None}],
}  # fmt: skip
POD = {
    "restartPolicy": None, "terminationGracePeriodSeconds": None, "containers": [CONTAINER],
    "securityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "volumes": [
        {
            "name": None, "persistentVolumeClaim": {"claimName": None},
            "emptyDir": {"medium": None, "sizeLimit": None},
        }
    ],
}  # fmt: skip
ON_EXIT = {"action": None, "onExitCodes": {"containerName": None, "operator": None, "values": None}}
JOB = {
    "completionMode": None, "completions": None, "parallelism": None, "backoffLimit": None,
    "podFailurePolicy": {"rules": [ON_EXIT]}, "template": {"spec": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": None, "kind": None, "metadata": {"name": None},
    "spec": {
        "failurePolicy": {
            "maxRestarts": None, "rules": [{"name": None, "action": None, "onJobFailureReasons": None}],
        },
        "replicatedJobs": [{"name": None, "replicas": None, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def unknown(value: Any, fields: Any, where: str = "") -> list[str]:
    """Paths of a document that `fields` does not have."""
    if fields is None:
        return []
    if isinstance(fields, list):
        assert isinstance(value, list), where
        return [path for n, one in enumerate(value) for path in unknown(one, fields[0], f"{where}[{n}]")]
    assert isinstance(value, dict), where
    keys = [f"{where}.{key}" for key in value.keys() - fields.keys()]
    return keys + [path for key in value.keys() & fields for path in unknown(value[key], fields[key], f"{where}.{key}")]


def test_the_jobset_is_one_and_fits_the_run() -> None:
    document = yaml.safe_load((ROOT / "yamls/cluster/kubernetes.yaml").read_text())
    assert unknown(document, JOBSET) == []
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    command, nodes = container["command"][-1], job["completions"]
    ranks = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc {ranks} --world_size {nodes * ranks} " in command and job["parallelism"] == nodes
    assert nodes * ranks == load_config(ROOT / "yamls/biomedlm-2.7b.yaml").world_size
    assert job["completionMode"] == "Indexed", "JOB_COMPLETION_INDEX is set in no other mode"
    name = document["metadata"]["name"]
    assert (
        f"--master_addr {name}-{replicated['name']}-0-0.{name} --master_port {container['ports'][0]['containerPort']} "
        in command
    )
    # A failure policy by exit code needs pods that are not restarted; if one pod ends, the job and the JobSet end.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [BAD_INPUT, BAD_NUMBERS]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (policy,) = document["spec"]["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet" and policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_before_a_pod_is_stopped_its_ranks_are_told(tmp_path: Path) -> None:
    """The preStop command signals the ranks, in a PID namespace like that of a container."""
    document = yaml.safe_load((ROOT / "yamls/cluster/kubernetes.yaml").read_text())
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    launcher = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as by trap ''
        assert os.getpid() == 1
        rank = subprocess.Popen([sys.executable, "-c", "import os, signal, time\\n"
            "signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))\\nprint('ready', flush=True)\\ntime.sleep(600)"],
            stdout=subprocess.PIPE)
        rank.stdout.readline()
        hook = subprocess.Popen({command!r})
        sys.exit(rank.wait())
    """
    isolated = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", textwrap.dedent(launcher)]
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a container's processes: run as root, with apt install util-linux")
    done = subprocess.run(isolated, capture_output=True, text=True, check=False, timeout=patience_s())
    assert done.returncode == PREEMPTED, done.stderr


def test_skypilot_starts_again_what_was_preempted() -> None:
    task = yaml.safe_load((ROOT / "yamls/cluster/skypilot.yaml").read_text())
    assert task.keys() <= {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["resources"].keys() <= {"accelerators", "use_spot", "disk_size", "job_recovery"}
    recovery = task["resources"]["job_recovery"]
    assert recovery.keys() == {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    assert recovery["recover_on_exit_codes"] == [PREEMPTED]
    for script in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[script], text=True, check=True)
    assert set(re.findall(r"\$\{?([A-Z_]+)", task["run"])) <= task["envs"].keys() | {
        "HOME", "SKYPILOT_NUM_GPUS_PER_NODE", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS",
    }  # fmt: skip


def test_mcli_takes_its_file() -> None:
    from mcli.models.run_config import FinalRunConfig, RunConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the schema warns of unknown fields
        run = RunConfig.from_file(ROOT / "yamls/cluster/mcli.yaml")
        sent = FinalRunConfig.finalize_config(run).to_create_run_api_input()["runInput"]
    assert sent["compute"]["gpus"] == 8 and sent["scheduling"]["maxRetries"] == 20
    subprocess.run(["bash", "-n"], input=sent["command"], text=True, check=True)
    assert set(re.findall(r"\$\{?([A-Z_]+)", run.command)) <= set(run.env_variables)

"""The folder of a run, and what must be the same for a run to go on in it.

config.yaml     the resolved configuration
run.json        what the run is made of (model, data, batch, schedule, seed), where and with what it ran
metrics.jsonl   every metric of every batch
uncommitted-*.diff  what the code differed in from its commit, if it did, by the hash that run.json gives
texts.jsonl     what the model wrote after each evaluation (callbacks/texts.py)
skipped.jsonl   what was left out after loss spikes, if anything was (recipes/ledger.py)
tokenizer/      the tokenizer of its shards
checkpoints/    ep0-ba100/, with rank0.pt or, when sharded, .metadata and some files a rank
.lock           held by the process that runs it
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from data_prep.sharding.shard_format import ShardsInfo
from data_prep.stage import (
    BadInput,
    JsonDict,
    canonical_json,
    difference,
    library_versions,
    read_json,
    write_json,
    write_text,
)
from recipes.config.schema import RunConfig, TrainConfig, to_yaml
from recipes.plan import Plan

CONFIG, RECORD, METRICS, TEXTS = "config.yaml", "run.json", "metrics.jsonl", "texts.jsonl"
CHECKPOINTS, TOKENIZER, COMPILED, LOCK = "checkpoints", "tokenizer", "compiled", ".lock"
# How long a rank looks for what rank 0 wrote: NFS clients keep what they know of a directory for 30 s and more.
SEEN_WITHIN_S = 60.0


def identity(cfg: TrainConfig, plan: Plan, shards: ShardsInfo | None) -> JsonDict:
    """What decides a run's losses: a folder whose identity differs holds another run.

    Without shards, which are not needed to look at a run that was made elsewhere, their hashes are None.
    """
    model = asdict(cfg.model)
    model.pop("attn_implementation")  # the same mathematics by another kernel
    return {
        "model": model,
        "tokenizer_sha256": shards.tokenizer_sha256 if shards else None,
        "shards_sha256": shards.sha256 if shards else None,
        "sample_order": {"seed": cfg.seed, "num_canonical_nodes": cfg.data.num_canonical_nodes},
        "batch": {"sequences": cfg.global_train_batch_size, "seq_len": cfg.data.seq_len},
        "schedule": {"batches": plan.batches, "t_warmup": cfg.scheduler.t_warmup, "alpha_f": cfg.scheduler.alpha_f},
        "optimizer": {**asdict(cfg.optimizer), "gradient_clipping_norm": cfg.gradient_clipping_norm},
        "precision": cfg.precision,
    }


def check_identity(folder: Path, wanted: JsonDict, allow: Sequence[str] = ()) -> JsonDict | None:
    """The record of a run that this folder holds and that can go on, None for a new folder.

    Args:
        folder: the run folder.
        wanted: the identity of the run that is to go on in it.
        allow: keys that may differ, such as `optimizer` or `batch.sequences`.

    Raises:
        BadInput: the folder holds another run, or something that is no run.
    """
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BadInput(f"{folder} is not empty and holds no run ({RECORD} is missing); give another run_dir=…")
        return None
    record = read_json(folder / RECORD)
    refuse_difference(str(folder), record["identity"], wanted, allow, f"remove the folder (rm -r {folder}), ")
    return record


def refuse_difference(
    where: str, found: JsonDict, wanted: JsonDict, allow: Sequence[str] = (), way_out: str = ""
) -> None:
    """Refuse to go on with what another run wrote.

    Args:
        where: the folder, checkpoint or address that holds it.
        found: the identity of what lies there.
        wanted: the identity of the run that is to go on with it.
        allow: keys that may differ, such as `optimizer` or `batch.sequences`.
        way_out: one more that there is, ending in a comma.

    Raises:
        BadInput: they differ in more than `allow`.
    """
    lines = difference(found, wanted)
    refused = [line for line in lines if not any(f"{line.split(':')[0]}.".startswith(f"{key}.") for key in allow)]
    if refused:
        keys = ",".join(line.split(":")[0] for line in refused)
        raise BadInput(
            f"{where} holds another run:\n  " + "\n  ".join(refused) + "\n"
            f"Give this one a name of its own (run_name=…), {way_out}or go on all the same with resume.allow=[{keys}]"
        )


def reached_batch(folder: Path) -> int:
    """The last batch that a run has come to by its metrics, -1 if it has none.

    Not that of the last line: a run that is started again begins with a line of the batch that it goes on from.
    """
    reached = -1
    if (folder / METRICS).is_file():
        with (folder / METRICS).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    reached = max(reached, int(json.loads(line)["batch"]))
                except (ValueError, KeyError, TypeError):  # a line that was cut by a kill
                    continue
    return reached


def check_space(folder: Path, plan: Plan) -> None:
    """Refuse to start where not even one checkpoint fits.

    Raises:
        BadInput: too little free space; it says how much there is and how much one checkpoint takes.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < plan.checkpoint_bytes:
        raise BadInput(
            f"{existing} has {free / 1e9:.3g} GB free, and one checkpoint takes {plan.checkpoint_bytes / 1e9:.3g} GB; "
            "free some space, or put run_dir=… elsewhere"
        )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other process from running it. The lock ends with this process, however it ends.

    A record lock, and not flock(2), which the loaders' workers would inherit and keep after their rank was killed. It
    is lost if this process closes any descriptor of the file, so nothing else opens it.

    Raises:
        BadInput: another process runs it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise BadInput(f"run_dir = {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise BadInput(
                    f"another process ({file.read().strip()}) is running {folder}; let it end or end it, or give this "
                    "run a name of its own (run_name=…)"
                ) from None
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): start this run only once at a time", flush=True
            )
        else:
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
            file.flush()
        yield


@contextmanager
def held_by_rank_zero(folder: Path) -> Iterator[None]:
    """`hold`, by rank 0. All ranks must enter it.

    Raises:
        BadInput: as `hold`, on all ranks.
    """
    from recipes.distributed.ranks import on_rank_zero

    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(hold(folder)))
        yield


def check_seen_by_all(folder: Path) -> None:
    """Make sure that every rank sees the folder that rank 0 has opened. All ranks must call it.

    Raises:
        BadInput: on all ranks: some rank does not.
    """
    from composer.utils import dist

    from recipes.distributed.ranks import on_rank_zero

    record_sha256 = on_rank_zero(lambda: _record_sha256(folder))
    seen = dist.all_gather_object(_comes_to_see(folder, record_sha256))
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        raise BadInput(
            f"run_dir = {folder}: rank {', '.join(blind)} of {len(seen)} does not see there what rank 0 wrote. "
            "Each rank writes its part of a checkpoint; put run_dir=… on a file system that all nodes share"
        )


def _record_sha256(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    except OSError:
        return ""


def _comes_to_see(folder: Path, record_sha256: str) -> bool:
    """Whether the record that rank 0 wrote is seen from here, now or soon."""
    deadline_s = time.monotonic() + SEEN_WITHIN_S
    while _record_sha256(folder) != record_sha256:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.5)
    return True


def open_run(
    folder: Path,
    cfg: RunConfig,
    wanted: JsonDict,
    facts: JsonDict,
    write_tokenizer: Callable[[Path], object],
    world_size: int,
) -> None:
    """Write configuration, record and tokenizer into a folder that exists; a run that goes on adds a start to it.

    Args:
        folder: the run folder.
        cfg: the configuration.
        wanted: the identity of the run.
        facts: what its record says beside that: `plan`, `data`.
        write_tokenizer: makes the tokenizer's folder, which does not exist yet.
        world_size: ranks.
    """
    allow = cfg.resume.allow
    record = check_identity(folder, wanted, allow) or {"identity": wanted, "starts": [], "finished": False}
    allowed = difference(record["identity"], wanted)
    record |= {**facts, "identity": wanted}
    record["starts"].append({**environment(world_size), "allowed_differences": allowed})
    write_json(folder / RECORD, record)  # first: it makes the folder a run's
    if not (folder / TOKENIZER).is_dir():
        partial = folder / f"{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_tokenizer(partial)
        partial.rename(folder / TOKENIZER)
    write_text(folder / CONFIG, to_yaml(cfg))
    if diff := _git("diff", "HEAD"):
        write_text(folder / f"uncommitted-{record['starts'][-1]['uncommitted_sha256'][:12]}.diff", f"{diff}\n")


def facts(plan: Plan, shards: ShardsInfo) -> JsonDict:
    """What the record of a pre-training run says of its plan and data."""
    return {
        "plan": {**asdict(plan), "tokens": plan.tokens, "passes": plan.passes},
        "data": {
            "counts": {split: asdict(counts) for split, counts in shards.counts.items()},
            "baselines": shards.baselines,
            "corpus": shards.manifest["corpus"],
        },
    }


def finish_run(folder: Path, copy: Callable[[str, bytes], None] | None) -> None:
    """Mark the run finished, on its remote first: a folder that says so is not looked at again.

    Args:
        folder: the run folder.
        copy: writes a file of the run's remote, by name and content.
    """
    record = {**read_json(folder / RECORD), "finished": True}
    if copy:
        copy(RECORD, canonical_json(record).encode())
    write_json(folder / RECORD, record)


def software() -> JsonDict:
    """Commit and versions of this process."""
    import torch
    import torch.cuda.nccl
    import torch.version

    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _git("status", "--porcelain", "--untracked-files=no").splitlines(),
        "uncommitted_sha256": hashlib.sha256(_git("diff", "HEAD").encode()).hexdigest(),
        "python": platform.python_version(),
        "versions": library_versions("mosaicml", "mosaicml-streaming", "torch", "transformers", "tokenizers"),
        "cuda": torch.version.cuda,
        "nccl": list(torch.cuda.nccl.version()) if torch.cuda.is_available() else None,
    }


def environment(world_size: int) -> JsonDict:
    """Software, hardware and command of this process. No environment variables: they hold secrets."""
    import torch

    return {
        **software(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "world_size": world_size,
        "time_s": round(time.time(), 3),
    }


def _git(*arguments: str) -> str:
    return _output("git", *arguments)


def _output(*command: str) -> str:
    """What a command prints, run where this file lies; nothing if it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

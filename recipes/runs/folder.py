"""The folder of a run: opened, looked at from all ranks, finished.

config.yaml     the resolved configuration
run.json        what the run is made of (model, data, batch, schedule, seed), where and with what it ran
metrics.jsonl   every metric of every batch
uncommitted-*.diff  what the code differed in from its commit, if it did, by the hash that run.json gives
texts.jsonl     what the model wrote after each evaluation (callbacks/generate_samples.py)
skipped.jsonl   what was left out after loss spikes, if anything was (recipes/dataloading/skipped_data.py)
tokenizer/      the tokenizer of its shards
checkpoints/    ep0-ba100/, with rank0.pt or, when sharded, .metadata and some files a rank

Beside it, `.NAME.lock` is held by the process that runs it (data_prep/common/lock.py).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, canonical_json, write_bytes, write_json, write_text
from data_prep.common.json_text import check_shape
from data_prep.common.redaction import without_credentials_within
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.loading import to_yaml
from recipes.config.schema import RunConfig
from recipes.planning.mixing import ShardFolder
from recipes.planning.run_plan import Plan
from recipes.runs.environment import environment, read_code
from recipes.runs.fingerprint import changes, check_fingerprint
from recipes.runs.logged_lines import read_lines
from recipes.runs.names import CONFIG, METRICS, RECORD, TOKENIZER
from recipes.runs.record import read_record

# How long a rank looks for what rank 0 wrote: NFS clients keep what they know of a directory for 30 s and more.
SEEN_WITHIN_S = 60.0


def reached_batch(folder: Path) -> int:
    """The last batch that a run has come to by its metrics, -1 if it has none.

    Not that of the last line: a run that is started again begins with a line of the batch that it resumes from.
    """
    batches = (line.get("batch") for line in read_lines(folder / METRICS, skip_damaged=True))
    return max((batch for batch in batches if type(batch) is int), default=-1)


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


def check_seen_by_all(folder: Path) -> None:
    """Make sure that every rank sees the folder that rank 0 has opened. All ranks must call it.

    Raises:
        BadInput: on all ranks: some rank does not.
    """
    from composer.utils import dist

    from recipes.distributed.rank_zero import on_rank_zero

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
    start: JsonDict,
) -> None:
    """Write configuration, record and tokenizer into a folder that exists; a resumed run adds a start to it.

    Args:
        folder: the run folder.
        cfg: the configuration.
        wanted: the fingerprint of the run.
        facts: what its record says beside that: `plan`, `data`.
        write_tokenizer: makes the tokenizer's folder, which does not exist yet.
        start: `world_size`, `batch` that the checkpoint was saved after, `allowed_differences` from it.
    """
    code = read_code()
    record = without_credentials_within(check_fingerprint(folder, wanted, cfg.resume.allow) or {"starts": []})
    record |= {**facts, "identity": wanted, "finished": False}  # a finished run is opened to be lengthened
    record["starts"].append({**environment(start["world_size"], code), **start})
    write_json(folder / RECORD, record)  # first: it makes the folder a run's
    if not (folder / TOKENIZER).is_dir():
        partial = folder / f"{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_tokenizer(partial)
        partial.rename(folder / TOKENIZER)
    write_text(folder / CONFIG, to_yaml(cfg))
    if code.diff:
        write_bytes(folder / f"uncommitted-{code.diff_sha256[:12]}.diff", code.diff)


def pretraining_facts(plan: Plan, folders: Sequence[ShardFolder]) -> JsonDict:
    """What the record of a pre-training run says of its plan and data.

    Args:
        plan: plan of the run.
        folders: token shards that it reads, `data.shards` first.
    """
    main, *mixed = folders
    mix = {of.name: {**_data_facts(of.info), **_share_facts(of, folders)} for of in mixed}
    return {
        "plan": {**asdict(plan), "tokens": plan.tokens, "passes": plan.passes},
        "data": {**_data_facts(main.info), **({"mix": mix} if mix else {})},
    }


def _data_facts(shards: ShardsInfo) -> JsonDict:
    return {
        "counts": {split: asdict(counts) for split, counts in shards.counts.items()},
        "baselines": shards.baselines,
        "corpus": shards.manifest["corpus"],
    }


def _share_facts(of: ShardFolder, folders: Sequence[ShardFolder]) -> JsonDict:
    share = of.samples_a_pass / sum(folder.samples_a_pass for folder in folders)
    return {"shards": str(of.info.folder), "shards_sha256": of.info.sha256, "share": share}


def is_finished(folder: Path, record: JsonDict | None, wanted: JsonDict) -> bool:
    """Whether a run has nothing left to train.

    Args:
        folder: the run folder.
        record: its record, as `check_fingerprint` returns it.
        wanted: the fingerprint that the configuration asks for.

    Raises:
        BadInput: it has nothing left to train, and the configuration has changes, allowed ones, that could not act.
    """
    if not record or not record["finished"]:
        return False
    check_shape(record["identity"], {"schedule": {"batches": int}}, str(folder / RECORD), "identity")
    changed, batches = changes(record["identity"], wanted, of_training=True), record["identity"]["schedule"]["batches"]
    if changed and wanted["schedule"]["batches"] <= batches:
        refuse_without_effect(f"{folder} is finished after {batches} batches", batches, changed)
    return not changed


def refuse_without_effect(where: str, batch: int, changed: Sequence[str]) -> NoReturn:
    """Refuse changes of a run that has no batch left to compute with them.

    Raises:
        BadInput: always.
    """
    raise BadInput(
        f"{where}: no batch is left for these to act on:\n  " + "\n  ".join(changed) + "\n"
        f"Ask for more than {batch} batches (max_duration=…), or give this run a name of its own (run_name=…)"
    )


def finish_run(folder: Path, copy: Callable[[str, bytes], None] | None) -> None:
    """Mark the run finished, on its remote first: a folder that says so is not looked at again.

    Args:
        folder: the run folder.
        copy: writes a file of the run's remote, by name and content.
    """
    record = {**read_record(folder / RECORD), "finished": True}
    if copy:
        copy(RECORD, canonical_json(record).encode())
    write_json(folder / RECORD, record)

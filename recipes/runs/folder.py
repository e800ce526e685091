"""The folder of a run: open it, check that all ranks see it, mark it as finished.

config.yaml     the resolved configuration
run.json        the run's fingerprint (model, data, batch, schedule, seed), and its software and hardware
metrics.jsonl   every metric of every batch
uncommitted-*.diff  uncommitted changes of the code, if there are any, with the hash that run.json has
texts.jsonl     texts of the model after each evaluation (callbacks/generate_samples.py)
skipped.jsonl   data that was skipped after loss spikes, if there were any (recipes/dataloading/skipped_data.py)
tokenizer/      the tokenizer of its shards
checkpoints/    ep0-ba100/, with rank0.pt; or, in a sharded run, .metadata and some files of each rank

The process that runs the folder holds the lock file `.NAME.lock` beside it (data_prep/common/lock.py).
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

# How long a rank waits to see a file that rank 0 wrote: NFS clients cache a directory for 30 s and more.
SEEN_WITHIN_S = 60.0


def reached_batch(folder: Path) -> int:
    """The highest batch that a run has logged; -1 if it has logged none.

    The last line may have a lower batch: a restarted run first logs the batch that it resumes from.
    """
    batches = (line.get("batch") for line in read_lines(folder / METRICS, skip_damaged=True))
    return max((batch for batch in batches if type(batch) is int), default=-1)


def check_space(folder: Path, plan: Plan) -> None:
    """Refuse to start if the disk has no space for one checkpoint.

    Raises:
        BadInput: there is too little free space; the message gives the free space and the size of a checkpoint.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < plan.checkpoint_bytes:
        raise BadInput(
            f"{existing} has {free / 1e9:.3g} GB free, but one checkpoint takes {plan.checkpoint_bytes / 1e9:.3g} GB; "
            "free some space, or set run_dir=… to a folder on another disk"
        )


def check_seen_by_all(folder: Path) -> None:
    """Make sure that every rank sees the folder that rank 0 has opened. All ranks must call it.

    Raises:
        BadInput: on all ranks: some rank does not see the folder.
    """
    from composer.utils import dist

    from recipes.distributed.rank_zero import on_rank_zero

    record_sha256 = on_rank_zero(lambda: _record_sha256(folder))
    seen = dist.all_gather_object(_comes_to_see(folder, record_sha256))
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        raise BadInput(
            f"run_dir = {folder}: rank {', '.join(blind)} of {len(seen)} does not see the files that rank 0 wrote "
            "there. Each rank writes its part of a checkpoint; put run_dir=… on a file system that all nodes share"
        )


def _record_sha256(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    except OSError:
        return ""


def _comes_to_see(folder: Path, record_sha256: str) -> bool:
    """Whether this rank sees the record that rank 0 wrote, within SEEN_WITHIN_S."""
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
    """Write configuration, record and tokenizer into an existing folder. A resumed run adds a start to its record.

    Args:
        folder: the run folder.
        cfg: configuration of the run.
        wanted: fingerprint of the run.
        facts: further entries of the record: `plan`, `data`.
        write_tokenizer: function that writes the tokenizer to a folder that does not exist yet.
        start: facts of this start: `world_size`, `batch` of the loaded checkpoint, `allowed_differences` from it.
    """
    code = read_code()
    record = without_credentials_within(check_fingerprint(folder, wanted, cfg.resume.allow) or {"starts": []})
    record |= {**facts, "identity": wanted, "finished": False}  # a finished run is opened again only to be lengthened
    record["starts"].append({**environment(start["world_size"], code), **start})
    write_json(folder / RECORD, record)  # before the other files: it marks the folder as a run folder
    if not (folder / TOKENIZER).is_dir():
        partial = folder / f"{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_tokenizer(partial)
        partial.rename(folder / TOKENIZER)
    write_text(folder / CONFIG, to_yaml(cfg))
    if code.diff:
        write_bytes(folder / f"uncommitted-{code.diff_sha256[:12]}.diff", code.diff)


def pretraining_facts(plan: Plan, folders: Sequence[ShardFolder]) -> JsonDict:
    """The entries `plan` and `data` in the record of a pre-training run.

    Args:
        plan: plan of the run.
        folders: folders of token shards that the run reads, `data.shards` first.
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
        record: record of the run, as `check_fingerprint` returns it.
        wanted: fingerprint of the configuration.

    Raises:
        BadInput: nothing is left to train, but the configuration has allowed changes, which would have no effect.
    """
    if not record or not record["finished"]:
        return False
    check_shape(record["identity"], {"schedule": {"batches": int}}, str(folder / RECORD), "identity")
    changed, batches = changes(record["identity"], wanted, of_training=True), record["identity"]["schedule"]["batches"]
    if changed and wanted["schedule"]["batches"] <= batches:
        refuse_without_effect(f"{folder} is finished after {batches} batches", batches, changed)
    return not changed


def refuse_without_effect(where: str, batch: int, changed: Sequence[str]) -> NoReturn:
    """Refuse changes of a run that has no batch left on which they could act.

    Raises:
        BadInput: always.
    """
    raise BadInput(
        f"{where}: no batch is left for these to act on:\n  " + "\n  ".join(changed) + "\n"
        f"Train for more than {batch} batches (max_duration=…), or give this run its own name (run_name=…)"
    )


def finish_run(folder: Path, copy: Callable[[str, bytes], None] | None) -> None:
    """Mark the run as finished, on its remote first, because a folder marked as finished is not uploaded again.

    Args:
        folder: the run folder.
        copy: function that writes a file, given its name and contents, to the run's remote.
    """
    record = {**read_record(folder / RECORD), "finished": True}
    if copy:
        copy(RECORD, canonical_json(record).encode())
    write_json(folder / RECORD, record)

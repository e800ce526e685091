"""The fingerprint of a run: what must be the same for a run to be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json
from data_prep.common.manifest import difference
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.schema import SchedulerConfig, TrainConfig
from recipes.planning.run_plan import Plan
from recipes.runs.names import RECORD


def pretraining_fingerprint(cfg: TrainConfig, plan: Plan, shards: ShardsInfo | None) -> JsonDict:
    """What decides a run's losses: a folder whose identity differs holds another run.

    Without shards, which are not needed to look at a run that was made elsewhere, their hashes are None.
    """
    model = asdict(cfg.model)
    model.pop("attn_implementation")  # the same mathematics by another kernel
    schedule = asdict(cfg.scheduler)
    if schedule["name"] == SchedulerConfig.name:  # as the records of runs say that are older than the choice
        del schedule["name"], schedule["decay_share"]
    return {
        "model": model,
        "tokenizer_sha256": shards.tokenizer_sha256 if shards else None,
        "shards_sha256": shards.sha256 if shards else None,
        "sample_order": {"seed": cfg.seed, "num_canonical_nodes": cfg.data.num_canonical_nodes},
        "batch": {"sequences": cfg.global_train_batch_size, "seq_len": cfg.data.seq_len},
        "schedule": {"batches": plan.batches, **schedule},
        "optimizer": {**asdict(cfg.optimizer), "gradient_clipping_norm": cfg.gradient_clipping_norm},
        "precision": cfg.precision,
    }


def check_fingerprint(folder: Path, wanted: JsonDict, allow: Sequence[str] = ()) -> JsonDict | None:
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

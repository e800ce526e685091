"""The fingerprint of a run: all settings and data that determine its losses. A run can be resumed if it is unchanged.

The fingerprint leaves out settings that only change rounding: kernels, attention backends, microbatches, sharding,
ranks and devices. With dropout, such a change also draws other masks from the same distribution.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import difference
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.loading import read_typed_yaml
from recipes.config.schema import FSDPConfig, RunConfig, SchedulerConfig, TrainConfig
from recipes.planning.run_plan import Plan
from recipes.runs.names import CONFIG, RECORD
from recipes.runs.record import read_record

_ORDER = "under another order of the data the run would read some of it twice and some of it never"
_SHAPE = "the weights in its checkpoints have that shape"
# Keys that cannot change when a run is resumed -> why. `resume.allow` allows a change of any other key.
FIXED = {
    "tokenizer_sha256": "the run has learned the tokens of its tokenizer",
    "shards_sha256": _ORDER,
    "mix": _ORDER,
    "mix.*": _ORDER,
    "sample_order.*": _ORDER,
    "batch.sequences": _ORDER,
    "batch.examples": _ORDER,
    "task.*": _ORDER,
    "encoded_sha256": "its examples would become other tokens than those that it has learned from",
    "seed": _ORDER,
    **{f"model.{size}": _SHAPE for size in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")},
    "model.initializer_range": "weights are drawn when a run begins",
    "model_sha256": "the weights come from its checkpoints, not from the base model",
    "init_from": "the weights come from its checkpoints, not from the model that it began with",
    "lora": _SHAPE,
    "lora.r": _SHAPE,
}


def common_fingerprint(cfg: RunConfig) -> JsonDict:
    """The part of the fingerprint that every run has."""
    return {
        "optimizer": {**asdict(cfg.optimizer), "gradient_clipping_norm": cfg.gradient_clipping_norm},
        "precision": cfg.precision,
        "mixed_precision": (cfg.fsdp or FSDPConfig()).mixed_precision,
    }


def pretraining_fingerprint(
    cfg: TrainConfig, plan: Plan, shards: ShardsInfo | None, origin_sha256: str | None = None
) -> JsonDict:
    """The fingerprint of a pre-training run.

    Args:
        cfg: configuration of the run.
        plan: plan made from the configuration.
        shards: token shards. None if they are not on this machine, as for a run of another machine; their hashes are
            then not compared.
        origin_sha256: hash of the weights that the run begins with; None: the weights are drawn at random.
    """
    model = asdict(cfg.model)
    model.pop("attn_implementation")  # another kernel computes the same mathematics
    hashes = {of.name: of.shards_sha256 for of in plan.mix}
    mix = {name: {"shards_sha256": hashes.get(name), "share": of.share} for name, of in (cfg.data.mix or {}).items()}
    return {
        **common_fingerprint(cfg),
        "model": model,
        "init_from": origin_sha256,
        "tokenizer_sha256": shards.tokenizer_sha256 if shards else None,
        "shards_sha256": shards.sha256 if shards else None,
        **({"mix": mix} if mix else {}),
        "sample_order": {"seed": cfg.seed, "num_canonical_nodes": cfg.data.num_canonical_nodes},
        "batch": {"sequences": cfg.global_train_batch_size, "seq_len": cfg.data.seq_len},
        "schedule": {"batches": plan.batches, **asdict(cfg.scheduler)},
    }


def complete(recorded: JsonDict, wanted: JsonDict, config: Path | None = None) -> JsonDict:
    """Add the keys to a recorded fingerprint that were introduced after the record was written.

    Args:
        recorded: fingerprint in a record or manifest.
        wanted: fingerprint made by this version.
        config: config.yaml beside the record, which may hold the missing values; without it, the defaults are used.
    """
    completed = dict(recorded)
    if missing := [key for key in ("mixed_precision", "generation") if wanted.get(key) and key not in completed]:
        configuration = read_typed_yaml(config) if config and config.is_file() else {}
        sharded = configuration.get("fsdp")
        mixed = sharded.get("mixed_precision") if isinstance(sharded, dict) else None
        values = {"mixed_precision": mixed or FSDPConfig.mixed_precision, **configuration}
        completed |= {key: values.get(key, wanted[key]) for key in missing}
    if "name" in wanted.get("schedule", {}):  # runs that do not record the schedule's name had the default
        completed["schedule"] = {"name": SchedulerConfig.name, "decay_share": None, **completed.get("schedule", {})}
    return completed


def changes(recorded: JsonDict, wanted: JsonDict, of_training: bool = False) -> list[str]:
    """Return the differences of two fingerprints as lines `key: recorded -> wanted`.

    A hash that one of them lacks is not compared. If examples are cut to another length, the line of `batch.seq_len`
    stands for the hash of the encoded examples, too.

    Args:
        recorded: fingerprint of a record or manifest, with the keys added that are newer than it.
        wanted: fingerprint of the configuration.
        of_training: leave out the settings of generation, which act only after training.
    """
    left_out = re.compile(r"\S+_sha256: (None -> .*|.* -> None)" + r"|generation\b.*" * of_training)
    lines = [line for line in difference(recorded, wanted) if not left_out.fullmatch(line)]
    if any(line.startswith("batch.seq_len:") for line in lines):
        return [line for line in lines if not line.startswith("encoded_sha256:")]
    return lines


def read_completed_record(folder: Path, wanted: JsonDict) -> JsonDict:
    """Read the record of a run folder, and complete its fingerprint."""
    record = read_record(folder / RECORD)
    return {**record, "identity": complete(record["identity"], wanted, folder / CONFIG)}


def check_fingerprint(folder: Path, wanted: JsonDict, allow: Sequence[str] = ()) -> JsonDict | None:
    """Return the record of the run in a folder if that run can be resumed, or None for a new folder.

    Args:
        folder: the run folder.
        wanted: fingerprint of the run that is to be resumed.
        allow: keys that may differ, such as `optimizer` or `schedule.batches`.

    Raises:
        BadInput: the folder holds another run, or files that are not a run; or `allow` names an unknown key.
    """
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BadInput(f"{folder} is not empty and holds no run ({RECORD} is missing); give another run_dir=…")
        _refuse_unknown(allow, wanted)
        return None
    record = read_completed_record(folder, wanted)
    _refuse_unknown(allow, record["identity"], wanted)
    refuse_difference(str(folder), record["identity"], wanted, allow, f"remove the folder (rm -r {folder}), ")
    return record


def refuse_difference(
    where: str, recorded: JsonDict, wanted: JsonDict, allow: Sequence[str] = (), way_out: str = ""
) -> None:
    """Refuse to resume from a folder or checkpoint that another run wrote.

    Args:
        where: folder, checkpoint or address, for the message.
        recorded: fingerprint that is recorded there.
        wanted: fingerprint of the run that is to be resumed.
        allow: keys that may differ, such as `optimizer` or `schedule.batches`.
        way_out: a further suggestion for the message, which ends in a comma.

    Raises:
        BadInput: a key differs although `allow` does not name it, or although it cannot change when a run is resumed.
    """
    lines = {line.split(":")[0]: line for line in changes(recorded, wanted)}
    fixed = {key: why for key in lines for pattern, why in FIXED.items() if fnmatchcase(key, pattern)}
    refused = {key: line for key, line in lines.items() if key in fixed or not _is_allowed(key, allow)}
    if not refused:
        return
    other_name = f"Give this run its own name (run_name=…){', ' if way_out else ''}{way_out.removesuffix(', ')}"
    reasons = [line + (f"   (cannot change: {fixed[key]})" if key in fixed else "") for key, line in refused.items()]
    allowing = "" if fixed else f", or resume with the changes: resume.allow=[{','.join(refused)}]"
    raise BadInput(f"{where} holds another run:\n  " + "\n  ".join(reasons) + f"\n{other_name}{allowing}")


def _is_allowed(key: str, allow: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{allowed}.") for allowed in allow)


def _refuse_unknown(allow: Sequence[str], *fingerprints: JsonDict) -> None:
    keys = {key for fingerprint in fingerprints for key in _keys(fingerprint)}
    for name in allow:
        if name not in keys:
            near = difflib.get_close_matches(name, [*keys, *(key.rpartition(".")[2] for key in keys)], n=1)
            named = sorted(key for key in keys if near and f".{key}".endswith(f".{near[0]}"))
            hint = f"did you mean {named[0]!r}?" if named else f"known: {', '.join(sorted(keys))}"
            raise BadInput(f"resume.allow names {name!r}, which is not a key of the run's fingerprint; {hint}")


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all branches and leaves."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")

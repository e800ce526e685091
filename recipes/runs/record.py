"""Read the record of a run, run.json, and check its form."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.files import JsonDict, read_json
from data_prep.common.json_text import Shape, check_shape

NUMBER = (int, float)
START: Shape = {
    "commit": str, "uncommitted": [str], "world_size": int, "gpus": [str], "processor": str, "no_commit?": str,
    "batch?": int, "allowed_differences?": [str],
}  # fmt: skip
_COUNTS: Shape = {"bytes": int, "documents": int, "tokens": int, "dropped_tokens": int, "samples": int}
_CORPUS: Shape = {
    "counts": {"*": {"documents": int, "sources": {"*": {"documents": int, "bytes": int}}}},
    "licenses": {"*": int},
    "dropped": {"*": int},
    "dates": {"first": (str, type(None)), "last": (str, type(None))},
}
_MIXED: Shape = {
    "shards": str,
    "shards_sha256": str,
    "share": NUMBER,
    "counts": {"train": _COUNTS, "val": _COUNTS},
    "corpus": _CORPUS,
}
# RECORD: keys that every command reads. TOLD: keys that a report or a card shows, with more of them for pre-training.
RECORD: Shape = {"identity": dict, "finished": bool, "starts": [dict]}
_ORIGIN: Shape = {"path": str, "sha256": str, "license?": (str, type(None))}
TOLD: Shape = {
    **RECORD,
    "starts": [START],
    "plan": {"parameters": int, "batches": int},
    "data": dict,
    "loss_unit?": str,
}
TOLD_OF_PRETRAINING: Shape = {
    **TOLD,
    "origin?": _ORIGIN,
    "plan": {"parameters": int, "batches": int, "tokens_per_batch": int, "train_tokens": int},
    "data": {
        "counts": {"train": _COUNTS, "val": _COUNTS, "*": _COUNTS},
        "baselines": {"unigram_nats_per_token": NUMBER, "xz9_bits_per_byte": NUMBER},
        "corpus": _CORPUS,
        "mix?": {"*": _MIXED},
    },
}
TOLD_OF_FINE_TUNING: Shape = {**TOLD, "plan": {"parameters": int, "batches": int, "trained_parameters": int}}


def read_record(path: Path) -> JsonDict:
    """Read run.json, and check the keys that resuming needs.

    Raises:
        BadInput: the file is missing or is not JSON, or a key is missing or has the wrong type.
    """
    record = read_json(path)
    check_shape(record, RECORD, str(path))
    return record


def read_told_record(path: Path) -> JsonDict:
    """Read run.json, and check the keys that a report or a model card shows.

    Raises:
        BadInput: as in `read_record`.
    """
    record = read_record(path)
    check_shape(record, TOLD, str(path))
    check_shape(record, TOLD_OF_PRETRAINING if "corpus" in record["data"] else TOLD_OF_FINE_TUNING, str(path))
    return record

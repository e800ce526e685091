"""Which states of a run folder are accepted or refused, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from holder import Holder
from recipes.runs.fingerprint import check_fingerprint, complete
from recipes.runs.lock import running
from recipes.runs.reading import changed_settings


def test_a_run_that_another_process_runs_is_refused(tmp_path: Path) -> None:
    with (
        Holder(tmp_path / "run") as holder,
        pytest.raises(BadInput, match=rf"(?s){holder.says}.*run_name=…"),
        running(tmp_path / "run"),
    ):
        pass
    with running(tmp_path / "run"):
        pass
    assert check_fingerprint(tmp_path / "run", {}) is None, "still a new folder"


RECORDED = {
    "optimizer": {"lr": 1e-3, "eps": 1e-8}, "sample_order": {"seed": 17}, "model": {"n_embd": 8, "attn_pdrop": 0.1},
    "schedule": {"batches": 60}, "shards_sha256": "ab",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "allow", "says"),
    [
        ({"optimizer": {"lr": 2e-3, "eps": 1e-8}}, [], r"lr: 0.001 -> 0.002\n.*resume.allow=\[optimizer.lr\]$"),
        ({"optimizer": {"lr": 2e-3, "eps": 1e-8}}, ["optimizer.eps"], r"optimizer.lr: 0.001 -> 0.002"),
        ({"optimizer": {"lr": 2e-3, "eps": 1e-8}}, ["optimizer"], None),
        ({"schedule": {"batches": 90}}, ["schedule.batches"], None),
        (
            {"sample_order": {"seed": 18}},
            ["sample_order"],
            r"seed: 17 -> 18   \(cannot change: .*\)\n[^=]*=…\), remove",
        ),
        ({"model": {"n_embd": 16, "attn_pdrop": 0.0}}, ["model"], r"n_embd: 8 -> 16   \(cannot change"),
        ({"model": {"n_embd": 8, "attn_pdrop": 0.0}}, ["model"], None),
        ({"shards_sha256": "cd"}, ["shards_sha256"], r"shards_sha256: 'ab' -> 'cd'   \(cannot change"),
        ({"shards_sha256": None}, [], None),  # the command does not know this value
        ({}, ["lr"], r"names 'lr', which is not a key of the run's fingerprint; did you mean 'optimizer.lr'\?"),
        ({}, ["sample_order.sed"], r"did you mean 'sample_order.seed'\?"),
        ({}, ["*"], r"known: model, model.attn_pdrop, .*, shards_sha256$"),
    ],
)
def test_what_differs_is_allowed_refused_or_cannot_change(
    changed: dict[str, object], allow: list[str], says: str | None, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"identity": RECORDED, "finished": False, "starts": []}))
    if says is None:
        assert check_fingerprint(tmp_path, RECORDED | changed, allow)
        return
    with pytest.raises(BadInput, match=f"(?s){says}"):
        check_fingerprint(tmp_path, RECORDED | changed, allow)


def test_older_records_had_what_their_configuration_says(tmp_path: Path) -> None:
    wanted = {"mixed_precision": "DEFAULT", "generation": {"num_beams": 5}}
    assert complete({}, wanted) == wanted
    config = tmp_path / "config.yaml"
    config.write_text("fsdp: {mixed_precision: PURE}\ngeneration: {num_beams: 4}\n")
    assert complete({}, wanted, config) == {"mixed_precision": "PURE", "generation": {"num_beams": 4}}
    config.write_text("fsdp: null\n")
    assert complete({}, wanted, config) == wanted
    recorded = {"mixed_precision": "FULL", "generation": {"num_beams": 3}}
    assert complete(recorded, wanted, config) == recorded, "the record is kept"
    assert complete({}, {"generation": None}) == {}, "no texts are generated"


def test_what_was_changed_on_resuming_is_told_of_what_still_counts() -> None:
    starts = [
        {"batch": 0, "allowed_differences": []},
        {"batch": 10, "allowed_differences": ["optimizer.lr: 1 -> 2"]},
        {"batch": 30, "allowed_differences": ["schedule.batches: 60 -> 90"]},
        {"batch": 20, "allowed_differences": ["optimizer.lr: 2 -> 3"]},  # back to before the last change
        {"batch": 40, "allowed_differences": []},
    ]
    changes = ["from batch 10: optimizer.lr: 1 -> 2", "from batch 20: optimizer.lr: 2 -> 3"]
    assert changed_settings({"starts": starts}) == changes
    assert changed_settings({"starts": [{"allowed_differences": ["optimizer.lr: 1 -> 2"]}]}) == [], (
        "the setting had no effect"
    )


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadInput, match=r"file/run cannot be locked.*: Not a directory"),
        running(tmp_path / "file/run"),
    ):
        pass

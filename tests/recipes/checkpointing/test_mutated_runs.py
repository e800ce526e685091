"""Run folders with any fault in a record, manifest or checkpoint are resumed, reported and exported, or refused.

The hashes may match, because the content may have been wrong when they were computed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import warm
from data_prep.common.errors import BadInput
from data_prep.common.manifest import seal
from hunting import hunt, hunt_on
from mutations import Draw, mutated
from oracle import problems
from project import ROOT
from recipes.checkpointing import checkpoint as checkpoints
from recipes.checkpointing.checkpoint import METADATA, MONOLITH, complete_checkpoints, manifest_of, remove, saved_at
from recipes.checkpointing.recorded_losses import recorded_after
from recipes.checkpointing.safe_loading import load_model_weights, write_sharded
from recipes.config.loading import load_config
from recipes.runs.reading import read_run
from recipes.training import pretraining

NEWEST = "checkpoints/ep0-ba4"
RECORDS = ("run.json", "metrics.jsonl", "config.yaml", "skipped.jsonl", "texts.jsonl")
# Reader of a run -> its command, and the files that get a fault.
READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "resume": ((), (*RECORDS[:4], f"{NEWEST}/manifest.json", f"{NEWEST}/{MONOLITH}")),
    "export": (
        ("recipes/export.py", "--checkpoint", "run", "--out", "out"),
        ("run.json", "config.yaml", f"{NEWEST}/manifest.json", f"{NEWEST}/{MONOLITH}"),
    ),
    "export of a sharded checkpoint": (
        ("recipes/export.py", "--checkpoint", "sharded", "--out", "out"),
        (f"{NEWEST}/{METADATA}", f"{NEWEST}/manifest.json", f"{NEWEST}/__0_0.distcp"),
    ),
    "report": (("recipes/report.py", "run", "--out", "page.html"), RECORDS),
    "report --checkpoints": (("recipes/report.py", "run", "--checkpoints"), ("config.yaml", f"{NEWEST}/manifest.json")),
}


@pytest.fixture(scope="module")
def settings(tiny_shards: Path, tiny_tokenizer: Path) -> list[str]:
    return [
        f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "data.seq_len=64", "data.num_workers=0",
        "model.vocab_size=600", "model.n_positions=64", "model.n_embd=16", "model.n_layer=2", "model.n_head=2",
        "max_duration=6ba", "global_train_batch_size=4", "device_train_microbatch_size=4", "scheduler.t_warmup=1ba",
        "eval_interval=4ba", "eval_subset_num_batches=1", "save_interval=2ba", "loggers.wandb=null",
        "callbacks.console=null", "stall_timeout_s=null",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def honest(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run that was killed after batch 5 and had one spike, and of the same run with a sharded checkpoint."""
    folder = tmp_path_factory.mktemp("honest")
    run, sharded = folder / "run", folder / "sharded"
    pretraining.train(load_config(ROOT / "yamls/smoke-cpu.yaml", [*settings, f"run_dir={run}"]))
    remove(complete_checkpoints(run / "checkpoints")[-1])
    remove(complete_checkpoints(run / "checkpoints")[0])
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "finished": False}))
    entry = {"from_batch": 3, "to_batch": 2, "losses": [9.5], "limit": 7.5, "windows": [[0, 300, 304]], "samples": 4}
    (run / "skipped.jsonl").write_text(json.dumps({**entry, "documents": 1, "details": "skipped-1.jsonl.zst"}) + "\n")
    shutil.copytree(run, sharded)
    manifest = json.loads((run / NEWEST / "manifest.json").read_text())
    remove(sharded / NEWEST)
    write_sharded(run / NEWEST, sharded / "partial")
    checkpoints.publish(sharded / "partial", sharded / NEWEST, saved_at(run / NEWEST), manifest["identity"])
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".NAME")
    }  # fmt: skip


def resume(settings: list[str]) -> tuple[str, str]:
    return "-c", (
        "import shutil\n"
        "from data_prep.common.errors import run\n"
        "from recipes import train\n"
        "shutil.copytree('run', 'copy')\n"
        f"run(lambda: train.command_line([{str(ROOT / 'yamls/smoke-cpu.yaml')!r}, *{settings!r}, 'run_dir=copy']))"
    )


def vouched_for(files: dict[str, bytes], folder: str) -> None:
    """Update the manifest of a checkpoint to its files as they are now."""
    name = f"{folder}/manifest.json"
    try:
        manifest = json.loads(files[name])
        for path, output in manifest["outputs"].items():
            content = files.get(f"{folder}/{path}", b"")
            output |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["seal"] = seal(manifest)
        files[name] = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    except Exception:  # the changed file is no manifest any more
        return


def found_in(reader: str, honest: dict[str, bytes], settings: list[str], folder: Path) -> Callable[[Draw], list[str]]:
    command, names = READERS[reader]
    run = "sharded" if "sharded" in reader else "run"

    def find(draw: Draw) -> list[str]:
        files = {name: content for name, content in honest.items() if name.startswith(f"{run}/")}
        chosen = f"{run}/{draw(st.sampled_from(names))}"
        files[chosen] = mutated(draw, chosen, files[chosen])
        if vouched := draw(st.integers(0, 3)) > 0:
            vouched_for(files, f"{run}/{NEWEST}")
        wrong = problems(command or resume(settings), files, folder / "case", imported=warm.IMPORTED)
        case = f"{chosen}, {len(files[chosen]):,} bytes, vouched for: {vouched}: {files[chosen][:2000]!r}"
        return [case, *wrong] if wrong else []

    return find


@pytest.mark.parametrize("reader", READERS)
def test_the_honest_run_is_read(reader: str, honest: dict[str, bytes], settings: list[str], tmp_path: Path) -> None:
    command = READERS[reader][0] or resume(settings)
    assert not problems(command, honest, tmp_path / "case", codes=(0,), imported=warm.IMPORTED)


@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_in_a_run(reader: str, honest: dict[str, bytes], settings: list[str], tmp_path: Path) -> None:
    hunt(found_in(reader, honest, settings, tmp_path), examples=5)


def without(*path: str) -> Callable[[bytes], bytes]:
    """The JSON of a file, without the key at the end of a path."""

    def change(content: bytes) -> bytes:
        value = inner = json.loads(content)
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return json.dumps(value).encode()

    return change


def resume_reads(folder: Path) -> None:
    manifest = folder / NEWEST / "manifest.json"
    record = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**record, "seal": seal(record)}))
    manifest_of(manifest.parent)
    recorded_after(folder / "metrics.jsonl", 4, 1)


def weights_are_read(folder: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=600, n_positions=64))
    load_model_weights(folder / NEWEST, model)


# Faults that the generator found at first: a file, its change, its reader, and the message.
FOUND: dict[str, tuple[str, Callable[[bytes], bytes], Callable[[Path], object], str]] = {
    "a record that is a text": ("run.json", lambda _: b'"a"', read_run, r"run\.json: it is a text"),
    "a record without data": ("run.json", without("data"), read_run, r"run\.json has no data;"),
    "a record without starts": ("run.json", without("starts"), read_run, r"run\.json has no starts;"),
    "counts without tokens": (
        "run.json", without("data", "counts", "val", "tokens"), read_run, r"run\.json has no data\.counts\.val\.tokens;"
    ),
    "a batch that is a list": (
        "metrics.jsonl", lambda content: content + b'{"batch": [1], "tokens": 1, "time_s": 1.0}\n{"batch": 1}\n',
        read_run, r"metrics\.jsonl, line \d+: batch is a list, not a whole number",
    ),
    "a text without a prompt": (
        "texts.jsonl", lambda content: b'{"batch": 1}\n' + content, read_run, r"texts\.jsonl, line 1 has no prompt;"
    ),
    "a configuration in Latin-1": ("config.yaml", lambda content: b"\xff" + content, read_run, "yaml is not valid"),
    "a rewind to a text": (
        "skipped.jsonl", lambda content: content.replace(b'"to_batch": 2', b'"to_batch": "2"'), read_run,
        r"skipped\.jsonl, line 1: to_batch is a text \('2'\), not a whole number",
    ),
    "a loss that nothing computed": (
        f"{NEWEST}/manifest.json", without("probe", "computed_with"), resume_reads,
        r"manifest\.json has no probe\.computed_with;",
    ),
    "a sum that is a text": (
        f"{NEWEST}/manifest.json", lambda content: content.replace(b'"bit_sums": {', b'"bit_sums": {"x": "1",'),
        resume_reads, r"manifest\.json: bit_sums\.x is not a whole number",
    ),
    "a start that computed with nothing": (
        "metrics.jsonl", lambda content: content.replace(b'"repeats": true', b'"repeats": 1'), resume_reads,
        r"metrics\.jsonl, a start: computed_with\.repeats is a whole number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_in_a_run(name: str, honest: dict[str, bytes], tmp_path: Path) -> None:
    file, change, read, says = FOUND[name]
    for path, content in honest.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    read(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(change(honest[f"run/{file}"]))
    with pytest.raises(BadInput, match=says):
        read(tmp_path / "run")


def test_a_damaged_part_is_named_in_one_line(honest: dict[str, bytes], tmp_path: Path) -> None:
    """One line replaces torch's message about all ranks, which has a traceback for each."""
    for path, content in honest.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    weights_are_read(tmp_path / "sharded")
    part = tmp_path / "sharded" / NEWEST / "__0_0.distcp"
    part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(BadInput, match=r"^\S+/__0_0\.distcp: it does not begin like a file of torch\.save") as error:
        weights_are_read(tmp_path / "sharded")
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.chaos
def test_whatever_is_in_a_run_for_ten_minutes(
    honest: dict[str, bytes], settings: list[str], tmp_path: Path, outcome: Any
) -> None:
    forms = {reader: found_in(reader, honest, settings, tmp_path) for reader in READERS}
    outcome("records and checkpoints: anything wrong", hunt_on(forms), "nothing")

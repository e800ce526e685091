"""Model folders with any fault in the values of a file are opened, or refused with a message.

`test_model_folder.py` has specific damages, and compares the results of folders that are opened anyway.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import warm
from hunting import hunt, hunt_on
from mutations import Draw, mutated
from oracle import problems

READERS = ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json")
OPEN = (
    "-c",
    "from pathlib import Path\n"
    "from data_prep.common.errors import run\n"
    "from recipes.modeling.model_folder import check_folder, load_pretrained\n"
    "def main():\n"
    "    check_folder(Path('model'))\n"
    "    load_pretrained(Path('model'))\n"
    "run(main)\n",
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("honest")
    sizes: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 600, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=599, eos_token_id=599)).save_pretrained(folder)
    for path in tiny_tokenizer.glob("*.json"):
        if path.name not in ("manifest.json", "scorecard.json"):
            shutil.copy(path, folder)
    shutil.copy(tiny_tokenizer / "merges.txt", folder)
    return {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}


def found_in(reader: str, honest: dict[str, bytes], folder: Path) -> Callable[[Draw], list[str]]:
    def find(draw: Draw) -> list[str]:
        files, name = dict(honest), f"model/{reader}"
        files[name] = mutated(draw, name, files[name])
        if draw(st.integers(0, 9)) == 9:
            other = draw(st.sampled_from(sorted(files)))
            files[other] = mutated(draw, other, files[other])
        wrong = problems(OPEN, files, folder / "run", imported=warm.IMPORTED)
        return [f"{name}, {len(files[name]):,} bytes: {files[name][:2000]!r}", *wrong] if wrong else []

    return find


def test_the_honest_folder_is_opened(honest: dict[str, bytes], tmp_path: Path) -> None:
    assert not problems(OPEN, honest, tmp_path / "run", codes=(0,), imported=warm.IMPORTED)


@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_in_a_model_folder(reader: str, honest: dict[str, bytes], tmp_path: Path) -> None:
    hunt(found_in(reader, honest, tmp_path), examples=8)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("reader", "forms"),
    [
        ("safetensors", ["model.safetensors"]),
        ("configuration and tokenizer", [name for name in READERS if name.endswith(".json")]),
    ],
)
def test_whatever_is_in_a_model_folder_for_ten_minutes(
    reader: str, forms: list[str], honest: dict[str, bytes], tmp_path: Path, outcome: Any
) -> None:
    seen = hunt_on({name: found_in(name, honest, tmp_path) for name in forms})
    outcome(f"{reader}: anything wrong in their values", seen, "nothing")

"""A tokenizer of others makes no file but a tokenizer's, and has transformers open no other file, class or code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_prep.common.errors import BadInput
from data_prep.tokenizing.tokenizer_format import read_vocabulary
from data_prep.tokenizing.tokenizer_settings import CLASSES, NOT_READ, check_settings
from recipes import export
from recipes.modeling.tokenizer_folder import check_tokenizer, open_tokenizer, save_tokenizer

FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}
ELSEWHERE = "../../written"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def untouched(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "untouched"
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def foreign(untouched: Path, tmp_path: Path) -> Path:
    """A GPT-2 of others, deep enough that a name with `../..` stays in the test's folder."""
    return shutil.copytree(untouched, tmp_path / "a/b/foreign")


def put(path: Path, **values: Any) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **values}))


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


NAMED: dict[str, Callable[[Path], object]] = {
    f"{form} in {file}": lambda folder, file=file, value=value: put(folder / file, chat_template=value)
    for file in ("tokenizer_config.json", "special_tokens_map.json")
    for form, value in {
        "list": [{"name": ELSEWHERE, "template": "x"}],
        "dict": {ELSEWHERE: "x"},
        "of honest names": [{"name": "default", "template": "x"}, {"name": "rag", "template": "x"}],
        "empty": [],
        "number": 7,
    }.items()
}


def a_folder_of_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("x")


@pytest.mark.parametrize("form", [*NAMED, "a folder"])
def test_named_templates_are_refused_and_nothing_is_written(form: str, foreign: Path, tmp_path: Path) -> None:
    """CVE-2026-9856: transformers would make a file of each name, wherever it points."""
    {**NAMED, "a folder": a_folder_of_templates}[form](foreign)
    before = tree(tmp_path)
    ways: list[Callable[[], object]] = [
        lambda: export.main(["--checkpoint", str(foreign), "--out", str(tmp_path / "a/b/out")]),
        lambda: save_tokenizer(open_tokenizer(foreign), tmp_path / "a/b/saved", 16),
        lambda: read_vocabulary(foreign),
    ]
    for way in ways:
        with pytest.raises(BadInput, match="chat_template"):
            way()
    assert tree(tmp_path) == before


def test_named_templates_make_no_file_where_they_pass_the_check(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lock: templates are saved inside tokenizer_config.json, so that no name becomes a file's."""
    monkeypatch.setattr("recipes.modeling.tokenizer_folder.check_settings", lambda folder: None)
    put(foreign / "tokenizer_config.json", chat_template=[{"name": ELSEWHERE, "template": "x"}])
    before = tree(tmp_path)
    save_tokenizer(open_tokenizer(foreign), tmp_path / "a/b/saved", 16)
    assert {path.name for path in tree(tmp_path) - before} <= FILES
    assert all(path.parent == tmp_path / "a/b/saved" for path in tree(tmp_path) - before)


@pytest.mark.parametrize("beside", [False, True])
def test_a_template_comes_through_an_export(beside: bool, foreign: Path, tmp_path: Path) -> None:
    if beside:
        (foreign / "chat_template.jinja").write_text(TEMPLATE)
    else:
        put(foreign / "tokenizer_config.json", chat_template=TEMPLATE)
    export.main(["--checkpoint", str(foreign), "--out", str(tmp_path / "out")])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    export.main(["--checkpoint", str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == TEMPLATE


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize(
    "name", ["TransfoXLTokenizer", "BertTokenizerFast", "GPT2", "owner/name", "", 7, ["GPT2Tokenizer"]]
)
def test_a_class_that_is_not_gpt2s_is_refused(file: str, name: Any, foreign: Path) -> None:
    put(foreign / file, tokenizer_class=name)
    for way in (check_tokenizer, open_tokenizer, read_vocabulary):
        with pytest.raises(BadInput, match=rf"{file}: tokenizer_class = .* GPT2Tokenizer, "):
            way(foreign)


@pytest.mark.parametrize("name", [*CLASSES, None])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_class_of_gpt2s_is_opened_as_stock_opens_it(name: str | None, file: str, foreign: Path) -> None:
    put(foreign / "tokenizer_config.json", tokenizer_class=None)
    put(foreign / file, tokenizer_class=name)
    check_tokenizer(foreign)
    try:
        stock = AutoTokenizer.from_pretrained(foreign)
    except ValueError:
        assert name == "TokenizersBackend"  # transformers 5's, which 4 does not have
        with pytest.raises(BadInput, match="TokenizersBackend does not exist"):
            open_tokenizer(foreign)
        return
    opened = open_tokenizer(foreign)
    assert type(opened) is type(stock)
    assert opened("Cytase is 5")["input_ids"] == stock("Cytase is 5")["input_ids"]


@pytest.mark.parametrize("kind", ["transfo-xl", "bert", "llama", "no such kind"])
def test_another_model_beside_a_tokenizer_does_not_choose_its_class(kind: str, foreign: Path) -> None:
    """`--tokenizer` takes any folder; without a class in it, transformers goes by the model in config.json."""
    expected = open_tokenizer(foreign)
    put(foreign / "tokenizer_config.json", tokenizer_class=None)
    put(foreign / "config.json", model_type=kind)
    assert type(open_tokenizer(foreign)) is type(expected)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("name", NOT_READ)
def test_settings_that_name_code_or_files_are_refused(name: str, file: str, foreign: Path) -> None:
    put(foreign / file, **{name: None})
    check_settings(foreign)  # as older versions of transformers write it
    put(foreign / file, **{name: ["/elsewhere/tokenizer.9.json", None]})
    for way in (check_tokenizer, read_vocabulary):
        with pytest.raises(BadInput, match=f"{file} asks for {name}"):
            way(foreign)

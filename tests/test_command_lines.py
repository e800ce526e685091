"""All options of all commands refuse invalid values before any work; the examples in all `--help` texts are valid."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import itertools
import random
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Parsed, main_of, options, parser_of
from data_prep.common.command_line import Allowed, FileToWrite, Parser, folder_to_make, names
from data_prep.common.errors import BadInput
from data_prep.common.limits import OneOf, Real, Text, Whole
from data_prep.sources.medline import language_codes
from pages import PAGES, RUN_BY, blocks
from project import COMMANDS, ROOT
from recipes.config.loading import load_config, load_finetune_config
from recipes.finetuning.sweep import read_grid

# Inputs: the code that reads them reports their errors. Outputs have their own types.
READ = {"model", "data", "runs", "run", "corpus", "tokenizer", "gpt2", "shards", "checkpoint", "predict"}
READ |= {"scores", "license_file", "input", "decontaminate", "exclude_pmids"}
# Texts that are looked up at once where they are used, or that are free.
TEXTS = {"yaml", "overrides", "given", "source", "gpu", "host", "prompt", "accept", "files"}
TEXTS |= {"url", "repository", "revision", "remote"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_type_that_refuses(command: str) -> None:
    """A new number, list or output without a type fails here."""
    for before, action in options(parser_of(command)):
        where = f"{command} {' '.join(before)} {action.option_strings or action.dest}"
        good = isinstance(action.type, (Allowed, FileToWrite)) or action.type in (names, folder_to_make, language_codes)
        if action.dest in ("out", "plot"):
            assert isinstance(action.type, FileToWrite) or action.type is folder_to_make, where
        elif action.type is Path:
            assert action.dest in READ, (
                f"{where}: an output needs folder_to_make or FileToWrite; add an input to READ here"
            )
        elif action.type is None and not action.choices:
            assert action.dest in READ | TEXTS, f"{where}: state its values with Allowed(…), or add it to TEXTS here"
        else:
            assert good or action.choices, where


def beyond(rule: Any, draw: random.Random) -> list[str]:
    if isinstance(rule, (Whole, Real)):
        far = [rule.low - draw.randint(2, 10**9), rule.high + draw.randint(2, 10**9), 10**30]
        ends = [n for n in (rule.low - 1, rule.high + 1) if n != rule.also]
        ends += [rule.low] * getattr(rule, "above", False) + [rule.high] * getattr(rule, "below", False)
        return [
            *map(str, (*far, *ends)),
            "nan",
            "inf",
            "-inf",
            "",
            "many",
            "1_00",
            "9" * 5000,
            *(["0.5"] * (type(rule) is Whole)),
        ]
    return ["", " ", "x\ty"] if isinstance(rule, Text) else [f"{rule.choices[0]}x"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_value_that_makes_no_sense_is_refused(command: str) -> None:
    main, draw = main_of(command), random.Random(command)
    for before, action in options(parser_of(command)):
        wrong: list[str] = []
        rule: object = None
        if isinstance(action.type, Allowed):
            wrong, rule = beyond(action.type.rule, draw), action.type.rule
            assert isinstance(rule, (Whole, Real, Text, OneOf))
        elif action.type in (names, language_codes):
            wrong, rule = ["", ",", "a,,b", "a,../b", "/a", "a b,.."], "must be"
        elif action.type is int or action.type is float:
            pytest.fail(f"{command} {action.dest}: {action.type}")
        first = [
            "--source",
            "medline" if action.dest in ("languages",) else "pmc" if action.dest == "licenses" else "text",
        ]
        for text in wrong:
            given = [*before, *(first if command.endswith("corpus.py") else []), f"{action.option_strings[0]}={text}"]
            with pytest.raises(BadInput, match=f"argument {action.option_strings[0]}: ") as refused:
                main(given)
            assert str(rule) in str(refused.value)
            assert "--help" in str(refused.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for before, action in options(parser_of(command)):
        if action.type is folder_to_make:
            wrong = {"file": "is a file", "file/x": "Not a directory", "/proc/x": "cannot be written", "": "a path"}
        elif isinstance(action.type, FileToWrite):
            ending = action.type.endings[0]
            (tmp_path / f"folder{ending}").mkdir(exist_ok=True)
            wrong = {
                f"folder{ending}": "is a folder", ".": "is a folder", f"missing/x{ending}": "no folder .*mkdir -p",
                "x.xyz": "must end in", "": "a path",
                f"file/x{ending}": "Not a directory", f"/proc/x{ending}": "cannot be written", "x": "must end in",
                f"{'x' * 300}/x{ending}": "too long",
            }  # fmt: skip
        else:
            continue
        for name, says in wrong.items():
            flag = action.option_strings[0]
            with pytest.raises(BadInput, match=rf"(?s)argument .*{flag}: .*{says}"):
                main_of(command)([*before, f"{flag}={tmp_path / name if name else ''}"])
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.rglob("*"))) < 5


def test_an_output_is_left_as_it_was(tmp_path: Path) -> None:
    for name in ("new", "deep/er/new"):
        assert folder_to_make(str(tmp_path / name)) == tmp_path / name
    assert FileToWrite((".json",))(str(tmp_path / "x.JSON")) == tmp_path / "x.JSON"
    assert not list(tmp_path.iterdir())


def test_a_list_may_have_blanks() -> None:
    assert names("a, b ,c,a") == ["a", "b", "c"]
    assert language_codes(" eng, fre") == "eng,fre"


ENDS = ("|", "&&", ">", "&", ";")  # the command at the beginning of a line
# Other commands that a block of a page may call: words of the shell, and other programs.
OTHERS = {"cd", ".", "cp", "mkdir", "export", "[", "exit", "for", "done", "grep"}
OTHERS |= {"git", "aws", "ray", "docker", "kubectl", "sky", "mcli", "tensorboard", "hf"}


def lines_of(text: str) -> Iterator[str]:
    """Lines, with continuation lines joined."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines)
        yield line


def in_line(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The project's commands in a command line, each with its arguments."""
    if words[:1] == ["make"]:
        made = ("-o", ".venv/installed", "-o", ".venv/development", "-o", ".venv/chromium")
        printed = subprocess.run(["make", "-n", *made, *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert printed.returncode == 0, f"{shlex.join(words)}: {printed.stderr}"
        for line in lines_of(printed.stdout):
            if re.match(r"@?\.venv(-next)?/bin/(python|composer) ", line):
                yield from in_line(shlex.split(line))
        return
    if "yamls/cluster/slurm.sbatch" in words:
        after = words[words.index("yamls/cluster/slurm.sbatch") + 1 :]
        yield ("recipes/sweep.py" if any("--array" in word for word in words) else "recipes/train.py"), after
    for number, word in enumerate(words):
        if " " in word:  # a line that another program runs
            yield from in_line(shlex.split(word.replace(";", " ; ")))
        elif word in COMMANDS:
            yield (
                word,
                list(itertools.takewhile(lambda word: word not in ("|", "&&", ">", "&", ";"), words[number + 1 :])),
            )


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each command line in each `--help`: the command and its arguments."""
    for command in COMMANDS:
        doc = importlib.import_module(command.removesuffix(".py").replace("/", ".")).__doc__ or ""
        for line in lines_of(doc):
            if "…" not in line and (f"python {command}" in line or f"composer {command}" in line):
                yield from in_line(shlex.split(line, comments=True))


def on_pages() -> Iterator[tuple[str, str]]:
    """Each command line of a block of each page: the page and the line."""
    for page in (page for page in PAGES if str(page.relative_to(ROOT)) not in RUN_BY):
        typed = (block.text for block in blocks(page) if block.is_of_commands)
        for line in (line.strip() for text in typed for line in lines_of(text)):
            if line and "…" not in line and not line.startswith(("#", "<")):
                yield page.name, line


EXAMPLES = list(examples())


def test_the_examples_are_found() -> None:
    assert {command for command, _ in EXAMPLES} == set(COMMANDS) and len(EXAMPLES) > 40
    assert len(list(on_pages())) > 60


@pytest.mark.parametrize(("command", "words"), EXAMPLES, ids=lambda one: one if isinstance(one, str) else " ".join(one))
def test_an_example_of_the_help_is_accepted(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepts(command, words, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_the_commands_on_a_page_are_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (line for name, line in on_pages() if name == page):
        words = shlex.split(line, comments=True)
        called = list(in_line(words))
        program = next((word for word in words if "=" not in word), "")  # none: only a variable is set
        assert called or program in {*OTHERS, "make", ""} or is_a_script(words), (
            f"{page}: which program does this call? {line}"
        )
        for number, (command, after) in enumerate(called):
            folder = tmp_path / f"{abs(hash(line))}-{number}"
            folder.mkdir()
            with monkeypatch.context() as patch:
                try:
                    accepts(command, after, folder, patch)
                except BadInput as error:
                    pytest.fail(f"{page}: {line}\n{error}")


def is_a_script(words: list[str]) -> bool:
    """Whether a line calls an existing benchmark or helper, or pytest."""
    paths = [ROOT / word for word in words if word.startswith(("benchmarks/", "tests/"))]
    return bool(paths) and all(Path(str(path).partition("::")[0]).exists() for path in paths)


def accepts(command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's parser accepts the words; if the command runs a configuration, it loads."""
    given = [
        part for word in words for part in (("*" in word and sorted(map(str, ROOT.glob(word.lstrip("/"))))) or [word])
    ]
    (tmp_path / "runs/smoke").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)

    def parse(parser: Parser, *arguments: Any) -> None:
        parsed, left = argparse.ArgumentParser.parse_known_args(parser, *arguments)
        assert not left
        raise Parsed(parsed)

    with monkeypatch.context() as patch, pytest.raises((Parsed, SystemExit)) as ended:
        patch.setattr(Parser, "parse_args", parse)
        patch.setattr(Parser, "parse_intermixed_args", lambda parser, argv: parse_intermixed(parser, argv))
        main_of(command)(given)
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == 0, "an option that prints something and stops"
        return
    parsed = ended.value.args[0]
    yamls = [name for name in (*getattr(parsed, "given", ()), getattr(parsed, "yaml", "")) if name.endswith(".yaml")]
    overrides = [text for text in (*getattr(parsed, "overrides", ()), *getattr(parsed, "given", ())) if "=" in text]
    for name in yamls:
        if command.endswith("sweep.py"):
            base, _ = read_grid(ROOT / name)
            load_finetune_config(base, overrides)
        elif command.endswith("finetune.py"):
            cfg = load_finetune_config(ROOT / name, overrides)
            if cfg.model == "runs/smoke":
                assert cfg.seq_len <= load_config(ROOT / "yamls/smoke-cpu.yaml").model.n_positions
        else:
            loaded(ROOT / name, tuple(overrides))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_ends_with_what_it_made_and_the_next_one(command: str) -> None:
    """Tests that run a command check the content of that line (`last_line.next_command`)."""
    tree = ast.parse((ROOT / command).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "say_made"]
    assert calls, "data_prep.common.last_line.say_made"
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    ways = (Path(command).name, *(f"{Path(command).stem}.{main}(" for main in ("main", "command_line")))
    assert any("next_command(" in text and any(way in text for way in ways) for text in tests)


loaded = functools.cache(load_config)


def parse_intermixed(parser: Parser, argv: list[str]) -> None:
    raise Parsed(argparse.ArgumentParser.parse_intermixed_args(parser, argv))

"""The names agree: the output of `make shards`, the paths in a YAML, and the command in an error message."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from commands import parser_of
from data_prep.common.errors import BadInput
from data_prep.common.limits import DEFAULT_SEQ_LEN
from data_prep.tokenizing.tokenizer_format import VOCAB_SIZE
from project import ROOT
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.planning.run_plan import check_shards, count_batches

YAMLS = [*ROOT.glob("yamls/*.yaml"), *ROOT.glob("yamls/ladder/**/*.yaml"), ROOT / "yamls/continue/domain.yaml"]
# Each of these changes makes a configuration ask for other shards.
CHANGES = [
    [],
    ["data.seq_len=64"],
    ["data.eos_between_documents=false"],
    ["data.seq_len=128", "data.eos_between_documents=false", "model.vocab_size=777"],
    ["data.shards=data/mine/shards", "data.tokenizer=data/mine/tokenizer"],
    ["data.shards=/local/fast disk/s", "data.tokenizer=/shared/it's $HOME #1/tokenizer"],
    ["data.shards=a$b/shards-7", "data.tokenizer=biomedlm"],
    ["data.shards=data/text/shards", "data.tokenizer=runs/smoke/tokenizer", "init_from=runs/smoke"],
]
Read = dict[str, Any]


def dry_run(line: str) -> subprocess.CompletedProcess[str]:
    dry = line.replace("make", "make -n PYTHON=none", 1)  # which the command would look for, and does not need
    return subprocess.run(["bash", "-c", dry], cwd=ROOT, capture_output=True, text=True)


def made_by(line: str) -> dict[str, Read]:
    """Arguments of each stage when a command is typed in the project's folder: command -> its arguments."""
    done = dry_run(line)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    stages: dict[str, Read] = {}
    for words in map(shlex.split, re.findall(r"^\S+/python (data_prep/.*)", done.stdout, re.MULTILINE)):
        if words[0] != "data_prep/corpus.py":  # its arguments depend on the sources
            stages[words[0]] = vars(parser_of(words[0]).parse_args(words[1:]))
        else:
            stages[words[0]] = {"words": words}
    return stages


def printed_command(cfg: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The command that the error of missing shards names."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        check_shards(cfg)
    (line,) = re.findall(r"does not exist.*`(make shards.*)`$", str(refused.value))
    return line


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_line_of_the_error_makes_what_the_yaml_reads(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in CHANGES if path.stem in ("smoke-cpu", "domain", "biomedlm-2.7b-2022") else CHANGES[:1]:
        if path.stem == "domain":
            change = [*change, "model.n_positions=1024"]
        cfg = load_config(path, change)
        stages = made_by(printed_command(cfg, tmp_path, monkeypatch))
        shards, trained = stages["data_prep/shards.py"], stages.get("data_prep/tokenizer.py")
        assert shards["out"] == Path(cfg.data.shards), change
        assert shards["tokenizer"] == Path(cfg.data.tokenizer), change
        assert shards["seq_len"] == cfg.data.seq_len and shards["no_eos"] != cfg.data.eos_between_documents, change
        assert (trained is None) == (cfg.init_from is not None or Path(cfg.data.tokenizer).name != "tokenizer")
        if trained:
            assert trained["out"] == Path(cfg.data.tokenizer) and trained["corpus"] == shards["corpus"]
            assert (trained["vocab_size"] or VOCAB_SIZE) == cfg.model.vocab_size, change


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_line_of_the_yaml_makes_what_it_reads(path: Path) -> None:
    """Each `make shards …` in the comments of a YAML, without those of its `base:`."""
    cfg = load_config(path)
    lines = re.findall(r"make shards(?: [A-Z_]+=(?:'[^']*'|[^\s`,.]+))*", path.read_text())
    assert lines or "base:" in path.read_text()
    for line in lines:
        shards = made_by(line.rstrip("."))["data_prep/shards.py"]
        assert (str(shards["out"]), shards["seq_len"]) == (cfg.data.shards, cfg.data.seq_len), line
        assert shards["no_eos"] != cfg.data.eos_between_documents, line


def test_sources_that_are_published_go_where_the_flagship_reads() -> None:
    cfg = load_config(ROOT / "yamls/biomedlm-2.7b.yaml")
    for sources in ("pile", "medline", "pmc", "medline pmc", "pmc medline pile"):
        stages = made_by(f"make shards SOURCE='{sources}'")
        words = stages["data_prep/corpus.py"]["words"]
        read = [word for name in sources.split() for word in ("--source", name, "--input", f"data/{name}/files")]
        assert words[1 : 1 + len(read)] == read
        assert stages["data_prep/shards.py"]["out"] == Path(cfg.data.shards)
    assert made_by("make shards SOURCE=text INPUT='my notes'")["data_prep/shards.py"]["out"] == Path("data/text/shards")
    assert made_by("make shards")["data_prep/shards.py"]["out"] == Path("data/sample/shards")
    assert made_by("make shards")["data_prep/shards.py"]["seq_len"] == DEFAULT_SEQ_LEN


@pytest.mark.parametrize("given", ["SOURCE='medline pmc' INPUT=x", "SOURCE='text pmc'", "SOURCE='sample text' INPUT=x"])
def test_several_sources_that_cannot_be_told_apart_are_refused_with_the_way_out(given: str) -> None:
    done = dry_run(f"make shards {given}")
    assert done.returncode == 2 and given.split(" INPUT")[0] in done.stderr
    lines = re.findall(r"make shards .*", done.stderr)
    assert len(lines) == 2
    for line in lines:
        assert made_by(line)["data_prep/corpus.py"]["words"].count("--source") == 2


def test_epochs_without_shards_name_the_command() -> None:
    cfg = load_config(ROOT / "yamls/continue/domain.yaml", ["init_from=biomedlm"])
    with pytest.raises(BadInput, match=r"data/text/shards is not built; .*make shards SOURCE=text"):
        count_batches(cfg, None)

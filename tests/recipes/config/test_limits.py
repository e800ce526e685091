"""Every value is read as typed, and every key of the schema has a range."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from yaml import YAMLError

from data_prep.common.errors import BadInput
from data_prep.common.limits import FILE_NAME, OneOf, Real, Rule, Text, Whole
from project import ROOT
from recipes.config.loading import load_config, load_finetune_config, to_yaml
from recipes.config.schema import LONGEST, FinetuneConfig, Items, RunConfig, Span, TrainConfig
from recipes.config.values import (
    Hint,
    hints_of,
    nested,
    parse_override,
    parse_yaml,
    read_section,
    read_value,
    write_override,
)
from recipes.finetuning.sweep import read_grid
from recipes.planning.cluster_estimate import make_forecast
from recipes.planning.estimate_text import format_forecast
from recipes.planning.gpus import LOCK
from recipes.planning.plan_text import format_plan
from recipes.planning.run_plan import make_plan

SMOKE, FINETUNE = ROOT / "yamls/smoke-cpu.yaml", ROOT / "yamls/finetune/pubmedqa.yaml"
SCHEMAS = pytest.mark.parametrize("schema", [TrainConfig, FinetuneConfig])
NO_NUMBERS = ["nan", "inf", "-inf", ".inf", "1e400", "9" * 5000, "fast", "1:30", "2026_11_27", "0x10", "true", "1,5"]
# Texts that YAML 1.1 reads as numbers, dates and truth values.
AS_TYPED = [
    "2026_11_27",
    "007",
    "1:30",
    "yes",
    "No",
    "off",
    "1e3",
    "0x1F",
    "2026-11-27",
    "1_000",
    ".5",
    "0b1",
    "y",
    "NaN",
]


def leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Hint]]:
    """Each dotted key with a value, and its entry in the schema."""
    for name, hint in hints_of(section).items():
        if isinstance(hint.type, type) and dataclasses.is_dataclass(hint.type):
            yield from leaves(hint.type, f"{prefix}{name}.")
        elif hint.named:
            yield from leaves(hint.named, f"{prefix}{name}.one.")
        else:
            yield f"{prefix}{name}", hint


def load(schema: type, overrides: Sequence[str]) -> RunConfig:
    if schema is TrainConfig:
        return load_config(SMOKE, overrides)
    return load_finetune_config(FINETUNE, ["model=m", "preset=cpu", *overrides])


def beyond(rule: Rule, draw: random.Random) -> list[str]:
    """Values just outside a rule, far outside it, and of another type."""
    if isinstance(rule, Whole):
        near = [n for n in (rule.low - 1, rule.high + 1) if n != rule.also]
        far = [-draw.randint(2, 10**12), rule.high + draw.randint(2, 10**12)]
        return [*map(str, (*near, *far)), f"{rule.low}.5", *NO_NUMBERS]
    if isinstance(rule, Real):
        far = [rule.low - draw.uniform(1, 1e9), rule.high + draw.uniform(1, 1e9), rule.high * 1e30]
        ends = [rule.low] * rule.above + [rule.high] * rule.below
        return [*(repr(n) for n in (*ends, *far) if n != rule.also), *NO_NUMBERS]
    if isinstance(rule, Span):
        others = [f"10{unit}" for unit in {"tok", "ba", "ep", "h", ""} - set(rule.units)]
        numbers = (rule.least - 1, "1e30", "1e999", "nan", "inf", "-1", "1.5", "", "9" * 5000)
        return [*others, *(f"{n}{unit}" for n in numbers for unit in rule.units), "soon"]
    if isinstance(rule, OneOf):
        return [f"{rule.choices[0]}x", f"{rule.choices[0]}, {rule.choices[0]}", "7"]
    assert isinstance(rule, Text), rule
    names = ["../../zz", "/etc", "a/b", "..", ".", "x" * 300, "a\\b", " a"] if rule == FILE_NAME else []
    return ['""', '" "', r'"a\0b"', *(json.dumps(name) for name in names)]


def refused(key: str, hint: Hint, draw: random.Random) -> Iterator[str]:
    """Overrides of a key that must be refused."""
    yield f"{key}.0=0.8"
    yield f"{key}={{a: 1}}"
    if not hint.nullable:
        yield f"{key}=null"
    if hint.items is None:
        rule = hint.rule or OneOf(("true", "false"))
        yield from (f"{key}={text}" for text in [*beyond(rule, draw), "[1, 2]", "???"])
        return
    assert hint.items.rule and isinstance(hint.rule, Items)
    for text in beyond(hint.items.rule, draw):
        quoted = text if text[:1] == '"' else f'"{text}"'
        yield f"{key}=[{', '.join([quoted] * max(1, hint.rule.least))}]"
    yield from (f"{key}={text}" for text in ("7", "[{a: 1}]", "[[1]]", "[null]"))
    yield f"{key}=[{', '.join(['0.5'] * (hint.rule.most + 1))}]"
    if hint.rule.least:
        yield f"{key}=[]"


@SCHEMAS
def test_every_key_says_what_it_may_be(schema: type) -> None:
    """A new field without a rule fails here; only switches need none."""
    for key, hint in leaves(schema):
        assert (hint.rule is None) == (hint.type is bool), f"{key}: state its range in recipes/config/schema.py"
        assert hint.items is None or (hint.items.rule and isinstance(hint.rule, Items)), (
            f"{key}: state the range of its items"
        )


@SCHEMAS
def test_a_value_beyond_is_refused_with_its_key_and_what_is_allowed(schema: type) -> None:
    draw, taken, seen = random.Random(17), [], 0
    for key, hint in leaves(schema):
        for override in refused(key, hint, draw):
            where, _, text = override.partition("=")
            seen += 1
            try:
                read_section(nested(where, parse_override(text)), schema)
            except BadInput as error:
                allowed = str(
                    (hint.items.rule if hint.items and f"{key}[" in str(error) else hint.rule) or "one of true"
                )
                if not str(error).startswith(key) or f"must be {allowed}" not in str(error):
                    taken.append(f"{override[:80]} is refused by {error}")
            else:
                taken.append(f"{override[:80]} is taken")
    assert not taken, "\n".join(taken)
    assert seen > 500


@SCHEMAS
def test_the_ends_of_a_range_are_in_it(schema: type) -> None:
    for key, hint in leaves(schema):
        if isinstance(hint.rule, Whole):
            values = [read_value(key, str(n), schema) for n in (hint.rule.low, hint.rule.high)]
            assert values == [hint.rule.low, hint.rule.high] and all(type(n) is int for n in values), key
        elif isinstance(hint.rule, Real):
            ends = [hint.rule.low] * (not hint.rule.above) + [hint.rule.high] * (not hint.rule.below)
            assert [read_value(key, repr(n), schema) for n in ends] == ends, key
        elif isinstance(hint.rule, OneOf):
            assert [read_value(key, one, schema) for one in hint.rule.choices] == list(hint.rule.choices), key
        elif isinstance(hint.rule, Span):
            assert read_value(key, f"1e3{hint.rule.units[0]}", schema) == f"1e3{hint.rule.units[0]}", key


@SCHEMAS
def test_a_text_is_what_was_typed(schema: type, tmp_path: Path) -> None:
    """Texts in overrides and files, plain and quoted, also through a run folder's config.yaml and a sweep's command."""
    texts = [key for key, hint in leaves(schema) if isinstance(hint.rule, Text) and "s3" not in str(hint.rule)]
    assert {"run_name", "run_dir"} < set(texts)
    for key in texts:
        for typed in AS_TYPED:
            for override in (f"{key}={typed}", f'{key}="{typed}"', f"{key}= {typed} ", write_override(key, typed)):
                where, _, text = override.partition("=")
                assert read_section(nested(where, parse_override(text)), schema) == nested(key, typed), override
            assert read_section(parse_yaml(f"{{{key.replace('.', ': {')}: {typed}{'}' * (key.count('.') + 1)}"), schema)
    for typed in ("2026_11_27", "a #b", "- a: !x, *b", "µ"):
        cfg = load(schema, [f"run_name={typed}"])
        assert (cfg.run_name, cfg.run_dir) == (typed, f"runs/{typed}")
    given = ["run_name=007", "run_dir=1:30", 'loggers.wandb={tags: [007, yes, "1:30"], group: 1e3}', "seed=1_000"]
    cfg = load(schema, given)
    assert cfg.loggers.wandb and (cfg.loggers.wandb.tags, cfg.loggers.wandb.group) == (["007", "yes", "1:30"], "1e3")
    assert cfg.seed == 1000
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    reader = load_config if schema is TrainConfig else load_finetune_config
    assert reader(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    "value", [None, "null", "~", "", " a", "[x]", "{", "'a'", '"', "a", 1e-6, True, ["a", "007"], {"r": 8}]
)
def test_what_a_sweep_writes_on_a_command_line_is_read_back(value: object) -> None:
    key, _, text = write_override("a.b", value).partition("=")
    value_read = parse_override(text)
    same = value if value is None or isinstance(value, str) else parse_yaml(json.dumps(value))
    assert (key, value_read) == ("a.b", same)


def test_a_value_from_another_key_is_held_against_the_rule_too() -> None:
    assert load_config(SMOKE, ["seed=${model.n_layer}", "run_name=${seed}-x"]).run_name == "4-x"
    for override, says in (
        ("device_eval_batch_size=${optimizer.lr}", "device_eval_batch_size"),
        ("run_name=../${seed}", r"run_name = '../17', but it must be the name of one folder"),
        ("data.num_workers=${seed}000", r"data.num_workers = 17000, but it must be a whole number from 0 to 256"),
    ):
        with pytest.raises(BadInput, match=f"smoke-cpu.yaml: .*{says}"):
            load_config(SMOKE, [override])


def test_a_file_is_held_to_it_as_an_override_is(tmp_path: Path) -> None:
    for line, says in (
        ("seed: -1", "mine.yaml: seed = -1, but it must be a whole number from 0"),
        ("optimizer: {betas: {0: 0.8}}", "mine.yaml: optimizer.betas = .* must be a list of 2 values"),
        ("run_name: ../x", "mine.yaml: run_name = '../x'"),
    ):
        (tmp_path / "mine.yaml").write_text(f"base: {SMOKE}\n{line}\n")
        with pytest.raises(BadInput, match=says):
            load_config(tmp_path / "mine.yaml")


def test_every_yaml_that_is_shipped_passes() -> None:
    passed = 0
    for path in sorted((ROOT / "yamls").rglob("*.yaml")):
        place = path.relative_to(ROOT / "yamls").parts
        if place[0] == "cluster":
            continue  # job files of schedulers
        if place[:2] == ("finetune", "presets"):
            load_finetune_config(FINETUNE, ["model=m", f"preset={path.stem}"])
        elif place == ("finetune", "base.yaml"):
            read_section(parse_yaml(path.read_text()), FinetuneConfig)
        elif "sweep" in path.stem:
            base, _ = read_grid(path)
            load_finetune_config(base, ["model=m"])
        elif place[0] == "finetune":
            load_finetune_config(path, ["model=m", *(["task=mine"] if path.stem == "ner" else [])])
        else:
            load_config(path, ["data.mix.old.shards=old"] if path.stem == "refresh" else [])
        passed += 1
    assert passed > 20


def test_a_value_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {SMOKE}\na: &a [*a]\n")
    (tmp_path / "null.yaml").write_text('base: "a\\0b"\n')
    for name in ("mine", "null"):
        with pytest.raises(BadInput):
            load_config(tmp_path / f"{name}.yaml")
    with pytest.raises(YAMLError):
        parse_override("[1, 2")
    with pytest.raises(BadInput, match=r"override 'optimizer.betas=\[1, 2'"):
        load_config(SMOKE, ["optimizer.betas=[1, 2"])


def test_no_value_in_its_range_hangs_or_overflows_the_plan() -> None:
    """At both ends of each range, plan and memory are computed or refused."""
    whole = load_config(ROOT / "yamls/biomedlm-2.7b.yaml", ["data.mix.one={shards: old, share: 0.5}"])
    planned = 0
    for key, hint in leaves(TrainConfig):
        *sections, last = key.split(".")
        ends: list[object] = []
        if isinstance(hint.rule, (Whole, Real)):
            ends = [hint.rule.low, hint.rule.high]
        elif isinstance(hint.rule, Span):
            ends = [f"{n}{unit}" for unit in hint.rule.units for n in (hint.rule.least, LONGEST[unit])]
        for value in ends:
            cfg: Any = copy.deepcopy(whole)
            holder = functools.reduce(
                lambda of, name: of[name] if isinstance(of, dict) else getattr(of, name), sections, cfg
            )
            if holder is None or sections[:1] in (["callbacks"], ["loggers"]):
                continue  # the plan does not depend on them
            setattr(holder, last, value)
            try:
                plan = make_plan(cfg, cfg.world_size, None)
                cast = make_forecast(cfg, plan, "h100", 0.4, None, None, LOCK)
                assert format_plan(plan, cfg) and format_forecast(cast, cfg, plan)
                planned += 1
            except BadInput:
                pass  # refused because of a second key
    assert planned > 30

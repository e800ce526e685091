"""docs/configuration.md: every key of a YAML. `python tests/helpers/configuration_page.py` makes it from the schema.

The description of a key is the text below it in recipes/config/schema.py. The last column, about resumed runs, is
computed: each key gets other values, and the fingerprints are compared.
"""

from __future__ import annotations

import ast
import inspect
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from omegaconf import MISSING

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import OneOf, Real, Whole
from data_prep.common.manifest import difference
from data_prep.tasks.task_set import TaskSet
from project import ROOT
from recipes.checkpointing.trained_model import Source
from recipes.config import schema
from recipes.config.loading import load_config
from recipes.config.schema import Duration, FinetuneConfig, RunConfig, Span, TrainConfig
from recipes.config.values import Hint, hints_of
from recipes.finetuning.planning import finetuning_fingerprint
from recipes.planning.run_plan import make_plan
from recipes.runs.fingerprint import FIXED, pretraining_fingerprint

PAGE = ROOT / "docs/configuration.md"
PLACE = ("run_name", "run_dir")  # where a run is looked for
HEAD = """# Every key of a configuration

`python tests/helpers/configuration_page.py` makes this page from recipes/config/schema.py, and a test checks it.

In a YAML, a key stands below its section. On the command line, it follows the name of its section:

```bash
python recipes/train.py yamls/smoke-cpu.yaml optimizer.lr=2e-4 loggers.wandb=null --dry-run
```

`base:` in a YAML names another YAML. The keys of the YAML override those of its base, and the command line overrides
both. Unknown keys and values that are not allowed are refused before anything starts. The column "default" is the
default of the schema; the YAMLs of this project set most keys, and `--dry-run` prints every value of a run.

A duration is a number with its unit: `300e9tok` (tokens), `100ba` (batches) or `8ep` (epochs: passes over the data).
Keys that end in `_s` are in seconds.

The column "resume" says what happens if a run is resumed with another value:

- *acts*: the new value is used from then on; losses change by rounding at most.
- *allow NAME*: the run is refused; with `resume.allow=[NAME]` it is resumed, and the next batch uses the new value.
- *no*: the run is always refused: it would read some of its data twice, or its weights would not fit.
- *another run*: a new run begins.

For a path, another value means other contents; the same files in another place are the same run. More in
[operations.md](operations.md#what-must-match).
"""


class Key(NamedTuple):
    """A key of the schema: its name after the names of its sections, its range, its default and its description."""

    name: str
    hint: Hint
    default: Any
    text: str


def texts_of(section: type) -> dict[str, str]:
    """Key -> the text below it in the schema."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(section)).body if isinstance(node, ast.ClassDef))
    texts = {}
    for before, node in pairwise(body):
        docstring = node.value if isinstance(node, ast.Expr) else None
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(docstring, ast.Constant)
            and isinstance(docstring.value, str)
        ):
            assert isinstance(before.target, ast.Name)
            texts[before.target.id] = " ".join(docstring.value.split())
    return texts


def keys_of(section: type, prefix: str = "", without: type | None = None) -> list[Key]:
    """Keys of a section; with `without`, only those that the other section lacks."""
    inherited = {one.name: one for one in fields(without)} if without else {}
    # An inherited key that a class defines again counts as a key of that class.
    anew = inspect.get_annotations(section)
    hints, texts = hints_of(section), {}
    for one in reversed(section.__mro__):
        texts |= texts_of(one) if is_dataclass(one) else {}
    return [
        Key(f"{prefix}{one.name}", hints[one.name], _default(one), texts.get(one.name, ""))
        for one in fields(section)
        if one.name not in inherited or one.name in anew
    ]


def _default(one: Field) -> Any:
    return one.default if one.default is not NO_DEFAULT else one.default_factory()  # type: ignore[misc]


def sections_below(section: type, prefix: str = "", without: type | None = None) -> Iterator[tuple[str, type, bool]]:
    """(prefix of its keys, section, whether it may be null) for all nested sections, outer ones first."""
    for key in keys_of(section, prefix, without):
        inner = key.hint.named or key.hint.type
        if isinstance(inner, type) and is_dataclass(inner):
            below = f"{key.name}.NAME." if key.hint.named else f"{key.name}."
            yield below, inner, key.hint.nullable
            yield from sections_below(inner, below)


def fields_without_text(section: type) -> list[str]:
    """Keys with a value, also in nested sections, that have no description."""
    sections = [("", section), *((prefix, inner) for prefix, inner, _ in sections_below(section))]
    keys = [key for prefix, one in sections for key in keys_of(one, prefix)]
    return [key.name for key in keys if not key.text and not is_dataclass(key.hint.type)]


def fingerprint_of(cfg: Any, folder: Path) -> JsonDict:
    """Fingerprint of a run of this configuration; a path stands for the hash of its contents."""
    if isinstance(cfg, TrainConfig):
        of_shards = (cfg.data.shards, cfg.data.eos_between_documents, cfg.data.seq_len)
        shards: Any = SimpleNamespace(sha256=of_shards, tokenizer_sha256=cfg.data.tokenizer)
        mix = [SimpleNamespace(name=name, shards_sha256=of.shards) for name, of in (cfg.data.mix or {}).items()]
        plan: Any = SimpleNamespace(batches=make_plan(cfg, cfg.world_size, None).batches, mix=mix)
        return pretraining_fingerprint(cfg, plan, shards, cfg.init_from)
    plan = SimpleNamespace(batches=Duration.parse(cfg.max_duration, "").value)
    task = TaskSet(cfg.task, "pairs", {}, {f"{cfg.data}/train.jsonl": ""})
    return finetuning_fingerprint(cfg, plan, task, Source(folder, folder, None, cfg.model))


def other_values(hint: Hint, value: Any) -> Iterator[Any]:
    """Other values that the key may have."""
    rule = hint.rule
    if hint.nullable and value is not None:
        yield None
    if isinstance(hint.type, type) and is_dataclass(hint.type):
        tried: list[Any] = [hint.type()] if value is None else []
    elif hint.items:
        tried = [[0.5, *(value or [])[1:]]] if hint.items.type is float else [["other"]]
    elif rule is None:
        tried = [not value]
    elif isinstance(rule, OneOf):
        tried = [choice for choice in rule.choices if choice != value]
    elif isinstance(rule, Span):
        duration = Duration.parse(value or "7ba", "")
        tried = [f"{2 * duration.value or 1}{duration.unit}"]
    elif isinstance(rule, Whole):
        tried = [2 * value, value // 2, value + 1] if value else [1, 2]
    elif isinstance(rule, Real):
        tried = [value / 2, value + 0.1] if value else [0.3, 3]
    else:
        tried = ["other", "s3://bucket/other"]
    yield from (other for other in tried if rule is None or rule.admits(other))


def on_resume(key: Key, cfg: RunConfig, folder: Path) -> str:
    """How a resumed run treats another value of a key, in the words of the page; `-` if it has only one value."""
    if key.name in PLACE:
        return "another run"
    *sections, last = key.name.split(".")
    known, answers = fingerprint_of(cfg, folder), set()
    for other in other_values(key.hint, getattr(_section(cfg, sections), last)):
        changed = deepcopy(cfg)
        setattr(_section(changed, sections), last, other)
        try:
            lines = difference(known, fingerprint_of(changed, folder))
        except BadInput:
            continue  # the plan refuses this value
        answers.add(_answer([line.split(":")[0] for line in lines]))
    if not answers:
        return "-"
    return min(answers, key=lambda answer: ("no", "allow", "acts").index(answer.split(" ")[0]))


def _section(cfg: RunConfig, names: list[str]) -> Any:
    section: Any = cfg
    for name in names:
        section = section[name] if isinstance(section, dict) else getattr(section, name)
    return section


def _answer(changed: list[str]) -> str:
    if any(fnmatchcase(name, pattern) for name in changed for pattern in FIXED):
        return "no"
    return f"allow `{', '.join(changed)}`" if changed else "acts"


def _values(key: Key) -> str:
    """The values that a key may have."""
    hint = key.hint
    if hint.named or is_dataclass(hint.type):
        text = f"section{'s' if hint.named else ''} (below)"
    elif hint.items:
        text = f"{hint.rule}, each {hint.items.rule}"
    else:
        text = str(hint.rule or "true or false")
    return text + (", or null" if hint.nullable else "")


def _table(keys: list[Key], ask: Callable[[Key], str]) -> str:
    rows = ["| key | what it does | value | default | resume |", "|---|---|---|---|---|"]
    for key in keys:
        default = "must be given" if key.default == MISSING else f"`{_yaml(key.default)}`"
        cells = (f"`{key.name}`", key.text, _values(key), default, ask(key))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole_configurations() -> tuple[TrainConfig, FinetuneConfig]:
    """A pre-training and a fine-tuning configuration with every section, also those that are off by default."""
    train = load_config(ROOT / "yamls/biomedlm-2.7b.yaml", ["save_permanent_interval=20000ba"])
    train.data.mix = {"NAME": schema.MixConfig(shards="old", share=0.25)}
    tune = FinetuneConfig(run_name="tune", task="set", model="model", max_duration="100ba", eval_interval="10ba")
    tune.lora, tune.optimizer = schema.LoraConfig(), schema.OptimizerConfig(lr=1e-5, weight_decay=0.1)
    tune.global_train_batch_size = tune.device_train_microbatch_size = tune.device_eval_batch_size = 8
    tune.precision, tune.save_interval = "fp32", "10ba"
    for cfg in (train, tune):
        cfg.fsdp = cfg.fsdp or schema.FSDPConfig()
        for group in (cfg.callbacks, cfg.loggers):
            for name, hint in hints_of(type(group)).items():
                setattr(group, name, getattr(group, name) or hint.type())
    return train, tune


def configuration_page() -> str:
    """The page: the keys of every run, then the further keys of pre-training and of fine-tuning."""
    train, tune = _whole_configurations()
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text("{}")
        for title, section, without, cfg in (
            ("Every run", RunConfig, None, train),
            ("Pre-training: train.py", TrainConfig, RunConfig, train),
            ("Fine-tuning: finetune.py", FinetuneConfig, RunConfig, tune),
        ):
            parts.append(f"\n## {title}\n\n")
            ask = partial(on_resume, cfg=cfg, folder=folder)
            parts.append(_table([key for key in keys_of(section, without=without) if key.text], ask))
            for prefix, inner, nullable in sections_below(section, without=without):
                keys = [key for key in keys_of(inner, prefix) if key.text]
                off = " Null turns it off." if nullable and prefix.split(".")[0] in ("callbacks", "loggers") else ""
                if prefix in ("callbacks.", "loggers."):
                    continue
                parts.append(f"\n### {prefix[:-1]}\n\n{' '.join((inner.__doc__ or '').split())}{off}\n")
                parts.append("\n" + _table(keys, ask) if keys else "")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")

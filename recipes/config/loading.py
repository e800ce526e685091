"""From YAML files and `key=value` overrides to a checked configuration, and back to YAML.

A misspelt key or a wrong type at any depth is refused with the file and the key, before torch is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from data_prep.common.errors import BadInput
from recipes.config.checks import check_finetuning, check_pretraining, check_values
from recipes.config.old_keys import refuse_old_keys, translate_old_keys
from recipes.config.schema import FinetuneConfig, RunConfig, TrainConfig

PRESETS = Path(__file__).parents[2] / "yamls/finetune/presets"
Config = TypeVar("Config", bound=RunConfig)


def read_yaml(path: Path) -> DictConfig:
    """Read one file, without its base.

    Raises:
        BadInput: it is missing, not YAML, or no mapping.
    """
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; the ready-made configurations are yamls/*.yaml") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise BadInput(f"{path} must hold `key: value` pairs at its top level")
    return loaded


def _explain(error: OmegaConfBaseException) -> str:
    """One line for an OmegaConf error: the full key, what is wrong with it, and the nearest key that exists."""
    key = error.full_key or str(error.key)
    if isinstance(error, ConfigKeyError) and error.object_type is not None:
        known = list(getattr(error.object_type, "__dataclass_fields__", {}))
        near = difflib.get_close_matches(str(key).rsplit(".", 1)[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'nothing'}"
        return f"unknown key {key!r}; {hint}"
    return f"{key!r}: {(error.msg or str(error)).splitlines()[0]}"


def load_config(yaml: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read the configuration of a pre-training run: its base, itself, then `key.sub=value` overrides.

    Raises:
        BadInput: a file is missing or not YAML; a key is unknown, missing or of the wrong type; a value is impossible.
    """
    return _pretraining(_layers(Path(yaml), overrides), str(yaml))


def load_recorded_config(path: Path) -> TrainConfig:
    """Read the config.yaml of a pre-training run's folder, which an earlier version may have written.

    Raises:
        BadInput: as `load_config`; or it holds a setting that this version has not.
    """
    layer = read_yaml(path)
    translate_old_keys(str(path), layer)
    return _pretraining([(str(path), layer)], str(path))


def _pretraining(layers: Sequence[tuple[str, DictConfig]], name: str) -> TrainConfig:
    cfg = _merge(TrainConfig, layers, name)
    check_values(cfg, name)
    check_pretraining(cfg, name)
    return cfg


def load_finetune_config(yaml: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read the configuration of a fine-tuning run: its base, itself, its preset, then overrides.

    Raises:
        BadInput: as `load_config`; or an unknown preset.
    """
    layers = _layers(Path(yaml), overrides)
    preset = next((layer["preset"] for _, layer in reversed(layers) if "preset" in layer), FinetuneConfig.preset)
    path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise BadInput(f"preset = {preset!r} is not one of {known}")
    layers.insert(len(layers) - len(overrides), (str(path), read_yaml(path)))
    cfg = _merge(FinetuneConfig, layers, str(yaml))
    check_values(cfg, str(yaml))
    check_finetuning(cfg, str(yaml))
    return cfg


def _layers(path: Path, overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """What a configuration is merged of, each with its name: its base and the base's own, itself, the overrides.

    Raises:
        BadInput: a file is missing or not YAML, or an override has another form.
    """
    layers = [(str(path), read_yaml(path))]
    if "grid" in layers[0][1]:
        raise BadInput(f"{path} holds a grid of runs: python recipes/sweep.py {path} … runs them")
    read = [path.resolve()]
    while base := layers[0][1].pop("base", None):
        base_path = Path(layers[0][0]).parent / str(base)
        if base_path.resolve() in read:
            raise BadInput(f"{layers[0][0]}: base = {base} leads back to a file that builds on it")
        read.append(base_path.resolve())
        layers.insert(0, (str(base_path), read_yaml(base_path)))
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise BadInput(f"override {override!r} is not of the form key=value, such as optimizer.lr=2e-4")
        try:
            layers.append((f"override {override!r}", OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException) as error:
            raise BadInput(f"override {override!r}: {error}") from None
    for name, layer in layers:
        refuse_old_keys(name, layer)
    return layers


def _merge(schema: type[Config], layers: Sequence[tuple[str, DictConfig]], name: str) -> Config:
    merged: Any = OmegaConf.structured(schema)
    for layer_name, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise BadInput(f"{layer_name}: {_explain(error)}") from None
    try:
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise BadInput(f"{name} leaves out: {', '.join(missing)}")
        return cast(Config, OmegaConf.to_object(merged))
    except (MissingMandatoryValue, OmegaConfBaseException) as error:
        raise BadInput(f"{name}: {_explain(error)}") from None


def to_yaml(cfg: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))

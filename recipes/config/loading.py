"""Load a configuration from YAML files and `key=value` overrides, check it, and write it back to YAML.

A misspelt key or a value of a wrong type is refused before torch is imported; the message names the file and the key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from data_prep.common.bounds import YAML_CHARACTERS
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import PATH
from data_prep.common.redaction import without_credentials_within
from data_prep.tokenizing.tokenizer_format import TOKENIZER_JSON, VOCAB_SIZE, read_vocabulary
from recipes.config.checks import check_every_run, check_finetuning, check_pretraining
from recipes.config.old_keys import refuse_old_keys, translate_old_keys
from recipes.config.schema import FinetuneConfig, RunConfig, TrainConfig
from recipes.config.values import check_section, nested, parse_override, parse_yaml, read_section

PRESETS = Path(__file__).parents[2] / "yamls/finetune/presets"
Config = TypeVar("Config", bound=RunConfig)
Layer = tuple[str, dict[str, Any]]  # name of a file or override, for messages, and its contents


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one file, without its base, with all values as text.

    Raises:
        BadInput: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            loaded = parse_yaml(file.read(YAML_CHARACTERS + 1))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; the ready-made configurations are yamls/*.yaml") from None
    except (YAMLError, ValueError) as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise BadInput(f"{path} must hold `key: value` pairs at its top level")
    return loaded


def read_typed_yaml(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a run folder, with YAML's own types: numbers, true and false, texts.

    Raises:
        BadInput: as in `read_yaml`; or YAML does not know the type of a value.
    """
    read_yaml(path)
    try:
        return safe_load(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None


def load_config(
    yaml: str | Path, overrides: Sequence[str] = (), read_origin: Callable[[Path], JsonDict] | None = None
) -> TrainConfig:
    """Read the configuration of a pre-training run: its base, then the YAML, then `key.sub=value` overrides.

    Args:
        yaml: the file.
        overrides: overrides of the form `key.sub=value`.
        read_origin: function that returns the `model` and `data` settings of the model in `init_from`. They take
            precedence over a base file. None: nothing is read from `init_from`.

    Raises:
        BadInput: a file is missing or is not YAML; a key is unknown, missing or of the wrong type; a value is not
            allowed; the YAML or an override describes another `model` than that in `init_from`.
    """
    layers = _layers(Path(yaml), overrides)
    origin = next((layer["init_from"] for _, layer in reversed(layers) if "init_from" in layer), None)
    if origin is None or origin == "null" or read_origin is None:
        return _pretraining(layers, str(yaml))
    if origin == "FOLDER":  # placeholder of yamls/continue, which the user must replace
        raise BadInput(f"{yaml} continues a model: set init_from=FOLDER to a model folder, run folder or checkpoint")
    if not isinstance(origin, str) or not PATH.admits(origin):
        raise PATH.refuse("init_from", origin)
    theirs = read_origin(Path(origin))
    sections = {key: {name: _written(value) for name, value in of.items()} for key, of in theirs.items()}
    layers.insert(len(layers) - len(overrides) - 1, (f"init_from = {origin}", sections))
    cfg = _pretraining(layers, str(yaml))
    other = {name: value for name, value in theirs["model"].items() if getattr(cfg.model, name) != value}
    if other:
        lines = (
            f"model.{name} = {getattr(cfg.model, name)!r}, but {origin} has {value!r}" for name, value in other.items()
        )
        raise BadInput(f"{yaml}: init_from = {origin} has another architecture; leave out:\n  " + "\n  ".join(lines))
    return cfg


def _written(value: object) -> str:
    """Write a value as in a YAML file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_recorded_config(path: Path) -> TrainConfig:
    """Read the config.yaml of a pre-training run's folder, which an earlier version may have written.

    Raises:
        BadInput: as in `load_config`; or the file holds a setting that this version does not have.
    """
    layer = read_yaml(path)
    translate_old_keys(str(path), layer)
    return _pretraining([(str(path), layer)], str(path))


def _pretraining(layers: Sequence[Layer], name: str) -> TrainConfig:
    _fill_in_the_vocabulary(layers)
    cfg = _merge(TrainConfig, layers, name)
    check_every_run(cfg, name)
    check_pretraining(cfg, name)
    return cfg


def _fill_in_the_vocabulary(layers: Sequence[Layer]) -> None:
    """Replace a null `model.vocab_size` by the size of `data.tokenizer`, or BioMedLM's if there is no tokenizer yet.

    `check_shards` later compares it with the shards.

    Raises:
        BadInput: the files of the tokenizer were altered.
    """

    models, data = (
        [layer[name] for _, layer in layers if isinstance(layer.get(name), dict)] for name in ("model", "data")
    )
    unsaid = [model for model in models if "vocab_size" in model and model["vocab_size"] is None]
    if not unsaid:
        return
    tokenizer, vocab_size = next((one["tokenizer"] for one in reversed(data) if "tokenizer" in one), None), VOCAB_SIZE
    if isinstance(tokenizer, str) and (Path(tokenizer) / TOKENIZER_JSON).is_file():
        vocab_size = read_vocabulary(Path(tokenizer))[0]["vocab_size"]
    for model in unsaid:
        model["vocab_size"] = str(vocab_size)


def load_finetune_config(yaml: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read the configuration of a fine-tuning run: its base, then the YAML, then the preset, then overrides.

    Raises:
        BadInput: as in `load_config`; or the preset is unknown.
    """
    layers = _layers(Path(yaml), overrides)
    preset = next((layer["preset"] for _, layer in reversed(layers) if "preset" in layer), FinetuneConfig.preset)
    known = {file.stem: file for file in sorted(PRESETS.glob("*.yaml"))}
    if preset not in known:
        raise BadInput(f"preset = {preset!r} is not one of {', '.join(known)}")
    path = known[preset]
    layers.insert(len(layers) - len(overrides), (str(path), read_yaml(path)))
    cfg = _merge(FinetuneConfig, layers, str(yaml))
    check_every_run(cfg, str(yaml))
    check_finetuning(cfg, str(yaml))
    return cfg


def _layers(path: Path, overrides: Sequence[str]) -> list[Layer]:
    """Read the parts that make up a configuration, in the order of merging: all bases, the YAML, the overrides.

    Raises:
        BadInput: a file is missing or not YAML, or an override has another form.
    """
    layers = [(str(path), read_yaml(path))]
    if "grid" in layers[0][1]:
        raise BadInput(f"{path} holds a grid of runs: python recipes/sweep.py {path} … runs them")
    read = [path.resolve()]
    while (base := layers[0][1].pop("base", None)) is not None:
        if not isinstance(base, str) or not PATH.admits(base):
            raise PATH.refuse(f"{layers[0][0]}: base", base)
        base_path = Path(layers[0][0]).parent / base
        if base_path.resolve() in read:
            raise BadInput(f"{layers[0][0]}: base = {base} leads back to a file that builds on it")
        read.append(base_path.resolve())
        layers.insert(0, (str(base_path), read_yaml(base_path)))
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise BadInput(f"override {override!r} is not of the form key=value, such as optimizer.lr=2e-4")
        key, _, text = override.partition("=")
        try:
            layers.append((f"override {override!r}", nested(key.strip(), parse_override(text))))
        except YAMLError as error:
            raise BadInput(f"override {override!r}: {error}") from None
    for name, layer in layers:
        refuse_old_keys(name, layer)
    return layers


def _merge(schema: type[Config], layers: Sequence[Layer], name: str) -> Config:
    read = []
    for layer_name, layer in layers:
        try:
            read.append(OmegaConf.create(read_section(layer, schema)))
        except BadInput as error:
            raise BadInput(f"{layer_name}: {error}") from None
        except OmegaConfBaseException as error:
            raise BadInput(f"{layer_name}: {_explain(error)}") from None
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(schema), *read)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise BadInput(f"it leaves out: {', '.join(missing)}")
        cfg = cast(Config, OmegaConf.to_object(merged))
        check_section(cfg)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    except OmegaConfBaseException as error:
        raise BadInput(f"{name}: {_explain(error)}") from None
    return cfg


def _explain(error: OmegaConfBaseException) -> str:
    """One line for an error that only OmegaConf finds, such as a reference to a key that does not exist."""
    key = error.full_key or error.key
    return f"{f'{str(key)!r}: ' if key is not None else ''}{(error.msg or str(error)).splitlines()[0]}"


def to_yaml(cfg: RunConfig) -> str:
    """Write the resolved configuration as YAML, which `load_config` reads back to the same values.

    Credentials in URLs are left out. When a run is started again, it takes them from that command line.
    """
    values: Any = OmegaConf.to_container(OmegaConf.structured(cfg))
    return OmegaConf.to_yaml(OmegaConf.create(without_credentials_within(values)))

"""Read and check the config.json of a GPT-2 folder."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json

CONFIG_JSON = "config.json"
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# Keys that must be true or false. transformers would take the text "false" for true.
SWITCHES = (
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "reorder_and_upcast_attn", "tie_word_embeddings",
    "add_cross_attention", "use_cache",
)  # fmt: skip
# Keys by which transformers would change a model while it loads it, or fetch from the hub and run (CVE-2026-4372).
# An export would hand these on to whoever opens it.
NOT_READ = ("quantization_config", "compression_config", "auto_map", "custom_pipelines", "transformers_weights")
IMPLEMENTATION = "implementation"  # in the name of each key that names one: of attention, of experts, with `_` or not


def read_json_object(path: Path) -> JsonDict:
    """Read a JSON file that holds an object.

    Raises:
        BadInput: the file is missing, unreadable, not JSON, or holds another type.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def read_model_config(folder: Path) -> JsonDict:
    """Read the config.json of a GPT-2 folder.

    Raises:
        BadInput: there is no config.json, it describes another kind of model, or a value in it is not allowed.
    """
    path = folder / CONFIG_JSON
    if not path.is_file():
        raise BadInput(
            f"{folder} is not a Hugging Face folder (no {CONFIG_JSON}); to make one from a run or checkpoint: "
            f"`python recipes/export.py --checkpoint {folder} --out {folder / 'model'}`"
        )
    config = read_json_object(path)
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{path}: it is a {config.get('model_type')!r} model; only gpt2 is supported")
    for name in SIZES:
        if not is_count(config.get(name)):
            raise BadInput(f"{path}: {name} = {config.get(name)!r}, which must be a whole number of at least 1")
    if config["n_embd"] % config["n_head"]:
        raise BadInput(f"{path}: n_embd = {config['n_embd']} is not a multiple of n_head = {config['n_head']}")
    if config.get("n_inner") is not None and not is_count(config["n_inner"]):
        raise BadInput(f"{path}: n_inner = {config['n_inner']!r}, which must be null or a whole number of at least 1")
    for name in SWITCHES:
        if not isinstance(config.get(name, False), bool):
            raise BadInput(f"{path}: {name} = {config[name]!r}, which must be true or false")
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise BadInput(f"{path}: layer_norm_epsilon = {epsilon!r}, which must be a number between 0 and 1")
    if asked := [name for name, value in config.items() if value is not None and _not_read(name, value)]:
        raise BadInput(f"{path} asks for {asked[0]}, which this recipe does not read; only a plain GPT-2 is supported")
    return config


def _not_read(name: str, value: object) -> bool:
    """Whether a key asks for more than a plain GPT-2: true or false names nothing (`_attn_implementation_autoset`)."""
    return name in NOT_READ or (IMPLEMENTATION in name and not isinstance(value, bool))


def is_count(value: object) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

"""The model that a pre-training run continues (`init_from`): its architecture, its tokenizer and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file
from data_prep.sharding.shard_format import ShardsInfo
from recipes.checkpointing.trained_model import Source, find_source, load_trained
from recipes.config.loading import load_config, load_recorded_config
from recipes.config.schema import TrainConfig
from recipes.modeling.model_config import read_model_config
from recipes.modeling.release import TOLERANCE, logits
from recipes.modeling.tokenizer_folder import TOKENIZER_JSON
from recipes.runs.model_card import stated_license
from recipes.runs.names import CONFIG

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# Settings that determine what a model computes with its weights. The new run may choose dropout and attention kernel.
ARCHITECTURE = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function", "layer_norm_epsilon",
    "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
# GPT2Config's defaults for keys that are missing in config.json.
DEFAULTS = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_by_inverse_layer_idx": False}
# Switches of GPT2Config -> the only values that this recipe can train.
PLAIN = {"scale_attn_weights": True, "tie_word_embeddings": True, "add_cross_attention": False, "n_inner": None}


def load_training_config(yaml: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Load the configuration of a pre-training run. With `init_from`, missing keys of `model` are read from the origin.

    Raises:
        BadInput: as in `load_config`; or this recipe cannot train the origin, or its architecture differs.
    """
    return load_config(yaml, overrides, read_origin)


def read_origin(path: Path) -> JsonDict:
    """Read `model`, and `data` with the tokenizer, from a model folder, run folder or checkpoint.

    Raises:
        BadInput: the path is none of these, holds no GPT-2, or a GPT-2 with a switch that this recipe cannot train.
    """
    source = _source(path)
    data = {"tokenizer": str(source.tokenizer)}
    if source.run is not None:
        model = asdict(load_recorded_config(source.run / CONFIG).model)
        return {"model": {name: model[name] for name in ARCHITECTURE}, "data": data}
    config = read_model_config(source.weights)
    for name, value in PLAIN.items():
        plain = (value, 4 * config["n_embd"]) if name == "n_inner" else (value,)
        if config.get(name, value) not in plain:
            raise BadInput(
                f"init_from = {path}: its {name} is {config[name]!r}, but this recipe trains only models with {value!r}"
            )
    return {"model": {name: config.get(name, DEFAULTS.get(name)) for name in ARCHITECTURE}, "data": data}


@cache
def _source(path: Path) -> Source:
    """Find the source once in each process, because hashing the weights takes long."""
    return find_source(path, None)


def origin_sha256(cfg: TrainConfig) -> str | None:
    """The hash of the weights that a run begins with; None if they are drawn at random.

    Raises:
        BadInput: the origin cannot be read. A resumed run also reads it, to compare it with the record.
    """
    return _source(Path(cfg.init_from)).sha256 if cfg.init_from is not None else None


def origin_facts(cfg: TrainConfig) -> JsonDict:
    """The entry `origin` in the record of a run, with path, hash and licence; nothing if the run has no origin.

    The licence is None if the origin's card does not state one. If the origin is a run of this recipe, the entry has no
    licence, because the recipe's own licence applies.
    """
    if cfg.init_from is None:
        return {}
    source = _source(Path(cfg.init_from))
    licensed = {"license": stated_license(source.weights)} if source.run is None else {}
    return {"origin": {"path": cfg.init_from, "sha256": source.sha256, **licensed}}


def check_tokens(cfg: TrainConfig, shards: ShardsInfo) -> None:
    """Refuse shards whose token ids have another meaning than the origin has learned.

    Raises:
        BadInput: the shards were made with another tokenizer.
    """
    if cfg.init_from is None:
        return
    theirs = _source(Path(cfg.init_from)).tokenizer / TOKENIZER_JSON
    if theirs.is_file() and sha256_file(theirs) == shards.tokenizer_sha256:
        return
    if not theirs.is_file() or _tokens(theirs) != _tokens(Path(cfg.data.tokenizer) / TOKENIZER_JSON):
        raise BadInput(
            f"{shards.folder} was not made with the tokenizer of init_from = {cfg.init_from}: its ids would mean other "
            f"words than the model has learned; use that tokenizer: make shards TOKENIZER={theirs.parent} …"
        )


def _tokens(path: Path) -> tuple[Any, ...]:
    """The parts of a byte-level BPE tokenizer that determine ids. `save_pretrained` may change the rest of the file."""
    spec: Any = json.loads(path.read_bytes())
    model = spec["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    added = sorted((token["id"], token["content"]) for token in spec["added_tokens"])
    return model["vocab"], merges, added, spec.get("normalizer"), spec["pre_tokenizer"].get("add_prefix_space")


def begin_with(model: GPT2LMHeadModel, cfg: TrainConfig) -> float:
    """Put the origin's weights into a model in fp32 on the CPU, and compare the logits of both.

    Args:
        model: model to train, whose weights were not drawn.
        cfg: configuration with `init_from`.

    Returns:
        The largest difference of their logits, as a share of the largest logit.

    Raises:
        BadInput: the origin cannot be read, or the model computes other logits with the same weights.
    """
    assert cfg.init_from is not None
    origin = load_trained(_source(Path(cfg.init_from)))
    model.load_state_dict(origin.state_dict())
    expected = logits(origin)
    training = model.training
    difference = ((logits(model.eval()) - expected).abs().max() / expected.abs().max()).item()
    model.train(training)
    if not difference <= TOLERANCE:
        raise BadInput(
            f"init_from = {cfg.init_from}: with the same weights, the model of this run computes logits that differ "
            f"from the origin's by {difference:.1e} of the largest, more than {TOLERANCE:.0e}; nothing was trained"
        )
    return difference

"""The model that pre-training continues (`init_from`): a run begins with its shape, its tokens and its weights."""

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

# What a model computes with its weights; dropout and the kernel of attention are the new run's own.
ARCHITECTURE = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function", "layer_norm_epsilon",
    "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
# What GPT2Config takes a model to be whose config.json does not say it.
DEFAULTS = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_by_inverse_layer_idx": False}
# Switches of GPT2Config under which a model computes something else than this recipe trains -> what they must be.
PLAIN = {"scale_attn_weights": True, "tie_word_embeddings": True, "add_cross_attention": False, "n_inner": None}


def load_training_config(yaml: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a pre-training run; with `init_from`, what it leaves out of `model` is the origin's.

    Raises:
        BadInput: as `load_config`; or the origin is no GPT-2 that this recipe trains, or of another architecture.
    """
    return load_config(yaml, overrides, read_origin)


def read_origin(path: Path) -> JsonDict:
    """What a configuration takes of a model folder, run folder or checkpoint: `model`, and `data` with its tokenizer.

    Raises:
        BadInput: it is none of these, no GPT-2, or one with a switch that this recipe does not train.
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
            raise BadInput(f"init_from = {path}: its {name} is {config[name]!r}, and only {value!r} is trained here")
    return {"model": {name: config.get(name, DEFAULTS.get(name)) for name in ARCHITECTURE}, "data": data}


@cache
def _source(path: Path) -> Source:
    """Found once a process: hashing the weights takes its time."""
    return find_source(path, None)


def origin_sha256(cfg: TrainConfig) -> str | None:
    """The hash of the weights that a run begins with, None if they are drawn.

    Raises:
        BadInput: the origin cannot be read. A resumed run needs it, too: what it says is compared with the record.
    """
    return _source(Path(cfg.init_from)).sha256 if cfg.init_from is not None else None


def origin_facts(cfg: TrainConfig) -> JsonDict:
    """What the record of a run says of its origin: `origin`, with its path, hash and licence; nothing without one.

    A licence of None is one that the origin's card does not state. That of a run is not told: it is this recipe's own.
    """
    if cfg.init_from is None:
        return {}
    source = _source(Path(cfg.init_from))
    licensed = {"license": stated_license(source.weights)} if source.run is None else {}
    return {"origin": {"path": cfg.init_from, "sha256": source.sha256, **licensed}}


def check_tokens(cfg: TrainConfig, shards: ShardsInfo) -> None:
    """Refuse shards whose ids mean something else than the origin has learned.

    Raises:
        BadInput: they were made by another tokenizer.
    """
    if cfg.init_from is None:
        return
    theirs = _source(Path(cfg.init_from)).tokenizer / TOKENIZER_JSON
    if theirs.is_file() and sha256_file(theirs) == shards.tokenizer_sha256:
        return
    if not theirs.is_file() or _tokens(theirs) != _tokens(Path(cfg.data.tokenizer) / TOKENIZER_JSON):
        raise BadInput(
            f"{shards.folder} was not made with the tokenizer of init_from = {cfg.init_from}: its ids would mean other "
            f"words than the model has learned; make shards with it: make shards TOKENIZER={theirs.parent} …"
        )


def _tokens(path: Path) -> tuple[Any, ...]:
    """What decides the ids of a byte-level BPE tokenizer; `save_pretrained` writes the rest in other words."""
    spec: Any = json.loads(path.read_bytes())
    model = spec["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    added = sorted((token["id"], token["content"]) for token in spec["added_tokens"])
    return model["vocab"], merges, added, spec.get("normalizer"), spec["pre_tokenizer"].get("add_prefix_space")


def begin_with(model: GPT2LMHeadModel, cfg: TrainConfig) -> float:
    """Put the origin's weights into a model in fp32 on the CPU, and compare what the two compute.

    Args:
        model: as it is trained, its weights not drawn.
        cfg: with `init_from`.

    Returns:
        The largest difference of their logits, as a share of the largest.

    Raises:
        BadInput: the origin cannot be read, or the model computes something else with its weights.
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
            f"init_from = {cfg.init_from}: the model here computes logits that differ from the origin's by "
            f"{difference:.1e} of the largest, more than {TOLERANCE:.0e}, with its weights; nothing was trained"
        )
    return difference

"""Load the trained model and its tokenizer from a checkpoint, a run folder or a model folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file
from data_prep.common.manifest import difference, manifest_sha256
from recipes.checkpointing.checkpoint import fault, manifest_of, newest_intact
from recipes.config.loading import load_recorded_config
from recipes.modeling.model_config import CONFIG_JSON, read_model_config
from recipes.modeling.model_folder import ADAPTER, check_folder, new_gpt2, open_gpt2
from recipes.modeling.tokenizer_folder import TOKENIZER_JSON, check_entries, check_tokenizer, open_tokenizer
from recipes.modeling.weights import WEIGHTS, weights_sha256
from recipes.runs.names import CHECKPOINTS, CONFIG, RECORD, TOKENIZER

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Source:
    """The source of a model: a run's checkpoint, or a Hugging Face folder (then `run` is None)."""

    weights: Path
    tokenizer: Path
    run: Path | None
    sha256: str


def find_source(path: Path, tokenizer: Path | None) -> Source:
    """Resolve a path to a run folder, to one checkpoint in it, or to a Hugging Face folder.

    Raises:
        BadInput: the path is none of these, or there is no tokenizer.
    """
    if any((path / name).is_file() for name in (ADAPTER, CONFIG_JSON, *WEIGHTS)):
        check_folder(path, tokenizer)
        source = Source(path, tokenizer or path, None, weights_sha256(path))
    else:
        if (path / RECORD).is_file():
            newest, _ = newest_intact(path / CHECKPOINTS)
            if newest is None:
                raise BadInput(f"{path} holds a run that has no complete checkpoint yet (see save_interval)")
            checkpoint = newest
        else:
            checkpoint = path
            if problem := fault(checkpoint):
                raise BadInput(f"{problem}; give a run folder, an intact checkpoint in one, or a model folder")
        folder = checkpoint.parent.parent
        if not (folder / RECORD).is_file():
            raise BadInput(f"{checkpoint} is not in a run folder (no {folder / RECORD})")
        source = Source(checkpoint, tokenizer or folder / TOKENIZER, folder, manifest_sha256(checkpoint))
        check_tokenizer(source.tokenizer)
    return source


def load_trained(source: Source) -> GPT2LMHeadModel:
    """Load the trained model in fp32, with transformers' eager attention, which is the reference for an export.

    Raises:
        BadInput: the model is not a GPT-2; its weights are unsafe, unreadable or do not match the configuration; or the
            configuration was altered after training.
    """
    from transformers import GPT2Config

    from recipes.checkpointing.safe_loading import load_model_weights
    from recipes.modeling.gpt2 import gpt2_config

    if source.run is None:
        return open_gpt2(source.weights, "eager", "float32")
    cfg = load_recorded_config(source.run / CONFIG)
    _refuse_altered_config(source, asdict(cfg.model))
    settings = gpt2_config(cfg.model, eos_token_id=cfg.model.vocab_size - 1).to_dict()
    model = new_gpt2(GPT2Config(**settings), "eager")
    load_model_weights(source.weights, model)
    return model.eval()


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer that the model was trained with.

    Raises:
        BadInput: the tokenizer cannot be loaded, is not the one that made the run's shards, or has entries that the
            model lacks.
    """
    if source.run is None:
        vocab_size = int(read_model_config(source.weights)["vocab_size"])
    else:
        vocab_size = load_recorded_config(source.run / CONFIG).model.vocab_size
        _refuse_other_tokenizer(source)
    tokenizer = open_tokenizer(source.tokenizer)
    check_entries(tokenizer, vocab_size, source.tokenizer)
    return tokenizer


def _refuse_other_tokenizer(source: Source) -> None:
    path, trained = source.tokenizer / TOKENIZER_JSON, _identity(source).get("tokenizer_sha256")
    if trained and (not path.is_file() or sha256_file(path) != trained):
        raise BadInput(
            f"{path} is not the tokenizer that {source.weights.name} was trained with, whose sha256 is {trained[:12]}; "
            f"the right one is in {source.run}/{TOKENIZER}/"
        )


def _identity(source: Source) -> JsonDict:
    return manifest_of(source.weights)["identity"]


def _refuse_altered_config(source: Source, model: JsonDict) -> None:
    """Refuse a config.yaml that differs from training: shapes of weights do not show other heads or activations."""
    assert source.run is not None
    trained = _identity(source).get("model", {})
    if lines := difference(trained, {name: model.get(name) for name in trained}):
        raise BadInput(
            f"{source.run / CONFIG} is not the configuration of {source.weights.name}; checkpoint -> {CONFIG}:\n  "
            + "\n  ".join(f"model.{line}" for line in lines)
        )

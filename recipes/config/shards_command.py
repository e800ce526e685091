"""The `make shards` command that builds the shards and the tokenizer of a configuration."""

from __future__ import annotations

import shlex
from pathlib import Path

from data_prep.common.last_line import variable
from data_prep.common.limits import DEFAULT_SEQ_LEN
from data_prep.tokenizing.tokenizer_format import TOKENIZER_JSON, VOCAB_SIZE
from recipes.config.schema import TrainConfig

# DATA folder that the Makefile uses for a SOURCE -> arguments that select it. Capitals stand for values to fill in.
SOURCES = {"data/sample": [], "data/pubmed": ["SOURCE=pile"], "data/text": ["SOURCE=text", "INPUT=FOLDER"]}
TOKENIZER = "tokenizer"  # folder below DATA for a tokenizer that is trained on the corpus there


def shards_command(cfg: TrainConfig) -> str:
    """Return the command line, to be typed in the project's folder; `shards_words` returns it as a list of words."""
    return shlex.join(shards_words(cfg))


def shards_words(cfg: TrainConfig) -> list[str]:
    """Return the words of the command.

    If `data.shards` and `data.tokenizer` are not in a folder that the Makefile knows, the command contains
    `SOURCE=NAME INPUT=FILES`, for the user to fill in.

    Args:
        cfg: pre-training configuration. The command depends on `data`, `init_from` and `model.vocab_size`.
    """
    shards, tokenizer = Path(cfg.data.shards), Path(cfg.data.tokenizer)
    trained_here = cfg.init_from is None and tokenizer.name == TOKENIZER
    data = tokenizer.parent if trained_here else shards.parent
    known = SOURCES.get(str(data))
    words = ["SOURCE=NAME", "INPUT=FILES", variable("DATA", data)] if known is None else list(known)
    if not trained_here:
        words.append(variable("TOKENIZER", tokenizer))
    elif cfg.model.vocab_size != VOCAB_SIZE and not (tokenizer / TOKENIZER_JSON).is_file():
        words.append(f"VOCAB={cfg.model.vocab_size}")
    name = "shards"  # built as in the Makefile
    if cfg.data.seq_len != DEFAULT_SEQ_LEN:
        words.append(f"SEQ_LEN={cfg.data.seq_len}")
        name += f"-{cfg.data.seq_len}"
    if not cfg.data.eos_between_documents:
        words.append("EOS=0")
        name += "-no-eos"
    if shards != data / name:
        words.append(variable("SHARDS", shards))
    return ["make", "shards", *words]

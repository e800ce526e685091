"""The `make shards` line that builds the shards and the tokenizer which a configuration reads."""

from __future__ import annotations

import shlex
from pathlib import Path

from data_prep.common.last_line import variable
from data_prep.common.limits import DEFAULT_SEQ_LEN
from data_prep.tokenizing.tokenizer_format import TOKENIZER_JSON, VOCAB_SIZE
from recipes.config.schema import TrainConfig

# The folders that the Makefile's DATA is for a SOURCE -> what to say for them. What is not known stands in capitals.
SOURCES = {"data/sample": [], "data/pubmed": ["SOURCE=pile"], "data/text": ["SOURCE=text", "INPUT=FOLDER"]}
TOKENIZER = "tokenizer"  # where a tokenizer lies below DATA that is trained on its corpus


def shards_command(cfg: TrainConfig) -> str:
    """The command line, to be typed in the project's folder; `shards_words` has its words."""
    return shlex.join(shards_words(cfg))


def shards_words(cfg: TrainConfig) -> list[str]:
    """The words of the command.

    Where `data.shards` and `data.tokenizer` lie in no folder of the Makefile's own, the text is for the user to name:
    `SOURCE=NAME INPUT=FILES`.

    Args:
        cfg: a configuration of pre-training; `data`, `init_from` and the model's vocabulary decide.
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
    name = "shards"  # as the Makefile makes it
    if cfg.data.seq_len != DEFAULT_SEQ_LEN:
        words.append(f"SEQ_LEN={cfg.data.seq_len}")
        name += f"-{cfg.data.seq_len}"
    if not cfg.data.eos_between_documents:
        words.append("EOS=0")
        name += "-no-eos"
    if shards != data / name:
        words.append(variable("SHARDS", shards))
    return ["make", "shards", *words]

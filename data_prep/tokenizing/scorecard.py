"""Score a tokenizer on the val split, in comparison with GPT-2's."""

# The stubs of `tokenizers` lack keyword arguments and the setters of properties:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Words that are one token for BioMedLM and several tokens for GPT-2 (arXiv 2403.18421, table 3).
WORDS = (
    "chromatography",
    "cytotoxicity",
    "ECG",
    "GATA",
    "Immunohistochemistry",
    "myocardium",
    "nanoparticles",
    "photosynthesis",
    "probiotic",
    "thrombin",
)


def scorecard(texts: Sequence[str], tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """Score each tokenizer on the texts of val.

    Returns:
        name -> scores: `bytes_per_token`; `tokens_per_word`, for words separated by white space; `round_trip`, the
        share of documents that decode to the same text; `words`, the number of tokens of each of `WORDS`
        `[alone, after a space]`.

    Raises:
        BadInput: the texts have no words.
    """
    size_bytes = sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
    if not words:
        raise BadInput("the val split of the corpus has no words to score a tokenizer on; make the corpus again")
    card: dict[str, Any] = {}
    for name, tokenizer in tokenizers.items():
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        back = tokenizer.decode_batch(ids, skip_special_tokens=False)
        tokens = sum(map(len, ids))
        card[name] = {
            "documents": len(texts),
            "bytes": size_bytes,
            "tokens": tokens,
            "bytes_per_token": round(size_bytes / tokens, 4),
            "tokens_per_word": round(tokens / words, 4),
            "round_trip": sum(a == b for a, b in zip(texts, back, strict=True)) / len(texts),
            "words": {word: [len(tokenizer.encode(form).ids) for form in (word, f" {word}")] for word in WORDS},
        }
    return card


def gpt2_files(folder: Path | None) -> dict[str, str]:
    """Hashes of GPT-2's vocab.json and merges.txt; empty without a folder."""
    if folder is None:
        return {}
    names = ("vocab.json", "merges.txt")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadInput(f"--gpt2 {folder} lacks {' and '.join(missing)} of GPT-2's tokenizer")
    return {f"gpt2/{name}": sha256_file(folder / name) for name in names}


def load_gpt2(folder: Path) -> Tokenizer:
    """Load GPT-2's own tokenizer.

    Raises:
        BadInput: the files are not a byte-level BPE.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises no narrower exception
        raise BadInput(f"--gpt2 {folder}: vocab.json and merges.txt are not a byte-level BPE ({error})") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def scorecard_table(card: dict[str, Any]) -> str:
    """The scorecard as a Markdown table."""
    rows = [["on val", *card], ["---", *("---:" for _ in card)]]
    rows += [
        [key.replace("_", " "), *(f"{scores[key]:.4g}" for scores in card.values())]
        for key in ("bytes_per_token", "tokens_per_word", "round_trip")
    ]
    rows += [
        [f"tokens of {word} (after a space)", *("{} ({})".format(*scores["words"][word]) for scores in card.values())]
        for word in WORDS
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)

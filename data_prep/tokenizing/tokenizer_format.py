"""Corpus -> tokenizer: GPT-2's byte-level BPE with a biomedical vocabulary.

Cased, no normaliser, GPT-2's own word pattern, trained on the abstracts of the train split alone, as for BioMedLM; on
all of it where there are no abstracts. The last id is `<|endoftext|>`, which is bos, eos, unk and pad. The folder loads
with `AutoTokenizer.from_pretrained`; beside the vocabulary lies a scorecard on val.
"""

# The stubs of `tokenizers` lack keyword arguments and the setters of properties:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data_prep import corpus
from data_prep.sources import ABSTRACTS
from data_prep.stage import (
    BadInput,
    JsonDict,
    begin,
    finished,
    library_versions,
    manifest_sha256,
    publish,
    read_manifest,
    run,
    sha256_file,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "tokenizer"
FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 28_896
MODEL_MAX_LENGTH_TOKENS = 1024  # what BioMedLM's n_positions admits; only a warning of transformers hangs on it
ALPHABET = 256  # the bytes, which are tokens of every byte-level vocabulary
MIN_FREQUENCY = 2
# One token each for BioMedLM, several for GPT-2 (arXiv 2403.18421, table 3).
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


def build(corpus_folder: Path, out: Path, vocab_size: int = VOCAB_SIZE, gpt2: Path | None = None) -> JsonDict:
    """Make a tokenizer folder, or find it made.

    Args:
        corpus_folder: a finished corpus.
        out: the folder to make.
        vocab_size: entries, `<|endoftext|>` included.
        gpt2: a folder with GPT-2's own tokenizer, to be put beside this one on the scorecard.

    Raises:
        BadInput: no finished corpus, abstracts in train and none in val, or too few for so large a vocabulary.
    """
    if vocab_size <= ALPHABET + 1:
        raise BadInput(f"--vocab-size {vocab_size} is too small: {ALPHABET} bytes and {END_OF_TEXT} leave no merge")
    counts = read_manifest(corpus_folder, corpus.STAGE, "make corpus")["counts"]
    source = ABSTRACTS if ABSTRACTS in counts["train"]["sources"] else None
    if source and source not in counts["val"]["sources"]:
        raise BadInput(f"{corpus_folder} has no {source} in val: the tokenizer is made from and scored on them")
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {"vocab_size": vocab_size, "min_frequency": MIN_FREQUENCY, "source": source},
        "inputs": {"corpus": manifest_sha256(corpus_folder), **_gpt2_files(gpt2)},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest

    texts = _texts(corpus_folder, "train", source)
    all_of_train = {key: counts["train"][key] for key in ("documents", "bytes")}
    read = counts["train"]["sources"][source] if source else all_of_train
    progress = tqdm(texts, total=read["documents"], desc="read texts", unit=" documents", disable=None)
    tokenizer = train(progress, vocab_size)
    partial = begin(out)
    _save(tokenizer, partial)
    tokenizers = {"this": load(partial)} | ({} if gpt2 is None else {"gpt2": _load_gpt2(gpt2)})
    card = scorecard(list(_texts(corpus_folder, "val", source)), tokenizers)
    write_json(partial / "scorecard.json", card)
    write_text(partial / "scorecard.md", _scorecard_table(card))
    print(_scorecard_table(card), end="")
    results: JsonDict = {
        "tokenizer": {
            "vocab_size": vocab_size,
            "eos_token_id": vocab_size - 1,
            "sha256": sha256_file(partial / "tokenizer.json"),
        },
        "counts": {"trained_on": read},
        "versions": library_versions("tokenizers", "transformers"),
    }
    return publish(partial, out, request, results)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE; the same texts in the same order give the same tokenizer, on any number of threads.

    Raises:
        BadInput: the texts hold too few different words for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size() + 1
    if reached < vocab_size:
        raise BadInput(
            f"the texts give a vocabulary of {reached:,} entries, not {vocab_size:,}; "
            f"use a larger corpus or --vocab-size {reached}"
        )
    # The trained model once more, now with end-of-text as its own last entry: an added token beside the model would
    # leave `vocab_size` of the loaded tokenizer, and vocab.json, one short of the embedding.
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: vocab_size - 1}
    tokenizer.model = models.BPE(vocab, [tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """The tokenizer as documents are encoded with it: `<|endoftext|>` inside a text is text, not the special token.

    Raises:
        BadInput: the folder has no tokenizer.json, or a broken one.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{path} does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"{path} is not a tokenizer ({error})") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def scorecard(texts: Sequence[str], tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """How each tokenizer does on the texts of val.

    Returns:
        name -> `bytes_per_token`; `tokens_per_word`, words being parted by white space; `round_trip`, the share of
        documents that decode to themselves; `words`, for each of `WORDS` the tokens it takes `[alone, after a space]`.
    """
    size_bytes = sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
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


def _texts(corpus_folder: Path, split: str, source: str | None) -> Iterator[str]:
    return (d.text for d in corpus.read_documents(corpus_folder, split) if source in (None, d.source))


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, vocab.json, merges.txt and the two files that name the special tokens for transformers."""
    from transformers import GPT2TokenizerFast

    GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MODEL_MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _gpt2_files(folder: Path | None) -> dict[str, str]:
    """Hashes of GPT-2's vocab.json and merges.txt; nothing without a folder."""
    if folder is None:
        return {}
    names = ("vocab.json", "merges.txt")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadInput(f"--gpt2 {folder} lacks {' and '.join(missing)} of GPT-2's tokenizer")
    return {f"gpt2/{name}": sha256_file(folder / name) for name in names}


def _load_gpt2(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"--gpt2 {folder}: vocab.json and merges.txt are not a byte-level BPE ({error})") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _scorecard_table(card: dict[str, Any]) -> str:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Train a byte-level BPE tokenizer on the abstracts of a corpus' train split, or on all of it where "
        "there are none, and score it on val.",
        epilog="example: python data_prep/tokenizer.py --corpus data/sample/corpus --out data/sample/tokenizer",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder")
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer folder to make")
    parser.add_argument(
        "--vocab-size", type=int, default=VOCAB_SIZE, help=f"entries with {END_OF_TEXT} (default {VOCAB_SIZE})"
    )
    parser.add_argument("--gpt2", type=Path, help="folder with GPT-2's vocab.json and merges.txt, to compare with")
    args = parser.parse_args(argv)
    build(args.corpus, args.out, args.vocab_size, args.gpt2)


if __name__ == "__main__":
    run(main)

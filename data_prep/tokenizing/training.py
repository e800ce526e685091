"""Corpus -> tokenizer: GPT-2's byte-level BPE with a biomedical vocabulary.

Cased, no normaliser, GPT-2's own word pattern, trained on the abstracts of the train split alone, as for BioMedLM; on
all of it where there are no abstracts; words of absurd length are cut for it (`long_words`). The last id is
`<|endoftext|>`, which is bos, eos, unk and pad. The folder loads with `AutoTokenizer.from_pretrained`; beside the
vocabulary lies a scorecard on val.
"""

# The stubs of `tokenizers` lack keyword arguments and the setters of properties:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file, write_json, write_text
from data_prep.common.limits import Whole
from data_prep.common.manifest import begin, finished, library_versions, manifest_sha256, publish, read_manifest
from data_prep.filtering import corpus_format
from data_prep.sources.document import ABSTRACTS, Document
from data_prep.tokenizing.long_words import LongWords
from data_prep.tokenizing.scorecard import gpt2_files, load_gpt2, scorecard, scorecard_table
from data_prep.tokenizing.tokenizer_format import END_OF_TEXT, FORMAT, STAGE, VOCAB_SIZE, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_MAX_LENGTH_TOKENS = 1024  # what BioMedLM's n_positions admits; only a warning of transformers hangs on it
ALPHABET = 256  # the bytes, which are tokens of every byte-level vocabulary
VOCAB_SIZES = Whole(ALPHABET + 2, 2**24)  # the bytes, a merge and end-of-text at the least
MIN_FREQUENCY = 2
# Where the amount of text decides how many entries there are: so much of it an entry, and so many entries at the least.
BYTES_PER_ENTRY, LEAST_ENTRIES = 400, 512


def vocab_size_for(text_bytes: int) -> int:
    """Entries of a vocabulary that an amount of text is enough for: BioMedLM's, or fewer, a multiple of 32.

    An entry that training hardly meets is not learned (Gowda and May 2020, arXiv 2004.02334). With 400 bytes of text an
    entry, 0.8 MB of the sample's abstracts give 1,984 entries, nine in ten of which occur 20 times and more in them;
    with 200 bytes, it would be 4,000 and every other one.
    """
    return min(VOCAB_SIZE, max(text_bytes // BYTES_PER_ENTRY // 32 * 32, LEAST_ENTRIES))


def build_tokenizer(
    corpus_folder: Path, out: Path, vocab_size: int | None = None, gpt2: Path | None = None
) -> JsonDict:
    """Make a tokenizer folder, or find it made.

    Args:
        corpus_folder: a finished corpus.
        out: the folder to make.
        vocab_size: entries, `<|endoftext|>` included; None: as `vocab_size_for` the text says, or fewer if it has too
            few different words.
        gpt2: a folder with GPT-2's own tokenizer, to be put beside this one on the scorecard.

    Raises:
        BadInput: no finished corpus, abstracts in train and none in val, or too few different words for `vocab_size`.
    """
    if vocab_size is not None:
        VOCAB_SIZES.check("--vocab-size", vocab_size)
    counts = read_manifest(corpus_folder, corpus_format.STAGE, corpus_format.MADE_BY, corpus_format.SHAPE)["counts"]
    source = ABSTRACTS if ABSTRACTS in counts["train"]["sources"] else None
    if source and source not in counts["val"]["sources"]:
        raise BadInput(f"{corpus_folder} has no {source} in val: the tokenizer is made from and scored on them")
    all_of_train = {key: counts["train"][key] for key in ("documents", "bytes")}
    read = counts["train"]["sources"][source] if source else all_of_train
    aim = vocab_size or vocab_size_for(read["bytes"])
    request: JsonDict = {
        "stage": STAGE,
        "format": FORMAT,
        "arguments": {"vocab_size": aim, "min_frequency": MIN_FREQUENCY, "source": source},
        "inputs": {"corpus": manifest_sha256(corpus_folder), **gpt2_files(gpt2)},
    }
    if manifest := finished(out, request):
        if vocab_size not in (None, made := manifest["tokenizer"]["vocab_size"]):
            raise _too_few_words(made, aim)
        print(f"{out} is up to date")
        return manifest

    long_words = LongWords()
    documents = _documents(corpus_folder, "train", source)
    progress = tqdm(documents, total=read["documents"], desc="read texts", unit=" documents", disable=None)
    tokenizer = train((part for d in progress for part in long_words.cut(d.id, d.text)), aim)
    made = tokenizer.get_vocab_size()
    if vocab_size not in (None, made):
        raise _too_few_words(made, aim)
    if made < VOCAB_SIZE and vocab_size is None:
        print(
            f"a vocabulary of {made:,} entries for {read['bytes'] / 1e6:,.2f} MB of text; BioMedLM's {VOCAB_SIZE:,} "
            f"take {VOCAB_SIZE * BYTES_PER_ENTRY / 1e6:,.0f} MB, and --vocab-size (VOCAB= of make) says another number"
        )
    if long_words.words:
        print(long_words)
    partial = begin(out)
    _save(tokenizer, partial)
    tokenizers = {"this": load_tokenizer(partial)} | ({} if gpt2 is None else {"gpt2": load_gpt2(gpt2)})
    card = scorecard([d.text for d in _documents(corpus_folder, "val", source)], tokenizers)
    write_json(partial / "scorecard.json", card)
    write_text(partial / "scorecard.md", scorecard_table(card))
    print(scorecard_table(card), end="")
    results: JsonDict = {
        "tokenizer": {
            "vocab_size": made,
            "eos_token_id": made - 1,
            "sha256": sha256_file(partial / "tokenizer.json"),
        },
        "counts": {"trained_on": read},
        **long_words.facts(),
        "versions": library_versions("tokenizers", "transformers"),
    }
    return publish(partial, out, request, results)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE; the same texts in the same order give the same tokenizer, on any number of threads.

    It has fewer than `vocab_size` entries if the texts hold too few different words for so many.
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
    # The trained model once more, now with end-of-text as its own last entry: an added token beside the model would
    # leave `vocab_size` of the loaded tokenizer, and vocab.json, one short of the embedding.
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    tokenizer.model = models.BPE(vocab, [tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _too_few_words(made: int, asked: int) -> BadInput:
    return BadInput(
        f"the texts give a vocabulary of {made:,} entries, not {asked:,}; use a larger corpus or --vocab-size {made}"
    )


def _documents(corpus_folder: Path, split: str, source: str | None) -> Iterator[Document]:
    return (d for d in corpus_format.read_documents(corpus_folder, split) if source in (None, d.source))


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, vocab.json, merges.txt and what names the special tokens for transformers."""
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
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which transformers 5 leaves out

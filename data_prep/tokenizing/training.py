"""Train a tokenizer on a corpus: GPT-2's byte-level BPE with a biomedical vocabulary.

The tokenizer is cased, has no normaliser, and uses GPT-2's word pattern. As for BioMedLM, it is trained only on the
abstracts of the train split; if the split has no abstracts, it is trained on the whole split. Extremely long words are
cut for training (`long_words`). The last id is `<|endoftext|>`, which serves as bos, eos, unk and pad. The folder can
be loaded with `AutoTokenizer.from_pretrained`, and also holds a scorecard on val.
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

MODEL_MAX_LENGTH_TOKENS = 1024  # BioMedLM's n_positions; it only decides when transformers prints a warning
ALPHABET = 256  # every byte is a token in a byte-level vocabulary
VOCAB_SIZES = Whole(ALPHABET + 2, 2**24)  # at least all bytes, one merge and end-of-text
MIN_FREQUENCY = 2
# Default vocabulary size: bytes of text per entry, and the smallest size.
BYTES_PER_ENTRY, LEAST_ENTRIES = 400, 512


def vocab_size_for(text_bytes: int) -> int:
    """The vocabulary size that an amount of text can support: BioMedLM's, or a smaller multiple of 32.

    A model does not learn an entry that hardly occurs in training (Gowda and May 2020, arXiv 2004.02334). With 400
    bytes of text per entry, the 0.8 MB of the sample's abstracts give 1,984 entries, and nine in ten of them occur at
    least 20 times. With 200 bytes per entry there would be 4,000 entries, and only half of them would occur that often.
    """
    return min(VOCAB_SIZE, max(text_bytes // BYTES_PER_ENTRY // 32 * 32, LEAST_ENTRIES))


def build_tokenizer(
    corpus_folder: Path, out: Path, vocab_size: int | None = None, gpt2: Path | None = None
) -> JsonDict:
    """Build a tokenizer folder, unless it is built already.

    Args:
        corpus_folder: finished corpus.
        out: tokenizer folder to make.
        vocab_size: number of entries, `<|endoftext|>` included. None takes the result of `vocab_size_for`, or fewer
            entries if the text has too few different words.
        gpt2: folder with GPT-2's own tokenizer, for comparison on the scorecard.

    Raises:
        BadInput: the corpus is not finished, train has abstracts but val has none, or the text has too few different
            words for `vocab_size`.
    """
    if vocab_size is not None:
        VOCAB_SIZES.check("--vocab-size", vocab_size)
    counts = read_manifest(corpus_folder, corpus_format.STAGE, corpus_format.MADE_BY, corpus_format.SHAPE)["counts"]
    source = ABSTRACTS if ABSTRACTS in counts["train"]["sources"] else None
    if source and source not in counts["val"]["sources"]:
        raise BadInput(f"{corpus_folder} has no {source} in val, but the tokenizer is trained and scored on these")
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
            f"need {VOCAB_SIZE * BYTES_PER_ENTRY / 1e6:,.0f} MB; to set another size, use --vocab-size (make: VOCAB=)"
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
    """Train the BPE. The same texts in the same order give the same tokenizer, on any number of threads.

    The vocabulary has fewer than `vocab_size` entries if the texts have too few different words.
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
    # The trained model is made again with end-of-text as its own last entry. If end-of-text were only an added token,
    # `vocab_size` of the loaded tokenizer, and vocab.json, would have one entry less than the embedding.
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
    """Save tokenizer.json, vocab.json, merges.txt and what names the special tokens for transformers."""
    from transformers import GPT2TokenizerFast

    GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MODEL_MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder, save_jinja_files=False)
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which transformers 5 leaves out

"""Compute perplexity and bits per byte of a model on the validation split of a corpus."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.files import JsonDict
from data_prep.filtering import corpus_format
from recipes.scoring.bootstrap import bootstrap

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def perplexity(
    model: GPT2LMHeadModel, tokenizer: Any, corpus_folder: Path, n_documents: int, batch_size: int
) -> JsonDict:
    """Compute perplexity and bits per byte on the first documents of a corpus' val split, which are a random sample.

    Returns:
        For `all`, each `source` and each `year`: documents, tokens, bytes, nats, perplexity, and bits_per_byte with its
        bootstrap interval over documents.
    """
    from recipes.evaluation.log_likelihood import document_windows, log_probs

    documents = list(itertools.islice(corpus_format.read_documents(corpus_folder, "val"), n_documents))
    windows, owners = [], []
    eos, n_positions = tokenizer.eos_token_id, model.config.n_positions
    for number, document in enumerate(documents):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        own = list(document_windows(ids, eos, n_positions))
        windows += own
        owners += [number] * len(own)
    nats, tokens = [0.0] * len(documents), [0] * len(documents)
    for owner, window, sum_ in zip(owners, windows, log_probs(model, windows, batch_size), strict=True):
        nats[owner] -= sum_
        tokens[owner] += len(window.targets)

    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        year = document.date[:4] if document.date else "unknown"
        for key in (("all", "all"), ("source", document.source), ("year", year)):
            groups[key].append(number)
    results: JsonDict = {"all": {}, "source": {}, "year": {}}
    for (kind, name), members in sorted(groups.items()):
        n_bytes = [len(documents[n].text.encode()) for n in members]
        sum_nats, sum_tokens = sum(nats[n] for n in members), sum(tokens[n] for n in members)
        results[kind][name] = {
            "documents": len(members),
            "tokens": sum_tokens,
            "bytes": sum(n_bytes),
            "nats": sum_nats,
            "perplexity": math.exp(min(sum_nats / sum_tokens, 50.0)),
            "bits_per_byte": asdict(bootstrap([nats[n] / math.log(2) for n in members], n_bytes)),
        }
    return results

"""Describe in words the folders that are mixed into the training data of a run, from its record."""

from __future__ import annotations

from collections.abc import Callable

from data_prep.common.files import JsonDict
from recipes.planning.mixing import MIXED_EVAL

LOSS, BITS = "LanguageCrossEntropy", "BitsPerByte"


def text_of(corpus: JsonDict) -> JsonDict:
    """Summarize a corpus over all of its splits, as its licences and dates are counted.

    Returns:
        `splits`, `documents`, `sources` (name -> documents), `licenses`, `dates`.
    """
    sources: dict[str, int] = {}
    for counts in corpus["counts"].values():
        for name, of in counts["sources"].items():
            sources[name] = sources.get(name, 0) + of["documents"]
    documents = sum(counts["documents"] for counts in corpus["counts"].values())
    return {
        "splits": list(corpus["counts"]), "documents": documents, "sources": sources,
        "licenses": corpus["licenses"], "dates": corpus["dates"],
    }  # fmt: skip


def mixed_in(record: JsonDict, logged: Callable[[str], float | None]) -> dict[str, str]:
    """Describe each folder of `data.mix`: its share of a pass, its text with dates and licences, its validation loss.

    Args:
        record: record of the run.
        logged: function that returns the value of a metric, or None.

    Returns:
        Name of the folder -> description.
    """
    texts = {}
    for name, of in record["data"].get("mix", {}).items():
        corpus, train = text_of(of["corpus"]), of["counts"]["train"]
        sources = ", ".join(f"{n:,} of {source}" for source, n in corpus["sources"].items())
        licenses = ", ".join(f"{license}: {n:,}" for license, n in corpus["licenses"].items()) or "unknown"
        first, last = corpus["dates"]["first"], corpus["dates"]["last"]
        texts[name] = (
            f"{of['share']:.2%} of a pass, of {train['documents']:,} documents, {train['tokens']:,} tokens; shards "
            f"manifest {of['shards_sha256'][:16]}; corpus of {corpus['documents']:,} documents: {sources}, "
            f"{f'dated {first} to {last}' if first else 'undated'}; licences {licenses}"
        )
        loss, bits = map(logged, eval_metrics(name))
        if loss is not None and bits is not None:
            texts[name] += f"; validation {loss:.4f} nats per token, {bits:.4f} bits per byte"
    return texts


def eval_metrics(name: str) -> tuple[str, str]:
    """Names of the metrics of a folder of `data.mix`: its validation loss, and the same in bits per byte."""
    return f"metrics/{MIXED_EVAL}{name}/{LOSS}", f"metrics/{MIXED_EVAL}{name}/{BITS}"

"""Which questions a training corpus holds: by PubMed id, and by runs of words.

A question leaks by PMID if a training document is an abstract that it was made of, and by words if its context or
question shares a run of 13 words with a training document (the length that GPT-3 used, arXiv 2005.14165, appendix C).
Words are those of data_prep/filtering/decontamination.py, so that both see the same runs. PMC articles are known by
their PMC id alone, so theirs count by words only.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash
from tqdm import tqdm

from data_prep.common.manifest import read_manifest
from data_prep.files import json_lines
from data_prep.filtering.corpus_format import STAGE
from data_prep.filtering.decontamination import GRAM_WORDS, words_of
from data_prep.running.workers import follow_parent
from data_prep.tasks.task_set import Pair, Question, Sentence


@dataclass(frozen=True)
class Leaks:
    """What a corpus holds of some examples.

    Attributes:
        by_pmid: names of examples of whose abstracts one is a training document.
        by_words: names of examples that share `GRAM_WORDS` words in a row with a training document.
        too_short: names of examples with fewer words than that, of which only a PMID could tell.
        documents: documents that were searched.
    """

    by_pmid: frozenset[str]
    by_words: frozenset[str]
    too_short: frozenset[str]
    documents: int

    @property
    def any(self) -> frozenset[str]:
        """Names of the examples that leak in one way or another."""
        return self.by_pmid | self.by_words


def runs_of_words(text: str) -> Iterator[int]:
    """A 64-bit hash of every `GRAM_WORDS` words in a row."""
    words = words_of(text)
    for begin in range(len(words) - GRAM_WORDS + 1):
        yield xxhash.xxh3_64_intdigest(b" ".join(words[begin : begin + GRAM_WORDS]))


def _texts(example: Question | Pair | Sentence) -> tuple[str, ...]:
    if isinstance(example, Question):
        return (example.context, example.question)
    return (example.source if isinstance(example, Pair) else example.text,)


_wanted: frozenset[int] = frozenset()
_pmids: frozenset[str] = frozenset()


def _set_wanted(wanted: frozenset[int], pmids: frozenset[str]) -> None:
    global _wanted, _pmids
    follow_parent()
    _wanted, _pmids = wanted, pmids


def _search(part: tuple[Path, str]) -> tuple[set[int], set[str], int]:
    """Of one part of a corpus: the wanted runs of words and PMIDs that it holds, and its documents."""
    runs: set[int] = set()
    pmids: set[str] = set()
    documents = 0
    for _, record in json_lines.read(*part):
        documents += 1
        runs.update(_wanted.intersection(runs_of_words(record["text"])))
        if (pmid := record["id"].removeprefix("pmid:")) in _pmids:
            pmids.add(pmid)
    return runs, pmids, documents


def find_leaks(examples: Mapping[str, Question | Pair | Sentence], corpus_folder: Path) -> Leaks:
    """Search the train split of a corpus, one process a core, each about 7 MB of text a second.

    Args:
        examples: what to look for, each under a name that the result uses.
        corpus_folder: as data_prep/corpus.py writes it.

    Raises:
        BadInput: no finished corpus is there, or a part of it is damaged.
    """
    runs_of = {
        name: {run for text in _texts(example) for run in runs_of_words(text)} for name, example in examples.items()
    }
    wanted = frozenset(run for runs in runs_of.values() for run in runs)
    pmids_of = {name: () if isinstance(e, Sentence) else e.pmids for name, e in examples.items()}
    pmids = frozenset(pmid for of in pmids_of.values() for pmid in of)
    outputs = read_manifest(corpus_folder, STAGE, "data_prep/corpus.py")["outputs"]
    parts = [(corpus_folder / name, outputs[name]["sha256"]) for name in sorted(outputs) if name.startswith("train-")]
    found: set[int] = set()
    found_pmids: set[str] = set()
    documents = 0
    workers = min(len(parts), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # torch may have threads by now, and forks of those hang
    with ProcessPoolExecutor(workers, context, _set_wanted, (wanted, pmids)) as pool:
        results = pool.map(_search, parts)
        for runs, ids, count in tqdm(results, desc="leaks", total=len(parts), unit=" parts", disable=None):
            found |= runs
            found_pmids |= ids
            documents += count
    return Leaks(
        by_pmid=frozenset(name for name, of in pmids_of.items() if found_pmids.intersection(of)),
        by_words=frozenset(name for name, runs in runs_of.items() if runs & found),
        too_short=frozenset(name for name, runs in runs_of.items() if not runs),
        documents=documents,
    )

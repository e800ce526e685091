"""Which questions a training corpus holds: by PubMed number, and by runs of words.

A question leaks by PMID if a training document is of an abstract that it was made of: the abstract, its article, or a
text that names its number. It leaks by words if its context or question shares a gram with a training document. Grams,
and which of them are common phrases that do not count, are those of data_prep/filtering/decontamination.py: a corpus
that was decontaminated of a text holds none of it here.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import read_manifest
from data_prep.common.pmid import parse_pmid, pmid_of_id
from data_prep.files import json_lines
from data_prep.filtering.corpus_format import PART, STAGE
from data_prep.filtering.decontamination import COMMON_DOCUMENTS, Grams, grams_of, number_of
from data_prep.running.workers import follow_parent
from data_prep.tasks.task_set import Example, Question

TRAIN = "train"
SMALL_BYTES = 4 << 20  # a corpus of so much, packed, is searched before other processes have started


@dataclass(frozen=True)
class Leaks:
    """What a corpus holds of some examples, each called by its name.

    Attributes:
        pmids: what leaks by PMID -> `pmid`, and the training `documents` of it.
        words: what leaks by words -> the first run of `words` that counts, and the training `documents` that hold it.
        without_pmid: those that name no abstract, of which only words can tell.
        too_short: those whose texts have fewer words than a gram, of which only a PMID can tell.
        common_runs: runs of words of all of them that are in too many documents to count.
        documents: training documents that were searched.
    """

    pmids: dict[str, JsonDict]
    words: dict[str, JsonDict]
    without_pmid: frozenset[str]
    too_short: frozenset[str]
    common_runs: int
    documents: int

    @property
    def by_pmid(self) -> frozenset[str]:
        """Names of the examples of whose abstracts one is a training document."""
        return frozenset(self.pmids)

    @property
    def by_words(self) -> frozenset[str]:
        """Names of the examples that share a run of words with a training document."""
        return frozenset(self.words)

    @property
    def any(self) -> frozenset[str]:
        """Names of the examples that leak in one way or another."""
        return self.by_pmid | self.by_words


def _texts(example: Example) -> tuple[str, ...]:
    return (example.context, example.question) if isinstance(example, Question) else (example.text,)


def _pmids(example: Example) -> list[int]:
    return [pmid for pmid in map(parse_pmid, getattr(example, "pmids", ())) if pmid is not None]


@dataclass
class _Seen:
    """What parts of a corpus hold: number of a gram, or PMID -> split and id of documents, no more than tell."""

    grams: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    pmids: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    with_pmid: int = 0

    def add(self, other: _Seen) -> None:
        """Take in what another part holds."""
        for mine, theirs in ((self.grams, other.grams), (self.pmids, other.pmids)):
            for key, documents in theirs.items():
                mine[key] = (mine.get(key, []) + documents)[: COMMON_DOCUMENTS + 1]
        for split, count in other.documents.items():
            self.documents[split] = self.documents.get(split, 0) + count
        self.with_pmid += other.with_pmid


def search(grams: Grams, pmids: frozenset[int], part: tuple[Path, str]) -> _Seen:
    """What one part of a corpus, given with its hash, holds of the grams and PMIDs."""
    seen, split = _Seen(), part[0].name.partition("-")[0]
    for _, record in json_lines.read(*part):
        document = (split, record["id"])
        pmid = record.get("pmid", pmid_of_id(record["id"]))
        seen.documents[split] = seen.documents.get(split, 0) + 1
        seen.with_pmid += pmid is not None
        hits = _Seen({gram: [document] for gram in grams.within(record["text"])})
        if pmid in pmids and split == TRAIN:
            hits.pmids[pmid] = [document]
        seen.add(hits)
    return seen


_wanted: tuple[Grams, frozenset[int]]


def _begin(texts: Sequence[str], pmids: frozenset[int]) -> None:
    global _wanted
    follow_parent()
    _wanted = Grams(texts), pmids


def _search_wanted(part: tuple[Path, str]) -> _Seen:
    return search(*_wanted, part)


def _search_all(parts: Sequence[tuple[Path, str]], texts: Sequence[str], pmids: frozenset[int]) -> Iterator[_Seen]:
    if sum(path.stat().st_size for path, _ in parts if path.is_file()) <= SMALL_BYTES:
        yield from map(partial(search, Grams(texts), pmids), parts)
        return
    workers = min(len(parts), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # torch may have threads by now, and forks of those hang
    with ProcessPoolExecutor(workers, context, _begin, (texts, pmids)) as pool:
        yield from pool.map(_search_wanted, parts)


def find_leaks(examples: Mapping[str, Example], corpus_folder: Path) -> Leaks:
    """Search the train split of a corpus, one process a core; the other splits tell which phrases are common.

    Args:
        examples: what to look for, each under a name that the result uses.
        corpus_folder: as data_prep/corpus.py writes it.

    Raises:
        BadInput: no finished corpus is there, a part of it is damaged, or its documents do not say their PMIDs.
    """
    texts_of = {name: _texts(example) for name, example in examples.items()}
    pmids_of = {name: _pmids(example) for name, example in examples.items()}
    manifest = read_manifest(corpus_folder, STAGE, "data_prep/corpus.py")
    outputs = manifest["outputs"]
    splits = tuple(f"{split}-" for split in manifest["counts"])
    names = [name for name in sorted(outputs) if name.startswith(splits) and name.endswith(PART)]
    parts = [(corpus_folder / name, outputs[name]["sha256"]) for name in names]
    texts = [text for of in texts_of.values() for text in of]
    seen = _Seen()
    results = _search_all(parts, texts, frozenset(pmid for of in pmids_of.values() for pmid in of))
    for part in tqdm(results, desc="leaks", total=len(parts), unit=" parts", disable=None):
        seen.add(part)
    _check_pmids(corpus_folder, manifest, seen)
    common = {gram for gram, documents in seen.grams.items() if len(documents) > COMMON_DOCUMENTS}
    runs_of = {name: [gram for text in of for gram in grams_of(text)] for name, of in texts_of.items()}
    return Leaks(
        pmids={
            name: {"pmid": pmid, "documents": _training(seen.pmids[pmid])}
            for name, of in pmids_of.items()
            for pmid in of[::-1]  # the first of them stays
            if pmid in seen.pmids
        },
        words={name: leak for name, runs in runs_of.items() if (leak := _first_leak(runs, seen, common))},
        without_pmid=frozenset(name for name, of in pmids_of.items() if not of),
        too_short=frozenset(name for name, runs in runs_of.items() if not runs),
        common_runs=len(common),
        documents=seen.documents.get(TRAIN, 0),
    )


def _training(documents: Iterable[tuple[str, str]]) -> list[str]:
    return [id_ for split, id_ in documents if split == TRAIN]


def _first_leak(runs: Iterable[bytes], seen: _Seen, common: set[int]) -> JsonDict | None:
    """The first run of words that a training document holds and that is no common phrase."""
    for run in runs:
        if (number := number_of(run)) not in common and (documents := _training(seen.grams.get(number, ()))):
            return {"words": run.decode(), "documents": documents}
    return None


def _check_pmids(folder: Path, manifest: JsonDict, seen: _Seen) -> None:
    """Refuse a corpus of before its documents said their PMIDs: articles would seem to leak nothing.

    Raises:
        BadInput: fewer documents say one than its manifest counts.
    """
    known = sum(seen.documents.values()) - manifest.get("without_pmid", sum(seen.documents.values()))
    if seen.with_pmid < known:
        raise BadInput(
            f"{folder}: of {known:,} documents with a PubMed number {known - seen.with_pmid:,} do not say it: it was "
            "made by an older version; make it again in another folder, or leave out --corpus"
        )

"""Find questions whose text is in a training corpus, by PubMed number (PMID) and by sequences of words (grams).

A question leaks by PMID if a training document is the abstract from which the question was made, its article, or
another text with its PMID. A question leaks by words if its context or question shares a gram with a training document.
The length of a gram, and the rule that common phrases do not count, are those of
data_prep/filtering/decontamination.py: if a corpus was decontaminated of a text, no leak of that text is found here.
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
SMALL_BYTES = 4 << 20  # a smaller compressed corpus is searched faster than worker processes start


@dataclass(frozen=True)
class Leaks:
    """The leaks of examples into a corpus, by the names of the examples.

    Attributes:
        pmids: example that leaks by PMID -> its `pmid`, and the training `documents` with that PMID.
        words: example that leaks by words -> its first leaked gram (`words`), and the training `documents` with it.
        without_pmid: examples without a PMID, which can only leak by words.
        too_short: examples whose texts have fewer words than a gram, which can only leak by PMID.
        common_runs: number of grams of the examples that do not count, because they are in too many documents.
        documents: number of training documents that were searched.
    """

    pmids: dict[str, JsonDict]
    words: dict[str, JsonDict]
    without_pmid: frozenset[str]
    too_short: frozenset[str]
    common_runs: int
    documents: int

    @property
    def by_pmid(self) -> frozenset[str]:
        """Names of the examples that leak by PMID."""
        return frozenset(self.pmids)

    @property
    def by_words(self) -> frozenset[str]:
        """Names of the examples that leak by words."""
        return frozenset(self.words)

    @property
    def any(self) -> frozenset[str]:
        """Names of the examples that leak by PMID or by words."""
        return self.by_pmid | self.by_words


def _texts(example: Example) -> tuple[str, ...]:
    return (example.context, example.question) if isinstance(example, Question) else (example.text,)


def _pmids(example: Example) -> list[int]:
    return [pmid for pmid in map(parse_pmid, getattr(example, "pmids", ())) if pmid is not None]


@dataclass
class _Seen:
    """Grams and PMIDs found in parts of a corpus -> split and id of documents, at most COMMON_DOCUMENTS + 1 of them."""

    grams: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    pmids: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    with_pmid: int = 0

    def add(self, other: _Seen) -> None:
        """Add what was found in another part."""
        for mine, theirs in ((self.grams, other.grams), (self.pmids, other.pmids)):
            for key, documents in theirs.items():
                mine[key] = (mine.get(key, []) + documents)[: COMMON_DOCUMENTS + 1]
        for split, count in other.documents.items():
            self.documents[split] = self.documents.get(split, 0) + count
        self.with_pmid += other.with_pmid


def search(grams: Grams, pmids: frozenset[int], part: tuple[Path, str]) -> _Seen:
    """Search one part of a corpus, given with its hash, for grams and PMIDs."""
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
    context = multiprocessing.get_context("spawn")  # torch may have started threads, and then a forked process may hang
    with ProcessPoolExecutor(workers, context, _begin, (texts, pmids)) as pool:
        yield from pool.map(_search_wanted, parts)


def find_leaks(examples: Mapping[str, Example], corpus_folder: Path) -> Leaks:
    """Search the train split of a corpus, with one process for each core. Common phrases are counted over all splits.

    Args:
        examples: examples to search for, by the names that the result uses.
        corpus_folder: folder that data_prep/corpus.py wrote.

    Raises:
        BadInput: the folder holds no finished corpus, a part is damaged, or its documents do not record their PMIDs.
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
            for pmid in of[::-1]  # reversed, so that the first PMID overwrites the others
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
    """The first gram that is in a training document and is not a common phrase."""
    for run in runs:
        if (number := number_of(run)) not in common and (documents := _training(seen.grams.get(number, ()))):
            return {"words": run.decode(), "documents": documents}
    return None


def _check_pmids(folder: Path, manifest: JsonDict, seen: _Seen) -> None:
    """Refuse a corpus of an earlier version, whose documents do not record their PMIDs: no article would seem to leak.

    Raises:
        BadInput: fewer documents record a PMID than the manifest counts.
    """
    known = sum(seen.documents.values()) - manifest.get("without_pmid", sum(seen.documents.values()))
    if seen.with_pmid < known:
        raise BadInput(
            f"{folder}: {known - seen.with_pmid:,} of {known:,} documents with a PubMed number do not record it, "
            "because an older version made this corpus; make it again in another folder, or leave out --corpus"
        )

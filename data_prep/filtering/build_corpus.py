"""Build a corpus from sources: filter all documents, split them into train and val, shuffle them, write a manifest.

Hashes of a document's id decide its split and its position. So the corpus does not depend on the order of its input,
all sources are mixed, and every part is a random sample. A part such as `train-00000.jsonl.zst` holds one record per
line: id, text, source, license, date, and the PubMed number if it is not in the id.

The build has three passes, and none of them holds the corpus in memory. First, `spool` reads the inputs into buckets on
disk. Second, `selection` decides which entries stay. Third, `parts` sorts each bucket and writes it as the part with
the same number. The spool is the folder `NAME.work` beside the corpus. It takes about half the size of the text and is
removed when the corpus is finished; a build that was killed resumes from it. The first and the third pass run as tasks
on any number of processes or machines. The second pass needs all entries, and runs in SQLite on one machine.
`NAME.inputs.jsonl.zst` stores the hashes of the inputs with their sizes and modification times, so that each input is
hashed only once. A change that alters neither size nor time goes unnoticed; remove `NAME.inputs.jsonl.zst` to have all
inputs hashed again.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, canonical_json, link, write_text
from data_prep.common.limits import DAY, Real
from data_prep.common.manifest import begin, finished, library_versions, publish
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from data_prep.filtering import decontamination, spool
from data_prep.filtering.card import corpus_card, step_of
from data_prep.filtering.corpus_format import FORMAT, PART, SPLITS, STAGE
from data_prep.filtering.held_out import read_pmids
from data_prep.filtering.parts import Tally, read_tallies, write_parts
from data_prep.filtering.selection import Selection
from data_prep.filtering.spool import Batch, Rules
from data_prep.running.workers import HERE, Workers
from data_prep.sources.characters import RULES
from data_prep.sources.document import Source

XZ_BYTES = 8 << 20  # val text that is compressed as a baseline; xz -9 takes ten times as much memory, and some seconds
VAL_FRACTION = Real(0, 1, above=True, below=True)
DEFAULT_VAL_FRACTION = 0.01
VAL_DOCUMENTS = 20  # least size of val at the default share; in a corpus of under 200 documents, val gets a tenth
NEAR_DUPLICATES = Real(0, 1, above=True)
INPUTS, BAD, CARD = "inputs.jsonl.zst", "bad_records.jsonl.zst", "corpus_card.md"


def build_corpus(
    sources: Mapping[str, tuple[Source, Sequence[str]]],
    out: Path,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    on_error: str = "stop",
    exclude_pmids: Sequence[str] = (),
    decontaminate: Sequence[str] = (),
    recent_after: str | None = None,
    dated_after: str | None = None,
    near_duplicates: float | None = None,
    keep_characters: bool = False,
    workers: Workers = HERE,
) -> JsonDict:
    """Build a corpus folder, unless it is built already. Its bytes depend on all arguments except `workers`.

    Args:
        sources: source name -> source and its inputs (paths, folders, globs, URLs).
        out: corpus folder to make.
        val_fraction: share of the documents in val, between 0 and 1. At the default share, val gets at least
            `VAL_DOCUMENTS` documents, or a tenth of a smaller corpus.
        on_error: `stop` at the first unreadable record, or `skip` such records; skipped records are counted in the
            manifest and listed in `bad_records.jsonl.zst`.
        exclude_pmids: files whose lines begin with a PubMed number; documents with these numbers are dropped.
        decontaminate: files of evaluation texts (see `decontamination.load`); documents that overlap are dropped.
        recent_after: `YYYY-MM-DD`; documents dated after this day go to a split of their own, `recent`.
        dated_after: `YYYY-MM-DD`; only documents dated after this day are kept, and undated ones are dropped.
        near_duplicates: if two texts share at least this part of their word runs, above 0 to 1, one is dropped; None
            drops only equal texts.
        keep_characters: keep all characters of the texts; otherwise `characters.cleaned` removes or replaces some.
        workers: processes or cluster that the tasks run on.

    Raises:
        BadInput: an argument is out of range, an input is missing or broken, an id has two texts, a split has no
            documents, or the disk is full.
    """
    VAL_FRACTION.check("--val-fraction", val_fraction)
    if recent_after is not None:
        DAY.check("--recent-after", recent_after)
    if dated_after is not None:
        DAY.check("--dated-after", dated_after)
        if recent_after is not None and recent_after <= dated_after:
            raise BadInput(
                f"--recent-after = {recent_after} leaves nothing to train on: with --dated-after = {dated_after} "
                "it must be a later day"
            )
    if near_duplicates is not None:
        NEAR_DUPLICATES.check("--near-duplicates", near_duplicates)
    pmid_files = inputs.find(exclude_pmids, ("",)) if exclude_pmids else []
    evaluation = inputs.find(decontaminate, decontamination.SUFFIXES) if decontaminate else []
    asides = {"exclude_pmids": pmid_files, "decontaminate": evaluation}
    files = {name: source.find(patterns) for name, (source, patterns) in sources.items()}
    problems = [file.problem for members in files.values() for file in members if file.problem]
    if problems and on_error == "stop":
        raise BadInput(f"{problems[0]}, or skip it with --on-error skip")
    arguments: JsonDict = {
        "sources": {name: asdict(source) for name, (source, _) in sources.items()},  # pyright: ignore[reportArgumentType]
        "val_fraction": val_fraction,
        "on_error": on_error,
        "exclude_pmids": bool(pmid_files),
        "decontaminate": bool(evaluation),
        "recent_after": recent_after,
        "near_duplicates": near_duplicates,
        "keep_characters": keep_characters,
        # The key is left out by default, so that a corpus from before this switch existed still matches the request.
        **({"dated_after": dated_after} if dated_after else {}),
    }
    request: JsonDict = {"stage": STAGE, "format": FORMAT, "arguments": arguments}
    known = out.with_name(f"{out.name}.inputs.jsonl.zst")
    if out.exists():
        hashes = {name: list(_hashed(members, known)) for name, members in (files | asides).items() if members}
        inputs.remember(known, [pair for pairs in hashes.values() for pair in pairs])
        request["inputs"] = {name: inputs.digest(pairs) for name, pairs in hashes.items()}
        if manifest := finished(out, request):
            print(f"{out} is up to date")
            return manifest
    size_bytes = sum(file.bytes for members in files.values() for file in members)
    rules = Rules(
        val_fraction,
        spool.buckets_for(size_bytes),
        on_error == "skip",
        tuple(evaluation),
        near_duplicates is not None,
        keep_characters,
    )
    pmids = list(read_pmids(pmid_files))
    decontamination.load(rules.evaluation)
    batches = [b for name, (source, _) in sources.items() for b in spool.batches(name, source, files[name], rules)]
    try:
        return _build(batches, rules, pmids, asides, out, request, workers)
    except (OSError, sqlite3.OperationalError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "full" in str(error):
            raise BadInput(f"no room left for {out}; free some, then type the same command to resume") from None
        raise


def _build(
    batches: Sequence[Batch],
    rules: Rules,
    pmids: Sequence[int],
    asides: Mapping[str, Sequence[Input]],
    out: Path,
    request: JsonDict,
    workers: Workers,
) -> JsonDict:
    work = out.with_name(f"{out.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make {work}: {error.strerror}") from None
    spool.read_all(batches, rules, work, workers)
    with Selection(work) as selection:
        selection.load(batches, work)
        bad, overlap = _choose(selection, rules, request["arguments"], pmids)
        own_splits = any(file.split for batch in batches for file in batch.files)
        if rules.val_fraction == DEFAULT_VAL_FRACTION and not own_splits:
            counts = selection.documents()
            total = sum(counts.get(split, 0) for split in SPLITS)
            selection.fill_val(min(VAL_DOCUMENTS, max(1, total // 10)) if total > 1 else 0)
        _check_splits(selection.documents(), batches, rules)
        # The selection depends on all of these, so that parts of a build with other values are not reused.
        decides = {"arguments": request["arguments"], "batches": [batch.key for batch in batches], "pmids": pmids}
        parts = work / hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:24]
        parts.mkdir(exist_ok=True)
        write_parts(parts, batches, selection, work, workers)
        dropped = selection.dropped()
        unknown = {"undated": selection.without("date"), "without_pmid": selection.without("pmid")}
    partial, tallies = begin(out), read_tallies(parts)
    for path in sorted(parts.glob(f"*{PART}")):
        link(path, partial / path.name)
    known = out.with_name(f"{out.name}.inputs.jsonl.zst")
    hashes, entries, characters = _list_inputs(batches, work, partial, dropped, bad)
    for name, members in asides.items():
        if members:
            hashes[name] = list(inputs.sha256_of(members, known))
    if bad:
        dropped["bad records"] = len(bad)
        print(f"{len(bad):,} records could not be read and were dropped; {out / BAD} lists them")
    request["inputs"] = {name: inputs.digest(pairs) for name, pairs in hashes.items()}
    sample = _val_text(partial)
    results = {**_results(tallies, dropped, sample), "entries": entries, **unknown, "decontamination": overlap}
    results["characters"] = {name: characters[name] for name in RULES if characters[name]}
    write_text(partial / CARD, corpus_card({**request, **results, "own_splits": own_splits}))
    for name, counts in results["counts"].items():
        print(f"{name:6} {counts['documents']:>11,} documents {counts['bytes'] / 1e6:>11,.2f} MB")
    for name, count in results["dropped"].items():
        print(f"dropped  {count:>9,} {name}")
    for name, count in results["characters"].items():
        print(f"changed  {count:>9,} documents by the rule for {name}")
    manifest = publish(partial, out, request, results)
    inputs.remember(known, [pair for pairs in hashes.values() for pair in pairs])
    shutil.rmtree(work)
    return manifest


def _choose(
    selection: Selection, rules: Rules, arguments: JsonDict, pmids: Sequence[int]
) -> tuple[list[JsonDict], JsonDict]:
    """Drop entries by one rule after another; return the bad records and the manifest's entry on overlap."""
    selection.drop_superseded()
    bad = selection.drop_repeated_ids(rules.skip)
    selection.drop_pmids(pmids)
    selection.drop_abstracts_of_articles()
    if dated_after := arguments.get("dated_after"):
        selection.drop_old(dated_after)
    if recent_after := arguments["recent_after"]:
        selection.part_recent(recent_after)
    selection.drop_same_texts()
    if (threshold := arguments["near_duplicates"]) is not None:
        selection.drop_near_duplicates(threshold)
    if not rules.evaluation:
        return bad, {}
    grams = decontamination.load(rules.evaluation)
    overlap: JsonDict = {"grams": len(grams), "texts": grams.texts, "too_short": grams.too_short}
    overlap["common_grams"] = selection.drop_overlaps(decontamination.COMMON_DOCUMENTS)
    removed = selection.overlaps({name: file.numbers for name, file in grams.files.items()})
    overlap["files"] = {
        name: {"texts": file.texts, "too_short": file.too_short, "documents": removed[name]}
        for name, file in grams.files.items()
    }
    return bad, overlap


def _list_inputs(
    batches: Sequence[Batch], work: Path, partial: Path, dropped: Counter[str], bad: list[JsonDict]
) -> tuple[dict[str, list[tuple[Input, str | None]]], int, Counter[str]]:
    """Write the lists of inputs and of bad records.

    Args:
        batches: batches of inputs that were read.
        work: folder of the spool.
        partial: unfinished corpus folder.
        dropped: counts by reason, to which this function adds the entries dropped while reading.
        bad: bad records, to which this function adds those found while reading.

    Returns:
        The inputs of each source with their hashes; the number of entries; the number of documents that each
        character rule changed.
    """
    entries, characters = 0, Counter[str]()
    hashes: dict[str, list[tuple[Input, str | None]]] = {}
    with json_lines.Writer(partial / INPUTS) as listing:
        for batch in batches:
            summary = spool.summary(batch, work)
            for file, read in zip(batch.files, summary["files"], strict=True):
                hashes.setdefault(batch.source_name, []).append((file, read["sha256"]))
                entries += read["entries"]
                listing.write({"source": batch.source_name, "bytes": file.bytes, **read})
            dropped.update(summary["dropped"])
            characters.update(summary["characters"])
            bad += summary["bad"]
    if bad:
        with json_lines.Writer(partial / BAD) as bad_listing:
            for record in bad:
                bad_listing.write(record)
    return hashes, entries, characters


def _check_splits(documents: Mapping[str, int], batches: Sequence[Batch], rules: Rules) -> None:
    for split in SPLITS:
        if split not in documents:
            names, total = ", ".join(dict.fromkeys(batch.source_name for batch in batches)), sum(documents.values())
            if total == 1:
                raise BadInput(
                    f"the source {names} holds one document, but {' and '.join(SPLITS)} need one each: give more, "
                    "or cut plain text into documents, for example with --document-characters 10000 (make shards … "
                    "CORPUS='--document-characters 10000')"
                )
            raise BadInput(
                f"none of the {total} documents in the source {names} fell into {split} "
                f"with --val-fraction {rules.val_fraction}; give more input or another fraction"
            )


def _val_text(folder: Path) -> bytes:
    """The first `XZ_BYTES` of the val texts, joined by line feeds."""
    texts, size_bytes = [], 0
    for path in sorted(folder.glob(f"val-*{PART}")):
        for _, record in json_lines.read(path):
            texts.append(record["text"].encode())
            size_bytes += len(texts[-1]) + 1
            if size_bytes > XZ_BYTES:
                return b"\n".join(texts)[:XZ_BYTES]
    return b"\n".join(texts)[:XZ_BYTES]


def _results(tallies: Mapping[str, Tally], dropped: Mapping[str, int], val_text: bytes) -> JsonDict:
    """The results for the manifest: counts, licences, dates, baselines, versions."""
    licenses: Counter[str] = Counter()
    for tally in tallies.values():
        licenses.update(tally.licenses)
    dates = [date for tally in tallies.values() for date in (tally.first, tally.last) if date]
    return {
        "counts": {
            split: {
                "documents": tally.documents,
                "bytes": tally.bytes,
                "sources": dict(sorted(tally.sources.items())),
            }
            for split, tally in tallies.items()
        },
        "dropped": {reason: dropped[reason] for reason in sorted(dropped, key=step_of) if dropped[reason]},
        "licenses": dict(licenses),
        "dates": {"first": min(dates, default=None), "last": max(dates, default=None)},
        "baselines": {"xz9_bits_per_byte": _xz9_bits_per_byte(val_text)},
        "versions": library_versions("lxml", "orjson", "zstandard"),
    }


def _hashed(files: Sequence[Input], known: Path) -> Iterator[tuple[Input, str | None]]:
    total = sum(file.bytes for file in files)
    with tqdm(desc="hash", total=total, unit="B", unit_scale=True, disable=None) as progress:
        yield from inputs.sha256_of(files, known, progress.update)


def _xz9_bits_per_byte(text: bytes) -> float:
    """Bits per byte of the val text under xz -9, a baseline that a language model has to beat."""
    return round(8 * len(lzma.compress(text, preset=9)) / len(text), 6)

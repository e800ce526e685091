"""Sources -> corpus: all documents, split into train and val, in an order of their own, with a manifest.

Both the split and the order of a document follow from hashes of its id. So the corpus does not depend on the order of
its input, all sources are mixed, and every part of it is a random sample. Part `train-00000.jsonl.zst` and its like
hold one record a line: id, text, source, license, date, and a PubMed number that the id does not say.

Three passes, none of which holds the corpus in memory: `spool` reads the inputs into buckets on disk, `selection` says
which entries stay, and here each bucket is sorted and written, as the part of its number. The spool lies in `NAME.work`
beside the corpus, takes about half the text's size, and goes when the corpus is there; a killed build does not do again
what lies in it. The first and the last pass are tasks for any number of processes or machines; the second, which has to
see everything, is SQLite's on one.
`NAME.inputs.jsonl.zst` keeps the hashes of the inputs with their sizes and times of change, so that an input is hashed
once: a file that was changed without either is taken for the old one. Remove it to have all of them hashed again.
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

XZ_BYTES = 8 << 20  # of val text; xz -9 takes ten times as much memory, and some seconds
VAL_FRACTION = Real(0, 1, above=True, below=True)
DEFAULT_VAL_FRACTION = 0.01
VAL_DOCUMENTS = 20  # that val has at the least where nobody has said its share, or a tenth of a smaller corpus
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
    """Make a corpus folder, or find it made. Its bytes depend on all arguments but `workers`.

    Args:
        sources: name -> the source and its inputs (paths, folders, globs, URLs).
        out: the folder to make.
        val_fraction: share of the documents that go to val, 0 to 1, both excluded. At its default, val has
            `VAL_DOCUMENTS` at the least, or a tenth of a corpus that is too small for that.
        on_error: `stop` at the first record that cannot be read, or `skip` it: it is counted in the manifest and
            listed in `bad_records.jsonl.zst`.
        exclude_pmids: files whose lines begin with a PubMed number; documents of these numbers are left out.
        decontaminate: files of evaluation texts (`decontamination.load`); documents that overlap are left out.
        recent_after: `YYYY-MM-DD`; what is dated after this day goes to a split of its own, `recent`.
        dated_after: `YYYY-MM-DD`; what is not dated after this day is left out, and so is what has no date.
        near_duplicates: shared part of their runs of words, 0 to 1, from which one of two stays; None: equal ones.
        keep_characters: leave all characters of the texts as they are; else `characters.cleaned` says what changes.
        workers: where the tasks run.

    Raises:
        BadInput: bad fraction, missing or broken input, an id with two texts, a split without documents, no room on
            the disk.
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
        raise BadInput(f"{problems[0]}, or leave it out with --on-error skip")
    arguments: JsonDict = {
        "sources": {name: asdict(source) for name, (source, _) in sources.items()},  # pyright: ignore[reportArgumentType]
        "val_fraction": val_fraction,
        "on_error": on_error,
        "exclude_pmids": bool(pmid_files),
        "decontaminate": bool(evaluation),
        "recent_after": recent_after,
        "near_duplicates": near_duplicates,
        "keep_characters": keep_characters,
        # Only where it is given, so that a corpus of before there was such a switch is the same one.
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
            raise BadInput(f"no room left for {out}; make some, then type the same command to resume") from None
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
        # What stays depends on all of these, so the parts of another build are not this one's.
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
        print(f"{len(bad):,} records could not be read and were left out; {out / BAD} lists them")
    request["inputs"] = {name: inputs.digest(pairs) for name, pairs in hashes.items()}
    sample = _val_text(partial)
    results = {**_results(tallies, dropped, sample), "entries": entries, **unknown, "decontamination": overlap}
    results["characters"] = {name: characters[name] for name in RULES if characters[name]}
    write_text(partial / CARD, corpus_card({**request, **results, "own_splits": own_splits}))
    for name, counts in results["counts"].items():
        print(f"{name:6} {counts['documents']:>11,} documents {counts['bytes'] / 1e6:>11,.2f} MB")
    for name, count in results["dropped"].items():
        print(f"left out {count:>9,} {name}")
    for name, count in results["characters"].items():
        print(f"changed  {count:>9,} documents by the rule for {name}")
    manifest = publish(partial, out, request, results)
    inputs.remember(known, [pair for pairs in hashes.values() for pair in pairs])
    shutil.rmtree(work)
    return manifest


def _choose(
    selection: Selection, rules: Rules, arguments: JsonDict, pmids: Sequence[int]
) -> tuple[list[JsonDict], JsonDict]:
    """Take out, step by step, what does not stay; the records that are bad, and what the manifest says of overlap."""
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
        work: where the spool lies.
        partial: the corpus folder in the making.
        dropped: gets what was dropped while reading.
        bad: gets the records that were bad while reading.

    Returns:
        Each source's inputs with their hashes; all entries; the documents that each rule for characters changed.
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
                    f"the source {names} holds one document, and {' and '.join(SPLITS)} need one each: give more, "
                    "or cut plain text into documents, as with --document-characters 10000 (make shards … "
                    "CORPUS='--document-characters 10000')"
                )
            raise BadInput(
                f"of {total} documents in the source {names} none fell into {split} "
                f"with --val-fraction {rules.val_fraction}; give more input or another fraction"
            )


def _val_text(folder: Path) -> bytes:
    """The beginning of val, its texts parted by line feeds."""
    texts, size_bytes = [], 0
    for path in sorted(folder.glob(f"val-*{PART}")):
        for _, record in json_lines.read(path):
            texts.append(record["text"].encode())
            size_bytes += len(texts[-1]) + 1
            if size_bytes > XZ_BYTES:
                return b"\n".join(texts)[:XZ_BYTES]
    return b"\n".join(texts)[:XZ_BYTES]


def _results(tallies: Mapping[str, Tally], dropped: Mapping[str, int], val_text: bytes) -> JsonDict:
    """The manifest's own part: counts, licences, dates, baselines, versions."""
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
    """What a general compressor makes of the val text: bits per byte that a language model has to beat."""
    return round(8 * len(lzma.compress(text, preset=9)) / len(text), 6)

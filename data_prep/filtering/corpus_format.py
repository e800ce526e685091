"""Sources -> corpus: all documents, split into train and val, in an order of their own, with a manifest.

Both the split and the order of a document follow from hashes of its id. So the corpus does not depend on the order of
its input, all sources are mixed, and every part of it is a random sample. Part `train-00000.jsonl.zst` and its like
hold one record a line: id, text, source, license, date.

Three passes, none of which holds the corpus in memory: `spool` reads the inputs into buckets on disk, `selection` says
which entries stay, and here each bucket is sorted and written, as the part of its number. The spool lies in `NAME.work`
beside the corpus, takes about half the text's size, and goes when the corpus is there; a killed build does not do again
what lies in it. The first and the last pass are tasks for any number of processes or machines; the second, which has to
see everything, is SQLite's on one.
`NAME.inputs.jsonl.zst` keeps the hashes of the inputs with their sizes and times of change, so that an input is hashed
once: a file that was changed without either is taken for the old one. Remove it to have all of them hashed again.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import lzma
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from data_prep.filtering import overlap, spool
from data_prep.filtering.selection import Selection
from data_prep.filtering.spool import Batch, Rules, place_of, split_of
from data_prep.running.progress import Progress
from data_prep.running.workers import HERE, Task, Tick, Workers, add_workers, written_aside
from data_prep.sources import ABSTRACTS, ARTICLES, Document, Source
from data_prep.sources.medline import Medline
from data_prep.sources.pile import Pile
from data_prep.sources.pmc import TIERS, Pmc
from data_prep.sources.sample import Sample
from data_prep.sources.text import Text
from data_prep.stage import (
    BadInput,
    JsonDict,
    begin,
    canonical_json,
    finished,
    library_versions,
    link,
    publish,
    read_json,
    read_manifest,
    run,
    write_json,
    write_text,
)

__all__ = ["SOURCES", "SPLITS", "STAGE", "build", "place_of", "read_documents", "split_of"]

STAGE = "corpus"
FORMAT = 3
SPLITS = ("train", "val")
SOURCES: dict[str, type[Any]] = {"sample": Sample, "medline": Medline, "pmc": Pmc, "pile": Pile, "text": Text}
RECORD = ("id", "text", "source", "license", "date")
PART = ".jsonl.zst"  # one zstd frame each: many readers stop at the first one's end without a word
XZ_BYTES = 8 << 20  # of val text; xz -9 takes ten times as much memory, and some seconds
INPUTS, BAD, CARD = "inputs.jsonl.zst", "bad_records.jsonl.zst", "corpus_card.md"
TEMPLATE = Path(__file__).with_name("corpus_card.md.jinja")
# The reasons for which entries go, in the order in which they are looked for; a source may have more, which come first.
STEPS = (
    "superseded",
    "bad records",
    "duplicates",
    "held out by PMID",
    "abstracts of articles",
    "before or after --recent-after",
    "same text",
    "near-duplicates",
    "overlap with evaluation texts",
)


def build(
    sources: Mapping[str, tuple[Source, Sequence[str]]],
    out: Path,
    val_fraction: float = 0.01,
    on_error: str = "stop",
    exclude_pmids: Sequence[str] = (),
    decontaminate: Sequence[str] = (),
    recent_after: str | None = None,
    near_duplicates: float | None = None,
    workers: Workers = HERE,
) -> JsonDict:
    """Make a corpus folder, or find it made. Its bytes depend on all arguments but `workers`.

    Args:
        sources: name -> the source and its inputs (paths, folders, globs, URLs).
        out: the folder to make.
        val_fraction: share of the documents that go to val, 0 to 1, both excluded.
        on_error: `stop` at the first record that cannot be read, or `skip` it: it is counted in the manifest and
            listed in `bad_records.jsonl.zst`.
        exclude_pmids: files whose lines begin with a PubMed number; documents of these numbers are left out.
        decontaminate: files of evaluation texts, as `overlap.load` takes them; documents that overlap are left out.
        recent_after: `YYYY-MM-DD`; what is dated after this day goes to a split of its own, `recent`.
        near_duplicates: of texts that share this part of their runs of words, 0 to 1, one stays; None: of equal ones.
        workers: where the tasks run.

    Raises:
        BadInput: bad fraction, missing or broken input, an id with two texts, a split without documents, no room on
            the disk.
    """
    if not 0 < val_fraction < 1:
        raise BadInput(f"--val-fraction {val_fraction} is not between 0 and 1")
    if recent_after is not None and not _is_day(recent_after):
        raise BadInput(f"--recent-after {recent_after} is not a day such as 2024-12-31")
    if near_duplicates is not None and not 0 < near_duplicates <= 1:
        raise BadInput(f"--near-duplicates {near_duplicates} is not above 0 and at most 1")
    pmid_files = inputs.find(exclude_pmids, ("",)) if exclude_pmids else []
    evaluation = inputs.find(decontaminate, overlap.SUFFIXES) if decontaminate else []
    asides = {"exclude_pmids": pmid_files, "decontaminate": evaluation}
    files = {name: source.find(patterns) for name, (source, patterns) in sources.items()}
    arguments: JsonDict = {
        "sources": {name: asdict(source) for name, (source, _) in sources.items()},  # pyright: ignore[reportArgumentType]
        "val_fraction": val_fraction,
        "on_error": on_error,
        "exclude_pmids": bool(pmid_files),
        "decontaminate": bool(evaluation),
        "recent_after": recent_after,
        "near_duplicates": near_duplicates,
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
        val_fraction, spool.buckets_for(size_bytes), on_error == "skip", tuple(evaluation), near_duplicates is not None
    )
    pmids = list(_pmids(pmid_files))
    overlap.load(rules.evaluation)
    batches = [b for name, (source, _) in sources.items() for b in spool.batches(name, source, files[name], rules)]
    try:
        return _build(batches, rules, pmids, asides, out, request, workers)
    except (OSError, sqlite3.OperationalError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "full" in str(error):
            raise BadInput(f"no room left for {out}; make some and type the same command, it goes on") from None
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
        selection.drop_superseded()
        bad = selection.drop_repeated_ids(rules.skip)
        selection.drop_pmids(pmids)
        selection.drop_abstracts_of_articles()
        if recent_after := request["arguments"]["recent_after"]:
            selection.part_recent(recent_after)
        selection.drop_same_texts()
        if (threshold := request["arguments"]["near_duplicates"]) is not None:
            selection.drop_near_duplicates(threshold)
        decontamination: JsonDict = {}
        if rules.evaluation:
            grams = overlap.load(rules.evaluation)
            decontamination = {"grams": len(grams), "texts": grams.texts, "too_short": grams.too_short}
            decontamination["common_grams"] = selection.drop_overlaps(overlap.COMMON_DOCUMENTS)
        _check_splits(selection.documents(), batches, rules)
        # What stays depends on all of these, so the parts of another build are not this one's.
        decides = {"arguments": request["arguments"], "batches": [batch.key for batch in batches], "pmids": pmids}
        parts = work / hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:24]
        parts.mkdir(exist_ok=True)
        _write(parts, batches, selection, work, workers)
        dropped = selection.dropped()
        unknown = {"undated": selection.without("date"), "without_pmid": selection.without("pmid")}
    partial, tallies = begin(out), _tallies(parts)
    for path in sorted(parts.glob(f"*{PART}")):
        link(path, partial / path.name)
    entries = 0
    hashes: dict[str, list[tuple[Input, str]]] = {}
    with json_lines.Writer(partial / INPUTS) as listing, json_lines.Writer(partial / BAD) as bad_listing:
        for batch in batches:
            summary = spool.summary(batch, work)
            for file, read in zip(batch.files, summary["files"], strict=True):
                hashes.setdefault(batch.source_name, []).append((file, read["sha256"]))
                entries += read["entries"]
                listing.write({"source": batch.source_name, "bytes": file.bytes, **read})
            dropped.update(summary["dropped"])
            bad += summary["bad"]
        for name, members in asides.items():
            if members:
                hashes[name] = list(inputs.sha256_of(members, out.with_name(f"{out.name}.inputs.jsonl.zst")))
        for record in bad:
            bad_listing.write(record)
    if bad:
        dropped["bad records"] = len(bad)
        print(f"{len(bad):,} records could not be read and were left out; {out / BAD} lists them")
    else:
        (partial / BAD).unlink()
    request["inputs"] = {name: inputs.digest(pairs) for name, pairs in hashes.items()}
    sample = _val_text(partial)
    results = {**_results(tallies, dropped, sample), "entries": entries, **unknown, "decontamination": decontamination}
    own_splits = any(file.split for batch in batches for file in batch.files)
    write_text(partial / CARD, _card({**request, **results, "own_splits": own_splits}))
    for name, counts in results["counts"].items():
        print(f"{name:6} {counts['documents']:>11,} documents {counts['bytes'] / 1e6:>11,.2f} MB")
    manifest = publish(partial, out, request, results)
    inputs.remember(
        out.with_name(f"{out.name}.inputs.jsonl.zst"), [pair for pairs in hashes.values() for pair in pairs]
    )
    shutil.rmtree(work)
    return manifest


def read_documents(folder: Path, split: str) -> Iterator[Document]:
    """The documents of one split of a finished corpus, in its order.

    Raises:
        BadInput: no finished corpus there, a part is missing, cut off, damaged or altered, or a line is not a document.
    """
    manifest = read_manifest(folder, STAGE, "make corpus")
    for name, output in sorted(manifest["outputs"].items()):
        if name.startswith(f"{split}-"):
            yield from read_part(folder / name, output["sha256"])


def read_part(path: Path, sha256: str) -> Iterator[Document]:
    """The documents of one part.

    Args:
        path: the file.
        sha256: what the manifest says of it.

    Raises:
        BadInput: it is missing, cut off, damaged or altered, or a line is not a document.
    """
    for number, record in json_lines.read(path, sha256):
        if record.keys() != set(RECORD):
            raise BadInput(f"{path}, line {number}: not a document, it has the keys {list(record)}")
        yield Document(**record)


@dataclass
class _Tally:
    """What was written into a split."""

    documents: int = 0
    bytes: int = 0
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None

    def add(self, document: Document, size_bytes: int) -> None:
        self.documents += 1
        self.bytes += size_bytes
        counts = self.sources.setdefault(document.source, {"documents": 0, "bytes": 0})
        counts["documents"] += 1
        counts["bytes"] += size_bytes
        license, date = document.license or "unknown", document.date
        self.licenses[license] = self.licenses.get(license, 0) + 1
        if date:
            self.first = min(self.first or date, date)
            self.last = max(self.last or date, date)

    def merge(self, other: _Tally) -> None:
        self.documents += other.documents
        self.bytes += other.bytes
        for name, counts in other.sources.items():
            own = self.sources.setdefault(name, {"documents": 0, "bytes": 0})
            for key, count in counts.items():
                own[key] += count
        for name, count in other.licenses.items():
            self.licenses[name] = self.licenses.get(name, 0) + count
        self.first = min(filter(None, (self.first, other.first)), default=None)
        self.last = max(filter(None, (self.last, other.last)), default=None)


def write_bucket(
    work: Path, out: Path, bucket: int, members: Sequence[tuple[str, dict[int, str], list[tuple[int, int]]]], tick: Tick
) -> None:
    """One part of each split: what stays of a bucket, sorted; and last `bucket-NUMBER.json`, what was written.

    Args:
        work: where the spool lies.
        out: where the parts go.
        bucket: its number, which is the part's.
        members: a batch's key, the split of each entry of it that stays, and the places of its frames.
        tick: is told the spool's bytes that were read, and the documents.
    """
    found = [
        (place_of(document.id), chosen[entry], document)
        for key, chosen, places in members
        for entry, document in spool.documents(key, work, places)
        if entry in chosen
    ]
    found.sort(key=lambda item: item[0])
    tallies: dict[str, _Tally] = {}
    for split in sorted({split for _, split, _ in found}):
        tally = tallies[split] = _Tally()
        with (
            written_aside(out / f"{split}-{bucket:05}{PART}") as path,
            json_lines.Writer(path) as writer,
        ):
            for _, own, document in found:
                if own == split:
                    tally.add(document, len(document.text.encode()))
                    writer.write({name: getattr(document, name) for name in RECORD})
    write_json(out / f"bucket-{bucket:05}.json", {split: asdict(tally) for split, tally in tallies.items()})
    tick(bytes=sum(size for *_, places in members for _, size in places), documents=len(found))


def _write(out: Path, batches: Sequence[Batch], selection: Selection, work: Path, workers: Workers) -> None:
    """Write the buckets that are not there yet."""
    done = {int(path.stem.removeprefix("bucket-")) for path in out.glob("bucket-*.json")}

    def tasks() -> Iterator[Task]:
        for bucket, chosen in selection.chosen():
            if bucket not in done:
                members = [
                    (batches[batch].key, entries, selection.frames(bucket, batch)) for batch, entries in chosen.items()
                ]
                yield Task(f"part {bucket}", (work, out, bucket, members))

    with Progress("write", *selection.frame_bytes(done)) as progress:
        workers.run(write_bucket, tasks(), work, progress)


def _tallies(out: Path) -> dict[str, _Tally]:
    """What was written, by split."""
    tallies: dict[str, _Tally] = {}
    for path in sorted(out.glob("bucket-*.json")):
        for split, tally in read_json(path).items():
            tallies.setdefault(split, _Tally()).merge(_Tally(**tally))
    return tallies


def _check_splits(documents: Mapping[str, int], batches: Sequence[Batch], rules: Rules) -> None:
    for split in SPLITS:
        if split not in documents:
            names = ", ".join(dict.fromkeys(batch.source_name for batch in batches))
            raise BadInput(
                f"of {sum(documents.values())} documents in the source {names} none fell into {split} "
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


def _results(tallies: Mapping[str, _Tally], dropped: Mapping[str, int], val_text: bytes) -> JsonDict:
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
        "dropped": {reason: dropped[reason] for reason in sorted(dropped, key=_step) if dropped[reason]},
        "licenses": dict(licenses),
        "dates": {"first": min(dates, default=None), "last": max(dates, default=None)},
        "baselines": {"xz9_bits_per_byte": _xz9_bits_per_byte(val_text)},
        "versions": library_versions("lxml", "orjson", "zstandard"),
    }


def _step(reason: str) -> int:
    return STEPS.index(reason) if reason in STEPS else -1


def _card(manifest: JsonDict) -> str:
    """The corpus in words and tables, for those who use what is trained on it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    left = manifest["entries"]
    funnel = []
    for reason, out in manifest["dropped"].items():
        left -= out
        funnel.append({"reason": reason, "out": out, "left": left})
    names = {name for counts in manifest["counts"].values() for name in counts["sources"]}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE.name).render(
        **manifest,
        documents=sum(counts["documents"] for counts in manifest["counts"].values()),
        bytes=sum(counts["bytes"] for counts in manifest["counts"].values()),
        funnel=funnel,
        nlm=bool(names & {ABSTRACTS, ARTICLES}),
    )


def _pmids(files: Sequence[Input]) -> Iterator[int]:
    """The numbers that lines begin with; a first line without one is a heading."""
    for file in files:
        with inputs.reading(file) as stream:
            for number, line in enumerate(json_lines.lines(stream, file.url), start=1):
                if found := re.match(rb"\s*(\d+)\b", line):
                    yield int(found.group(1))
                elif line.strip() and number > 1:
                    raise BadInput(f"{file.url}, line {number}: does not begin with a PubMed number but {line[:40]!r}")


def _is_day(text: str) -> bool:
    try:
        return len(text) == 10 and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _hashed(files: Sequence[Input], known: Path) -> Iterator[tuple[Input, str]]:
    total = sum(file.bytes for file in files)
    with tqdm(desc="hash", total=total, unit="B", unit_scale=True, disable=None) as progress:
        yield from inputs.sha256_of(files, known, progress.update)


def _xz9_bits_per_byte(text: bytes) -> float:
    """What a general compressor makes of the val text: bits per byte that a language model has to beat."""
    return round(8 * len(lzma.compress(text, preset=9)) / len(text), 6)


class _AddSource(argparse.Action):
    """`--source` begins a source, `--input` and its switches belong to the last one begun."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None):
        sources: dict[str, JsonDict] = namespace.sources
        if self.dest == "source":
            if values not in SOURCES:
                raise BadInput(f"unknown source {values!r}; known: {', '.join(sorted(SOURCES))}")
            if values in sources:
                raise BadInput(f"--source {values} is there twice; give all its inputs to one")
            sources[values] = {"input": []}
            return
        if not sources:
            raise BadInput(f"{self.option_strings[0]} comes before the --source that it belongs to")
        name = list(sources)[-1]
        if self.dest == "input":
            sources[name]["input"] += values
        elif self.dest in {switch.name for switch in fields(SOURCES[name])}:
            sources[name][self.dest] = values if self.nargs is None else True
        else:
            raise BadInput(f"{self.option_strings[0]} is not a switch of the source {name}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Read documents from sources, split them into train and val, and write them as a corpus.",
        epilog="example: python data_prep/corpus.py --source sample --out data/sample/corpus; "
        "or --source pile --input 'pile/*.jsonl.zst' --out data/pile/corpus",
    )
    parser.set_defaults(sources={})
    names = ", ".join(SOURCES)
    add = parser.add_argument
    add("--source", action=_AddSource, required=True, help=f"where the text comes from: {names}; may come again")
    add("--input", action=_AddSource, nargs="+", help="its files, folders, globs or URLs (s3://, hf://)")
    add("--out", type=Path, required=True, help="the corpus folder to make")
    add("--val-fraction", type=float, default=0.01, help="share of documents in val (default 0.01)")
    add("--on-error", choices=("stop", "skip"), default="stop", help="at a record that cannot be read (default stop)")
    add_workers(parser)
    add("--exclude-pmids", nargs="+", default=(), metavar="FILE", help="leave out these PubMed numbers, one a line")
    add("--decontaminate", nargs="+", default=(), metavar="FILE", help="leave out overlap with these evaluation texts")
    add("--recent-after", metavar="YYYY-MM-DD", help="put what is dated after this day into a split `recent`")
    add(
        "--near-duplicates", type=float, metavar="SHARE", help="keep one of texts this much alike, as 0.8 (default off)"
    )
    medline = parser.add_argument_group("switches of --source medline")
    medline.add_argument("--section-labels", action=_AddSource, nargs=0, help="keep labels, as in `METHODS: We …`")
    medline.add_argument(
        "--languages", action=_AddSource, help="keep articles in these alone, as eng,fre (default all)"
    )
    pmc = parser.add_argument_group("switches of --source pmc")
    tiers = ", ".join(TIERS)
    pmc.add_argument("--licenses", action=_AddSource, help=f"of articles by their licences keep: {tiers} (default all)")
    text = parser.add_argument_group("switches of --source text")
    for key in ("text", "id", "date", "license", "pmid"):
        text.add_argument(f"--{key}-key", action=_AddSource, help=f"key or column (default {key})")
    text.add_argument("--set-name", action=_AddSource, help="what the documents' source is called (default text)")
    args = parser.parse_args(argv)
    sources: dict[str, tuple[Source, Sequence[str]]] = {}
    for name, switches in args.sources.items():
        patterns = switches.pop("input")
        if not patterns and name != "sample":
            raise BadInput(f"--source {name} needs --input: files, folders, globs or URLs")
        sources[name] = (SOURCES[name](**switches), patterns)
    build(
        sources,
        args.out,
        val_fraction=args.val_fraction,
        on_error=args.on_error,
        exclude_pmids=args.exclude_pmids,
        decontaminate=args.decontaminate,
        recent_after=args.recent_after,
        near_duplicates=args.near_duplicates,
        workers=Workers(args.workers, args.cluster),
    )


if __name__ == "__main__":
    run(main)

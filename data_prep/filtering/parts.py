"""The third pass of a corpus: each bucket sorted and written, as the part of its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep.common.files import read_json, write_json
from data_prep.files import json_lines
from data_prep.filtering import spool
from data_prep.filtering.corpus_format import PART, record_of
from data_prep.filtering.selection import Selection
from data_prep.filtering.spool import Batch, place_of
from data_prep.running.progress import Progress
from data_prep.running.workers import Task, Tick, Workers, written_aside
from data_prep.sources.document import Document


@dataclass
class Tally:
    """What was written into a split."""

    documents: int = 0
    bytes: int = 0
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None

    def add(self, document: Document, size_bytes: int) -> None:
        """Count a document."""
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

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
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
    documents = [
        (place_of(document.id), chosen[entry], document)
        for key, chosen, places in members
        for entry, document in spool.documents(key, work, places)
        if entry in chosen
    ]
    documents.sort(key=lambda item: item[0])
    tallies: dict[str, Tally] = {}
    for split in sorted({split for _, split, _ in documents}):
        tally = tallies[split] = Tally()
        with (
            written_aside(out / f"{split}-{bucket:05}{PART}") as path,
            json_lines.Writer(path) as writer,
        ):
            for _, own, document in documents:
                if own == split:
                    tally.add(document, len(document.text.encode()))
                    writer.write(record_of(document))
    write_json(out / f"bucket-{bucket:05}.json", {split: asdict(tally) for split, tally in tallies.items()})
    tick(bytes=sum(size for *_, places in members for _, size in places), documents=len(documents))


def write_parts(out: Path, batches: Sequence[Batch], selection: Selection, work: Path, workers: Workers) -> None:
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


def read_tallies(out: Path) -> dict[str, Tally]:
    """What was written, by split."""
    tallies: dict[str, Tally] = {}
    for path in sorted(out.glob("bucket-*.json")):
        for split, tally in read_json(path).items():
            tallies.setdefault(split, Tally()).merge(Tally(**tally))
    return tallies

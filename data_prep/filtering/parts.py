"""The third pass of a corpus build: sort each bucket and write it as the part with the same number."""

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
    """Counts of the documents that were written into a split."""

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
        """Add the counts of another tally."""
        self.documents += other.documents
        self.bytes += other.bytes
        for name, counts in other.sources.items():
            merged = self.sources.setdefault(name, {"documents": 0, "bytes": 0})
            for key, count in counts.items():
                merged[key] += count
        for name, count in other.licenses.items():
            self.licenses[name] = self.licenses.get(name, 0) + count
        self.first = min(filter(None, (self.first, other.first)), default=None)
        self.last = max(filter(None, (self.last, other.last)), default=None)


def write_bucket(
    work: Path, out: Path, bucket: int, members: Sequence[tuple[str, dict[int, str], list[tuple[int, int]]]], tick: Tick
) -> None:
    """Write the chosen documents of a bucket, sorted, as one part per split, and then the tally `bucket-NUMBER.json`.

    Args:
        work: folder of the spool.
        out: folder of the parts.
        bucket: number of the bucket and of its parts.
        members: for each batch, its key, the split of each chosen entry, and the offset and size of each frame.
        tick: called with the number of bytes read from the spool, and of documents.
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
            for _, its_split, document in documents:
                if its_split == split:
                    tally.add(document, len(document.text.encode()))
                    writer.write(record_of(document))
    write_json(out / f"bucket-{bucket:05}.json", {split: asdict(tally) for split, tally in tallies.items()})
    tick(bytes=sum(size for *_, places in members for _, size in places), documents=len(documents))


def write_parts(out: Path, batches: Sequence[Batch], selection: Selection, work: Path, workers: Workers) -> None:
    """Write the parts of all buckets that are not written yet."""
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
    """The tallies of all buckets, merged by split."""
    tallies: dict[str, Tally] = {}
    for path in sorted(out.glob("bucket-*.json")):
        for split, tally in read_json(path).items():
            tallies.setdefault(split, Tally()).merge(Tally(**tally))
    return tallies

"""The first pass of a corpus build: read the inputs into buckets on disk that are small enough to sort.

One process reads each batch of inputs into three files of the work folder:

    KEY.text      documents as zstd frames of JSON lines; a frame holds documents of one bucket
    KEY.rows.zst one line per entry without its text, with the values that the second pass needs
    KEY.json      written last: positions of the frames, hashes of the inputs, counts, unreadable records

The key is a hash of the rules, of the names, sizes and stamps of the inputs, and of the versions of the libraries that
read them. A batch whose KEY.json exists is not read again. A bucket is a range of the sort key `place_of`, so that the
sorted buckets, one after another, give the documents in the order of the corpus.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import zstandard

from data_prep.common.bounds import BAD_RECORDS
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, canonical_json, read_json, write_json
from data_prep.common.manifest import library_versions
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from data_prep.filtering import decontamination, near_duplicates
from data_prep.running.progress import Done, Progress
from data_prep.running.workers import Task, Tick, Workers, written_aside
from data_prep.sources.characters import cleaned
from data_prep.sources.document import Bad, Document, Dropped, Entry, Source, pieces

BATCH_BYTES = 32 << 20  # inputs per batch; a larger file is a batch of its own
BATCH_FILES = 4096
BUCKET_BYTES = 16 << 20  # inputs per bucket; they unpack to some four times as much text, which is sorted in memory
MAX_BUCKETS = 4096
BUFFER_BYTES = 64 << 20  # text that a process holds before it writes frames
# Maps capitals to small letters, and all characters that str.split treats as white space to a space.
ASCII_FOLD = bytes(ord(" ") if chr(n).isspace() else ord(chr(n).lower()) if n < 128 else n for n in range(256))
READING = 3  # increased when entries are read in a new way, so that a build does not resume from an older spool
FAST = 1  # zstd level of temporary files


@dataclass(frozen=True)
class Rules:
    """Settings that decide how entries are read, in addition to the source's own switches.

    Attributes:
        val_fraction: share of the documents in val.
        buckets: number of buckets.
        skip: whether bad records are skipped; otherwise they stop the build.
        evaluation: files of evaluation texts, to find documents that overlap with them.
        signatures: whether to compute MinHash signatures, to find near-duplicates.
        keep_characters: whether texts keep all their characters; otherwise `characters.cleaned` is applied.
    """

    val_fraction: float
    buckets: int
    skip: bool
    evaluation: tuple[Input, ...] = ()
    signatures: bool = False
    keep_characters: bool = False


@dataclass(frozen=True)
class Batch:
    """Inputs of one source that are read together; `key` is the name of the output files."""

    source_name: str
    source: Source
    files: tuple[Input, ...]
    key: str


def split_of(document_id: str, val_fraction: float) -> str:
    """`train` or `val`, from the id alone, so that order, workers and repeated builds cannot move a document."""
    return "val" if share_of(document_id) < val_fraction * 2**64 else "train"


def share_of(document_id: str) -> int:
    """A hash of an id, below 2**64; the documents with the smallest hashes are val."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big")


def place_of(document_id: str) -> bytes:
    """The sort key of a document within its split, independent of `split_of`."""
    return hashlib.sha256(b"place\0" + document_id.encode()).digest()


def same_text(text: str) -> str:
    """A hash that is equal for texts that differ only in case and white space.

    Invisible characters were removed before (`characters.cleaned`). The text is hashed piece by piece.
    """
    digest, between = hashlib.blake2b(digest_size=16), b""
    for piece in pieces(text):
        if piece.isascii():  # gives the same result in a fifth of the time
            data = piece.encode().translate(ASCII_FOLD)
            words = b" ".join(data.split()) if b"  " in data else data.strip()
        else:
            words = " ".join(piece.casefold().split()).encode()
        if words:
            digest.update(between + words)
            between = b" "
    return digest.hexdigest()


def buckets_for(size_bytes: int) -> int:
    """The number of buckets for inputs of this total size."""
    return min(MAX_BUCKETS, size_bytes // BUCKET_BYTES + 1)


def batches(source_name: str, source: Source, files: Sequence[Input], rules: Rules) -> Iterator[Batch]:
    """Group the inputs of a source into batches, in order."""
    start = size_bytes = 0
    for end, file in enumerate(files):
        if end > start and (size_bytes + file.bytes > BATCH_BYTES or end - start == BATCH_FILES):
            yield _batch(source_name, source, files[start:end], rules)
            start, size_bytes = end, 0
        size_bytes += file.bytes
    yield _batch(source_name, source, files[start:], rules)


def read_all(todo: Sequence[Batch], rules: Rules, folder: Path, workers: Workers) -> None:
    """Read all batches that are not read yet.

    Raises:
        BadInput: an input cannot be read or holds a bad record, and `rules.skip` is not set.
    """
    left = [batch for batch in todo if not (folder / f"{batch.key}.json").exists()]
    total, missing = (sum(file.bytes for batch in some for file in batch.files) for some in (todo, left))
    tasks = (Task(batch.files[0].url, (batch, rules, folder)) for batch in left)
    with Progress("read", total, Done(total - missing)) as progress:
        workers.run(read, tasks, folder, progress)


def read(batch: Batch, rules: Rules, folder: Path, tick: Tick) -> None:
    """Read one batch and write its three files.

    Args:
        batch: batch to read.
        rules: settings of the build.
        folder: work folder.
        tick: called with the numbers of input bytes and documents read.

    Raises:
        BadInput: as in `read_all`.
    """
    files: list[JsonDict] = []
    bad: list[JsonDict] = []
    counts, characters = Counter[str](), Counter[str]()
    number = 0
    with (
        written_aside(folder / f"{batch.key}.text") as text_path,
        written_aside(folder / f"{batch.key}.rows.zst") as rows_path,
        _Frames(text_path) as frames,
        json_lines.Writer(rows_path, FAST) as rows,
    ):
        for file in batch.files:
            state = _FileState(bad_left=BAD_RECORDS - len(bad))
            for entry in _entries(batch.source, file, rules, tick, state):
                state.entries += 1
                if isinstance(entry, Document) and not rules.keep_characters:
                    entry = _cleaned(entry, characters)
                if isinstance(entry, Bad):
                    bad.append({"file": file.name, "place": entry.place, "problem": entry.problem})
                elif isinstance(entry, Dropped) and entry.id is None:
                    counts[entry.reason] += 1
                else:
                    rows.write(frames.add(number, entry, file, rules))
                    number += 1
            files.append({"name": file.name, "sha256": state.sha256, "entries": state.entries})
            tick(documents=state.entries)
    done = {"files": files, "frames": frames.places, "bad": bad, "dropped": counts, "characters": characters}
    write_json(folder / f"{batch.key}.json", done)


def summary(batch: Batch, folder: Path) -> JsonDict:
    """The content of KEY.json: `files`, `frames` as [bucket, offset, bytes], `bad`, `dropped`, `characters`."""
    return read_json(folder / f"{batch.key}.json")


def rows(batch: Batch, folder: Path) -> Iterator[JsonDict]:
    """The entries of a batch without their texts, in order."""
    return (row for _, row in json_lines.read(folder / f"{batch.key}.rows.zst"))


def documents(key: str, folder: Path, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Document]]:
    """Read documents from frames of a batch, each with the number of its entry.

    Args:
        key: key of the batch.
        folder: work folder.
        places: offset and size in bytes of each frame.
    """
    decompressor = zstandard.ZstdDecompressor()
    with (folder / f"{key}.text").open("rb") as file:
        for offset, size in places:
            file.seek(offset)
            for line in decompressor.decompress(file.read(size)).splitlines():
                number, *values = orjson.loads(line)
                yield number, Document(*values)


@dataclass
class _FileState:
    bad_left: int
    entries: int = 0
    sha256: str | None = None


class _Frames:
    """Collects documents by bucket and writes them as frames."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        # Byte arrays and not lists of lines, because small objects mixed with those of XML trees fragment the memory
        # and take ten times their size.
        self._buffers: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._buffered_bytes = 0
        self._compressor = zstandard.ZstdCompressor(level=FAST)
        self.places: list[tuple[int, int, int]] = []

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
        self._file.close()

    def add(self, number: int, entry: Document | Dropped, file: Input, rules: Rules) -> JsonDict:
        """Add an entry and return its row."""
        assert entry.id is not None
        bucket = int.from_bytes(place_of(entry.id)[:8], "big") * rules.buckets >> 64
        row: JsonDict = {"bucket": bucket, "id": entry.id, "version": entry.version, "file": file.name}
        if isinstance(entry, Dropped):
            return {**row, "reason": entry.reason}
        values = (entry.id, entry.text, entry.source, entry.license, entry.date, entry.pmid)
        line = orjson.dumps((number, *values), option=orjson.OPT_APPEND_NEWLINE)
        self._buffers[bucket] += line
        self._buffered_bytes += len(line)
        if self._buffered_bytes > BUFFER_BYTES:
            self.flush()
        return {
            **row,
            "text": same_text(cleaned(entry.text)[0] if rules.keep_characters else entry.text),
            "pmid": entry.pmid,
            "source": entry.source,
            "date": entry.date,
            "split": file.split or split_of(entry.id, rules.val_fraction),
            "signature": near_duplicates.signature(entry.text).hex() if rules.signatures else None,
            "grams": decontamination.load(rules.evaluation).within(entry.text) if rules.evaluation else [],
        }

    def flush(self) -> None:
        """Write the collected documents."""
        for bucket, lines in sorted(self._buffers.items()):
            frame = self._compressor.compress(lines)
            self.places.append((bucket, self._file.tell(), len(frame)))
            self._file.write(frame)
        self._buffers.clear()
        self._buffered_bytes = 0


def _cleaned(document: Document, characters: Counter[str]) -> Document | Dropped:
    """Clean the characters of a document; `characters` counts the documents that each rule changes."""
    text, used = cleaned(document.text)
    if not used:
        return document
    characters.update(used)
    if not text:
        return Dropped("without text", document.id, document.version)
    return replace(document, text=text)


def _entries(source: Source, file: Input, rules: Rules, tick: Tick, state: _FileState) -> Iterator[Entry]:
    """The entries of a file. An error stops the build, or is yielded as a `Bad` entry if `rules.skip` is set."""
    try:
        with inputs.reading(file, tick) as stream:
            try:
                for entry in source.read(file, stream):
                    if isinstance(entry, Bad) and not rules.skip:
                        raise BadInput(
                            f"{file.url}, {entry.place}: {entry.problem}\n"
                            "repair it, or skip unreadable records with --on-error skip"
                        )
                    if isinstance(entry, Bad):
                        state.bad_left -= 1
                        if state.bad_left < 0:
                            raise BadInput(f"more than {BAD_RECORDS:,} records in this batch of files are bad")
                    yield entry
            except BadInput as error:
                if not rules.skip:
                    raise
                yield Bad("from there on", str(error))
            state.sha256 = stream.sha256()
        if file.bytes == 0 and state.entries == 0:
            raise BadInput(f"{file.url} is empty; remove it, or skip it with --on-error skip")
    except BadInput as error:
        if not rules.skip:
            raise
        yield Bad("as a whole", str(error))


def _batch(source_name: str, source: Source, files: Sequence[Input], rules: Rules) -> Batch:
    what: Any = {
        "reading": READING,
        "source": [source_name, asdict(source)],  # pyright: ignore[reportArgumentType] (all of them are dataclasses)
        "files": [asdict(file) for file in files],
        "rules": asdict(rules),
        "versions": library_versions("lxml", "orjson", "pyarrow", "rensa"),
    }
    key = hashlib.sha256(canonical_json(what).encode()).hexdigest()[:24]
    return Batch(source_name, source, tuple(files), key)

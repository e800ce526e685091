"""The corpus' first pass: what the inputs hold, on disk, in buckets small enough to sort.

Inputs are read in batches, each by one process, each into three files of the work folder:

    KEY.text    documents as zstd frames of JSON lines; a frame holds documents of one bucket
    KEY.rows.zst one line an entry, without its text: what is needed to choose between the entries of all batches
    KEY.json    written last: where the frames lie, the inputs' hashes, counts, records that could not be read

The key is a hash of the rules, of the inputs' names, sizes and stamps, and of the versions of what reads them. A batch
whose KEY.json is there is not read again. A bucket is a range of `place_of`, so the buckets in their order, each
of them sorted, are the corpus in its order.
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

BATCH_BYTES = 32 << 20  # of inputs; a larger file is a batch of its own
BATCH_FILES = 4096
BUCKET_BYTES = 16 << 20  # of inputs; they unpack to some four times as much text, which is sorted in memory
MAX_BUCKETS = 4096
BUFFER_BYTES = 64 << 20  # of text a process holds before it writes frames
# Small letters for capitals, and a space for all that str.split takes for white space.
ASCII_FOLD = bytes(ord(" ") if chr(n).isspace() else ord(chr(n).lower()) if n < 128 else n for n in range(256))
READING = 3  # counted up where entries are read otherwise than before, so that no spool of then is gone on with
FAST = 1  # zstd level of files that live as long as a build


@dataclass(frozen=True)
class Rules:
    """What decides how an entry is read, beside the source's own switches.

    Attributes:
        val_fraction: share of the documents that go to val.
        buckets: how many the documents are spread over.
        skip: whether bad records are left out, or stop the build.
        evaluation: files whose texts are looked for in the documents.
        signatures: whether documents get one, to be compared by.
        keep_characters: whether texts keep their characters as the source has them (`characters.cleaned`).
    """

    val_fraction: float
    buckets: int
    skip: bool
    evaluation: tuple[Input, ...] = ()
    signatures: bool = False
    keep_characters: bool = False


@dataclass(frozen=True)
class Batch:
    """Inputs of one source that are read together; `key` names what comes of them."""

    source_name: str
    source: Source
    files: tuple[Input, ...]
    key: str


def split_of(document_id: str, val_fraction: float) -> str:
    """`train` or `val`, from the id alone: order, workers and re-runs cannot move a document."""
    return "val" if share_of(document_id) < val_fraction * 2**64 else "train"


def share_of(document_id: str) -> int:
    """A hash of an id, below 2**64: the documents with the smallest ones are val."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big")


def place_of(document_id: str) -> bytes:
    """The sort key of a document within its split; independent of `split_of`."""
    return hashlib.sha256(b"place\0" + document_id.encode()).digest()


def same_text(text: str) -> str:
    """A hash that texts share which differ in nothing but case and white space; a piece of the text at a time.

    What else no reader sees is out of the text by now (`characters.cleaned`).
    """
    digest, between = hashlib.blake2b(digest_size=16), b""
    for piece in pieces(text):
        if piece.isascii():  # the same, in a fifth of the time
            data = piece.encode().translate(ASCII_FOLD)
            words = b" ".join(data.split()) if b"  " in data else data.strip()
        else:
            words = " ".join(piece.casefold().split()).encode()
        if words:
            digest.update(between + words)
            between = b" "
    return digest.hexdigest()


def buckets_for(size_bytes: int) -> int:
    """How many buckets inputs of this size are spread over."""
    return min(MAX_BUCKETS, size_bytes // BUCKET_BYTES + 1)


def batches(source_name: str, source: Source, files: Sequence[Input], rules: Rules) -> Iterator[Batch]:
    """Cut a source's inputs into batches, in their order."""
    start = size_bytes = 0
    for end, file in enumerate(files):
        if end > start and (size_bytes + file.bytes > BATCH_BYTES or end - start == BATCH_FILES):
            yield _batch(source_name, source, files[start:end], rules)
            start, size_bytes = end, 0
        size_bytes += file.bytes
    yield _batch(source_name, source, files[start:], rules)


def read_all(todo: Sequence[Batch], rules: Rules, folder: Path, workers: Workers) -> None:
    """Read the batches that are not there yet.

    Raises:
        BadInput: an input cannot be read, or holds a bad record and `rules.skip` is not set.
    """
    left = [batch for batch in todo if not (folder / f"{batch.key}.json").exists()]
    total, missing = (sum(file.bytes for batch in some for file in batch.files) for some in (todo, left))
    tasks = (Task(batch.files[0].url, (batch, rules, folder)) for batch in left)
    with Progress("read", total, Done(total - missing)) as progress:
        workers.run(read, tasks, folder, progress)


def read(batch: Batch, rules: Rules, folder: Path, tick: Tick) -> None:
    """Read one batch into its three files.

    Args:
        batch: what to read.
        rules: how.
        folder: the work folder.
        tick: is told the bytes of the inputs that were read, and the documents, as it goes.

    Raises:
        BadInput: as `read_all`.
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
    """What `read` wrote last: `files`, `frames` as [bucket, offset, bytes], `bad`, `dropped`, `characters`."""
    return read_json(folder / f"{batch.key}.json")


def rows(batch: Batch, folder: Path) -> Iterator[JsonDict]:
    """The entries of a batch, without their texts, in their order."""
    return (row for _, row in json_lines.read(folder / f"{batch.key}.rows.zst"))


def documents(key: str, folder: Path, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Document]]:
    """The documents in frames of a batch, each with its entry's number.

    Args:
        key: the batch's.
        folder: the work folder.
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
    """Gathers documents by bucket and writes them as frames."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        # Not lists of lines: small pieces among those of the XML's trees take ten times their size of memory.
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
        """Take an entry; returns its row."""
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
        """Write what is gathered."""
        for bucket, lines in sorted(self._buffers.items()):
            frame = self._compressor.compress(lines)
            self.places.append((bucket, self._file.tell(), len(frame)))
            self._file.write(frame)
        self._buffers.clear()
        self._buffered_bytes = 0


def _cleaned(document: Document, characters: Counter[str]) -> Document | Dropped:
    """The document with its characters as they are read; `characters` counts by the rules that change them."""
    text, used = cleaned(document.text)
    if not used:
        return document
    characters.update(used)
    if not text:
        return Dropped("without text", document.id, document.version)
    return replace(document, text=text)


def _entries(source: Source, file: Input, rules: Rules, tick: Tick, state: _FileState) -> Iterator[Entry]:
    """A file's entries; what cannot be read stops the build, or comes as one more `Bad`."""
    try:
        with inputs.reading(file, tick) as stream:
            try:
                for entry in source.read(file, stream):
                    if isinstance(entry, Bad) and not rules.skip:
                        raise BadInput(
                            f"{file.url}, {entry.place}: {entry.problem}\n"
                            "mend it, or leave out what cannot be read with --on-error skip"
                        )
                    if isinstance(entry, Bad):
                        state.bad_left -= 1
                        if state.bad_left < 0:
                            raise BadInput(f"more than {BAD_RECORDS:,} records, of it and files read with it, are bad")
                    yield entry
            except BadInput as error:
                if not rules.skip:
                    raise
                yield Bad("from there on", str(error))
            state.sha256 = stream.sha256()
        if file.bytes == 0 and state.entries == 0:
            raise BadInput(f"{file.url} is empty; remove it, or leave it out with --on-error skip")
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

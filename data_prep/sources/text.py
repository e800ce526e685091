"""Read the user's own text: JSON lines, Parquet, or plain text files, which can be cut into several documents.

JSON lines and Parquet hold one document per line or row: its text and, optionally, its id, date, licence and PubMed
number. A document without an id gets one from its file and line, `notes/a.jsonl:17`. An id `pmid:17`, the form that
PubMed's documents have in a corpus, contains a PubMed number; an id that is a bare number does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from data_prep.common.bounds import PARQUET_BATCH_BYTES, PARQUET_BYTES, RECORD_BYTES, check_bytes
from data_prep.common.command_line import Allowed
from data_prep.common.dates import parse_date
from data_prep.common.errors import BadInput
from data_prep.common.limits import Whole
from data_prep.common.pmid import parse_pmid, pmid_of_id
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.running import memory
from data_prep.sources.document import Bad, Document, Dropped, Entry, switch

if TYPE_CHECKING:
    from pyarrow import RecordBatch

LINES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".jsonl.xz")
PLAIN = (".txt", ".txt.zst", ".txt.gz", ".txt.xz")
PARQUET = (".parquet",)
ROWS = 16  # rows of a Parquet file that are read at a time, because the sizes in its metadata may be wrong
READ_BYTES = 1 << 20  # read buffer of a Parquet file
DOCUMENT_CHARACTERS = Whole(1, RECORD_BYTES)
LINE_END = re.compile(r"\n")
EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Text:
    """Files of any subject.

    Attributes:
        text_key: key or column of the text; a dot leads into an object, as in `meta.body`.
        id_key: key of the id, a string or a number; ids must be unique among all inputs.
        date_key: key of the date, `2021`, `2021-03` or `2021-03-09`; a time after the day is ignored.
        license_key: key of a licence code such as `CC BY`.
        pmid_key: key of the PubMed number, which serves to hold out documents and to match articles with abstracts.
        set_name: value of the documents' `source`.
        document_characters: cut plain text between paragraphs into documents of at least this many characters; None
            makes one document per file.
    """

    text_key: str = switch("text", "key or column of the text (default text)")
    id_key: str = switch("id", "key or column of the id (default id)")
    date_key: str = switch("date", "key or column of the date (default date)")
    license_key: str = switch("license", "key or column of the licence (default license)")
    pmid_key: str = switch("pmid", "key or column of the PubMed number (default pmid)")
    set_name: str = switch("text", "name of the documents' source (default text)")
    document_characters: int | None = switch(
        None,
        "cut plain text between paragraphs into documents of about this many characters (default: one per file)",
        Allowed(DOCUMENT_CHARACTERS),
    )
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = False

    @property
    def sets(self) -> tuple[str, ...]:
        """The only possible value of the documents' `source`, the given name."""
        return (self.set_name,)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files of all formats, in folders at any depth."""
        return inputs.find(patterns, (*LINES, *PARQUET, *PLAIN))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the documents of one file."""
        if file.name.endswith(PLAIN):
            yield from self._plain(file, stream)
        elif file.name.endswith(PARQUET):
            keys = (self.text_key, self.id_key, self.date_key, self.license_key, self.pmid_key)
            for number, row in enumerate(parquet_rows(file, stream, keys), start=1):
                place = f"row {number}"
                yield Bad(place, row) if isinstance(row, str) else self._entry(row, place, f"{file.name}:{number}")
        else:
            number = 0
            for line in json_lines.lines(stream, file.url):
                number += 1
                if json_lines.is_blank(line):
                    continue
                record = json_lines.parse(line)
                del line
                place = f"line {number}"
                yield (
                    Bad(place, record)
                    if isinstance(record, str)
                    else self._entry(record, place, f"{file.name}:{number}")
                )

    def _plain(self, file: Input, stream: Stream) -> Iterator[Entry]:
        content = bytearray()
        for block in json_lines.blocks(stream, file.url):
            content += block
            check_bytes(len(content), RECORD_BYTES, file.url, "cut it into several documents")
        try:
            text = tidy(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield Bad(f"byte {error.start}", f"not UTF-8 ({error.reason})")
            return
        if not text:
            yield Dropped("without text")
        elif self.document_characters is None:
            yield Document(file.name, text, self.set_name, None, None)
        else:
            for number, part in enumerate(cut(text, self.document_characters), start=1):
                yield Document(f"{file.name}:{number}", part, self.set_name, None, None)

    def _entry(self, record: dict[str, Any], place: str, fallback_id: str) -> Entry:
        text = _value(record, self.text_key)
        if not isinstance(text, str):
            return Bad(place, f"the key {self.text_key!r} {_is(text)}, not a text; name another key with --text-key")
        if len(text) > RECORD_BYTES:
            return Bad(place, f"a text of more than {RECORD_BYTES:,} characters; cut it into documents")
        if not (text := tidy(text)):
            return Dropped("without text")
        own_id, license = _value(record, self.id_key), _value(record, self.license_key)
        own_date, own_pmid = _value(record, self.date_key), _value(record, self.pmid_key)
        if isinstance(own_id, bool) or not isinstance(own_id, (str, int, type(None))) or own_id == "":
            return Bad(
                place, f"the key {self.id_key!r} {_is(own_id)}, not a text or number; name another with --id-key"
            )
        date = None if own_date is None else parse_date(str(own_date))
        if date is None and own_date is not None:
            return Bad(place, f"the key {self.date_key!r} {_is(own_date)}, not a date such as 2021-03-09")
        if not isinstance(license, (str, type(None))):
            return Bad(place, f"the key {self.license_key!r} {_is(license)}, not a text")
        id, pmid = fallback_id if own_id is None else str(own_id), parse_pmid(own_pmid)
        if pmid is None and own_pmid is not None:
            return Bad(place, f"the key {self.pmid_key!r} {_is(own_pmid)}, not a PubMed number")
        if pmid is not None and pmid_of_id(id) not in (None, pmid):
            return Bad(place, f"its id is {id}, but the key {self.pmid_key!r} {_is(own_pmid)}")
        return Document(id, text, self.set_name, license, date, pmid)


def tidy(text: str) -> str:
    """Make all line ends line feeds, and remove white space at the ends of the text."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def cut(text: str, characters: int) -> Iterator[str]:
    """Cut a text between paragraphs into the shortest parts that have at least `characters` characters.

    Empty lines separate paragraphs; in a text without empty lines, each line is a paragraph.
    """
    start, gaps = 0, EMPTY_LINES if EMPTY_LINES.search(text) else LINE_END
    for gap in gaps.finditer(text):
        if gap.start() - start >= characters:
            yield text[start : gap.start()]
            start = gap.end()
    yield text[start:]


def _value(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is(value: Any) -> str:
    if isinstance(value, (list, dict)):  # it may be nested too deep for `str`
        return f"is {'a list' if isinstance(value, list) else 'an object'}"
    return "is missing" if value is None else f"is {str(value)[:40]!r}"


def parquet_rows(file: Input, stream: Stream, keys: Sequence[str] = ()) -> Iterator[dict[str, Any] | str]:
    """Read the rows of a Parquet file; a bad row gives an error message instead.

    The file is hashed first, because a Parquet file is read from its end.

    Args:
        file: file to read.
        stream: the same file, opened.
        keys: keys of the columns to read, or of values within columns; empty for all columns.

    Raises:
        BadInput: the file is damaged, is not a Parquet file, or takes too much memory.
    """
    from pyarrow import ArrowException

    stream.sha256()
    row = 0
    with inputs.opened(file) as again:
        batches = _batches(cast(IO[bytes], again), keys)
        while True:
            try:
                with memory.at_most(PARQUET_BYTES):
                    rows = next(batches, None)
            except MemoryError:
                raise BadInput(
                    f"{file.url}, from row {row + 1:,} on: reading takes more than {PARQUET_BYTES:,} bytes of memory; "
                    "write it with smaller pages and row groups, for example with pyarrow's write_batch_size=16"
                ) from None
            except (OSError, ValueError, ArrowException) as error:
                raise BadInput(
                    f"{file.url} is damaged, or not a Parquet file, from row {row + 1:,} on ({error})"
                ) from None
            if rows is None:
                return
            yield from rows
            row += len(rows)


def _batches(file: IO[bytes], keys: Sequence[str]) -> Iterator[list[dict[str, Any] | str]]:
    """Read the rows of a Parquet file in batches of some megabytes."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the other pools reserve a gigabyte at once
    # With a buffer, one page is read at a time; without it, the whole column of a row group is read.
    parquet = pyarrow.parquet.ParquetFile(file, buffer_size=READ_BYTES)
    columns = [name for name in parquet.schema_arrow.names if any(f"{key}.".startswith(f"{name}.") for key in keys)]
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        row_bytes = group.total_byte_size // max(1, group.num_rows) + 1
        at_once = max(1, min(ROWS, PARQUET_BATCH_BYTES // row_bytes))
        for batch in parquet.iter_batches(at_once, [number], columns or None, use_threads=False):
            yield _values(cast("RecordBatch", batch))


def _values(batch: RecordBatch) -> list[dict[str, Any] | str]:
    """The rows of a batch, or an error message for a row with a value that Python lacks, such as the year 300,000."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [f"a value that cannot be read ({error})"]
    return [row for number in range(batch.num_rows) for row in _values(batch.slice(number, 1))]

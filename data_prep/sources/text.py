"""Text of one's own: JSON lines, Parquet, or plain text, one file of which is one document.

JSON lines and Parquet hold one document a line or row: its text, and where there are such keys its id, date, licence
and PubMed number. A document without an id is called by its file and line, `notes/a.jsonl:17`. An id `pmid:17`, as
PubMed's documents have in a corpus, says a PubMed number; an id that is a bare number says none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from data_prep.common.dates import parse_date
from data_prep.common.errors import BadInput
from data_prep.common.pmid import parse_pmid, pmid_of_id
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.sources.document import Bad, Document, Dropped, Entry, switch

if TYPE_CHECKING:
    from pyarrow import RecordBatch

LINES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".jsonl.xz")
PLAIN = (".txt", ".txt.zst", ".txt.gz", ".txt.xz")
PARQUET = (".parquet",)
ROWS = 256  # of a Parquet file at a time


@dataclass(frozen=True)
class Text:
    """Files of any subject.

    Attributes:
        text_key: key or column of the text; a dot leads into an object, as in `meta.body`.
        id_key: of an id, a string or a number; ids must be unique among all inputs.
        date_key: of a date `2021`, `2021-03` or `2021-03-09`; of a time the day is taken.
        license_key: of a licence code such as `CC BY`.
        pmid_key: of the PubMed number, by which documents are held out and articles matched with their abstracts.
        set_name: what documents' `source` says.
    """

    text_key: str = switch("text", "key or column (default text)")
    id_key: str = switch("id", "key or column (default id)")
    date_key: str = switch("date", "key or column (default date)")
    license_key: str = switch("license", "key or column (default license)")
    pmid_key: str = switch("pmid", "key or column (default pmid)")
    set_name: str = switch("text", "what the documents' source is called (default text)")
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = False

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files of the formats above, in folders at any depth."""
        return inputs.find(patterns, (*LINES, *PARQUET, *PLAIN))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The file's documents."""
        if file.name.endswith(PLAIN):
            yield self._plain(file, stream)
        elif file.name.endswith(PARQUET):
            for number, row in enumerate(_rows(file, stream), start=1):
                yield self._entry(row, f"row {number}", f"{file.name}:{number}")
        else:
            number = 0
            for line in json_lines.lines(stream, file.url):
                number += 1  # noqa: SIM113 (enumerate would hold the line)
                record = json_lines.parse(line)
                del line
                place = f"line {number}"
                yield (
                    Bad(place, record)
                    if isinstance(record, str)
                    else self._entry(record, place, f"{file.name}:{number}")
                )

    def _plain(self, file: Input, stream: Stream) -> Entry:
        content = bytearray()
        for block in json_lines.blocks(stream, file.url):
            content += block
            if len(content) > json_lines.LINE_BYTES:
                raise BadInput(f"{file.url} has more than {json_lines.LINE_BYTES:,} bytes; cut it into documents")
        try:
            text = tidy(content.decode())
        except UnicodeDecodeError as error:
            return Bad(f"byte {error.start}", f"not UTF-8 ({error.reason})")
        return Document(file.name, text, self.set_name, None, None) if text else Dropped("without text")

    def _entry(self, record: dict[str, Any], place: str, fallback_id: str) -> Entry:
        text = _value(record, self.text_key)
        if not isinstance(text, str):
            return Bad(place, f"the key {self.text_key!r} {_is(text)}, not a text; --text-key names another")
        if not (text := tidy(text)):
            return Dropped("without text")
        own_id, license = _value(record, self.id_key), _value(record, self.license_key)
        own_date, own_pmid = _value(record, self.date_key), _value(record, self.pmid_key)
        if isinstance(own_id, bool) or not isinstance(own_id, (str, int, type(None))) or own_id == "":
            return Bad(place, f"the key {self.id_key!r} {_is(own_id)}, not a text or a number; --id-key names another")
        date = None if own_date is None else parse_date(str(own_date))
        if date is None and own_date is not None:
            return Bad(place, f"the key {self.date_key!r} {_is(own_date)}, not a date such as 2021-03-09")
        if not isinstance(license, (str, type(None))):
            return Bad(place, f"the key {self.license_key!r} {_is(license)}, not a text")
        id, pmid = fallback_id if own_id is None else str(own_id), parse_pmid(own_pmid)
        if pmid is None and own_pmid is not None:
            return Bad(place, f"the key {self.pmid_key!r} {_is(own_pmid)}, not a PubMed number")
        if pmid is not None and pmid_of_id(id) not in (None, pmid):
            return Bad(place, f"its id is {id}, and the key {self.pmid_key!r} {_is(own_pmid)}")
        return Document(id, text, self.set_name, license, date, pmid)


def tidy(text: str) -> str:
    """Line ends as line feeds, no white space at the ends; else as it is."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _value(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is(value: Any) -> str:
    return "is missing" if value is None else f"is {str(value)[:40]!r}"


def _rows(file: Input, stream: Stream) -> Iterator[dict[str, Any]]:
    """A Parquet file is read from its end, so its hash is taken first."""
    import pyarrow.parquet
    from pyarrow import ArrowException

    stream.sha256()
    with inputs.opened(file) as again:
        try:
            for batch in pyarrow.parquet.ParquetFile(cast(IO[bytes], again)).iter_batches(ROWS):
                yield from cast("RecordBatch", batch).to_pylist()
        except (ArrowException, UnicodeDecodeError) as error:
            raise BadInput(f"{file.url} is damaged, or not a Parquet file ({error})") from None

"""Read the Pile's two PubMed sets from its files `00.jsonl.zst` … `29`, `val`, `test`, or from copies of them.

Texts are not changed. The records have no ids, so the id of a document is made from its file and line,
`pile:07:123456`.

If the Pile's val or test files are among the inputs, they become the val split and the other files train. Results can
then be compared with other models trained on the Pile, none of which has seen these files. A document's split still
follows from its id alone, because the id contains the file. Otherwise a hash of the id decides, as for every source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from data_prep.common.errors import BadInput
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.sources.document import ABSTRACTS, ARTICLES, Bad, Document, Dropped, Entry
from data_prep.sources.text import LINES

SETS = (ABSTRACTS, ARTICLES)
HELD_OUT = ("val", "test")
# A line is parsed only if it contains the name of a wanted set, or a JSON escape for a character that occurs in these
# names or in the key. No other line can be wanted; JSON allows such escapes, although no known encoder writes them.
NAMES = tuple(name.encode() for name in SETS)
KEY = b'"pile_set_name"'
ESCAPE = re.compile(rb"\\u00[2-7]")


@dataclass(frozen=True)
class Pile:
    """Files of the Pile."""

    newest_wins: ClassVar[bool] = False
    needs_input: ClassVar[bool] = True

    @property
    def sets(self) -> tuple[str, ...]:
        """The possible values of the documents' `source`."""
        return SETS

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files; they have a split if val or test is among them."""
        files = inputs.find(patterns, LINES)
        stems: dict[str, Input] = {}
        for file in files:
            stem = _stem(file)
            if stem in stems:
                raise BadInput(f"{stems[stem].url} and {file.url} both have the name {stem}; give one of them")
            stems[stem] = file
        if not stems.keys() & set(HELD_OUT):
            return files
        return [replace(file, split="val" if _stem(file) in HELD_OUT else "train") for file in files]

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the documents of the two sets; lines of other sets are not parsed."""
        stem, other = _stem(file), Dropped("of other sets")
        for number, line in enumerate(json_lines.lines(stream, file.url), start=1):
            if not line:  # a small compressed file can hold very many empty lines
                continue
            if KEY in line and not any(name in line for name in NAMES) and not ESCAPE.search(line):
                yield other
                continue
            if json_lines.is_blank(line):
                continue
            record = json_lines.parse(line)
            if isinstance(record, str):
                yield Bad(f"line {number}", record)
                continue
            text, meta = record.get("text"), record.get("meta")
            set_name = meta.get("pile_set_name") if isinstance(meta, dict) else None
            if not isinstance(set_name, str):
                yield Bad(f"line {number}", "no text at meta.pile_set_name; --source text reads other JSON lines")
            elif set_name not in SETS:
                yield other
            elif not isinstance(text, str):
                yield Bad(f"line {number}", "the key 'text' is missing or not a text")
            elif not text.strip():
                yield Dropped("without text")
            else:
                yield Document(f"pile:{stem}:{number}", text, set_name, None, None)


def _stem(file: Input) -> str:
    return file.name.rpartition("/")[2].partition(".jsonl")[0]

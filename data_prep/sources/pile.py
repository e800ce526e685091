"""The Pile's two PubMed sets, from its own files `00.jsonl.zst` … `29`, `val`, `test`, or copies of them.

Texts stay as they are there. The records have no ids, so a document is called by its file and line, `pile:07:123456`.

Where the Pile's own val or test files are among the inputs, they are the val split and the other files train: results
then compare with other models of the Pile, none of which has seen them. The rule that a document's split follows from
its id alone holds: the file is a part of the id. Without them the id's hash decides, as for every source.
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
# A line is parsed if it has a wanted set's name in it, or an escape for a character that such names or the key are made
# of: JSON may spell any of them so, though no encoder does. No other line can be wanted.
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
        """What its documents' `source` may be."""
        return SETS

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files, with their splits where val or test is among them."""
        files = inputs.find(patterns, LINES)
        stems: dict[str, Input] = {}
        for file in files:
            stem = _stem(file)
            if stem in stems:
                raise BadInput(f"{stems[stem].url} and {file.url} are both called {stem}; give one of them")
            stems[stem] = file
        if not stems.keys() & set(HELD_OUT):
            return files
        return [replace(file, split="val" if _stem(file) in HELD_OUT else "train") for file in files]

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The documents of the two sets; lines of other sets are not parsed."""
        stem, other = _stem(file), Dropped("of other sets")
        for number, line in enumerate(json_lines.lines(stream, file.url), start=1):
            if not line:  # of which a small packed file can hold many
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

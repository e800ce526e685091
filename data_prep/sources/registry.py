"""The sources by their names for `--source`."""

from __future__ import annotations

from typing import Any

from data_prep.sources.medline import Medline
from data_prep.sources.pile import Pile
from data_prep.sources.pmc import Pmc
from data_prep.sources.sample import Sample
from data_prep.sources.text import Text

SOURCES: dict[str, type[Any]] = {"sample": Sample, "medline": Medline, "pmc": Pmc, "pile": Pile, "text": Text}

"""Parse PubMed numbers (PMIDs), in one way for sources, `--exclude-pmids`, question sets and the leak report."""

from __future__ import annotations

import re

DIGITS = re.compile(r"[0-9]{1,8}")  # NLM's definition of a PMID; `\d` would also match digits of other scripts
ID = re.compile(rf"pmid:({DIGITS.pattern})", re.IGNORECASE)


def parse_pmid(value: object) -> int | None:
    """Parse a PubMed number from a number or text of one to eight digits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if DIGITS.fullmatch(str(value)) else None


def pmid_of_id(id_: str) -> int | None:
    """The PubMed number in a document id `pmid:N`; None for any other id, also for a bare number."""
    match = ID.fullmatch(id_)
    return int(match[1]) if match else None

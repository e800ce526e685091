"""PubMed numbers: what counts as one, for sources, `--exclude-pmids`, question sets and the leak report alike."""

from __future__ import annotations

import re

DIGITS = re.compile(r"[0-9]{1,8}")  # what NLM says a PMID is; `\d` and `isdecimal` would take other scripts' digits
ID = re.compile(rf"pmid:({DIGITS.pattern})", re.IGNORECASE)


def parse_pmid(value: object) -> int | None:
    """The PubMed number that a number or a text of one to eight digits is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if DIGITS.fullmatch(str(value)) else None


def pmid_of_id(id_: str) -> int | None:
    """The PubMed number that a document's id `pmid:N` names; None for any other id, a bare number among them."""
    match = ID.fullmatch(id_)
    return int(match[1]) if match else None

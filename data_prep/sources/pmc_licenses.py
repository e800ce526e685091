"""What may be done with an article, and since when it is there: licences in PMC's groups, retractions, dates."""

from __future__ import annotations

import re

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.dates import iso_date
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import OneOf
from data_prep.sources.document import fold

ALI = "{http://www.niso.org/schemas/ali/1.0/}license_ref"
NOTICES = ("license", "copyright-statement", ALI)  # elements
HREF = "{http://www.w3.org/1999/xlink}href"
LICENSE_URL = re.compile(
    r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)|publicdomain/(zero|mark))(?:/(\d\.\d))?", re.IGNORECASE
)
VERSION = re.compile(r" \d.*")
LICENSE_WORDS = re.compile(
    r"Creative Commons Attribution([ -]*Non-?Commercial)?(?:[ -]*(No-?Deriv)\w*|[ -]*(Share-?Alike))?", re.IGNORECASE
)

# PMC's own groups. `all` adds author manuscripts (`TDM`, for text mining) and articles without a known licence.
COMMERCIAL = ("CC0", "CC PDM", "CC BY", "CC BY-SA", "CC BY-ND")
NONCOMMERCIAL = ("CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
TIERS = {"commercial": COMMERCIAL, "noncommercial": COMMERCIAL + NONCOMMERCIAL, "all": None}
TIER = OneOf(tuple(TIERS))


def in_tier(license: str | None, tier: str) -> bool:
    """Whether a licence such as `CC BY 4.0` is one of a tier's; None is unknown.

    Args:
        license: the licence.
        tier: a key of `TIERS`.
    """
    allowed = TIERS[tier]
    return allowed is None or VERSION.sub("", license or "") in allowed


def license_and_retraction(metadata: JsonDict, name: str) -> tuple[str | None, bool]:
    """What an article's metadata in the bucket say: `license_code`, and `is_retracted`; None, False where they do not.

    Args:
        metadata: metadata of the article.
        name: what messages call it.

    Raises:
        BadInput: `license_code` is no text, or `is_retracted` is neither true nor false.
    """
    license, is_retracted = metadata.get("license_code"), metadata.get("is_retracted")
    if license is not None and not isinstance(license, str):
        raise BadInput(f"{name}: its metadata have the license_code {license!r}, not a text")
    if is_retracted is not None and not isinstance(is_retracted, bool):
        raise BadInput(f"{name}: its metadata have is_retracted {is_retracted!r}, not true or false")
    return license, bool(is_retracted)


def license_of(meta: etree._Element) -> str | None:
    """`CC BY 4.0` and its like from a link, `CC BY` from words without one, None where neither is there."""
    notices = list(meta.iter(*NOTICES))
    links = [element.get(HREF, "") for notice in notices for element in notice.iter("*")]
    words = fold(" ".join("".join(notice.itertext()) for notice in notices))
    if url := LICENSE_URL.search(" ".join([*links, words])):
        terms, public, version = url.groups()
        name = f"CC {terms.upper()}" if terms else "CC0" if public.lower() == "zero" else "CC PDM"
        return f"{name} {version}" if version else name
    if match := LICENSE_WORDS.search(words):
        return "CC BY" + "".join(code for code, term in zip(("-NC", "-ND", "-SA"), match.groups(), strict=True) if term)
    return None


def date_of(meta: etree._Element) -> str | None:
    """The earliest day that the article itself appeared; `2011-08-02` goes before a bare `2011` of an issue."""
    dates = [
        iso_date(date.findtext("year"), date.findtext("month"), date.findtext("day"))
        for date in meta.iterchildren("pub-date")
        if (date.get("pub-type") or date.get("date-type")) in ("epub", "ppub", "epub-ppub", "collection", "pub")
    ]
    return min(filter(None, dates), key=lambda date: date + "~", default=None)

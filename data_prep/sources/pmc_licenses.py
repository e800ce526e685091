"""Find the licence of a PMC article, whether it is retracted, and its date."""

from __future__ import annotations

import re

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.dates import iso_date
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import OneOf
from data_prep.sources.document import fold

ALI = "{http://www.niso.org/schemas/ali/1.0/}license_ref"
NOTICES = ("license", "copyright-statement", ALI)  # elements with licence notices
HREF = "{http://www.w3.org/1999/xlink}href"
LICENSE_URL = re.compile(
    r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)|publicdomain/(zero|mark))(?:/(\d\.\d))?", re.IGNORECASE
)
VERSION = re.compile(r" \d.*")
LICENSE_WORDS = re.compile(
    r"Creative Commons Attribution([ -]*Non-?Commercial)?(?:[ -]*(No-?Deriv)\w*|[ -]*(Share-?Alike))?", re.IGNORECASE
)

# PMC's groups of licences. `all` adds author manuscripts (`TDM`, for text mining) and articles of unknown licence.
COMMERCIAL = ("CC0", "CC PDM", "CC BY", "CC BY-SA", "CC BY-ND")
NONCOMMERCIAL = ("CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
TIERS = {"commercial": COMMERCIAL, "noncommercial": COMMERCIAL + NONCOMMERCIAL, "all": None}
TIER = OneOf(tuple(TIERS))


def in_tier(license: str | None, tier: str) -> bool:
    """Whether a licence such as `CC BY 4.0` belongs to a tier.

    Args:
        license: licence; None if unknown.
        tier: a key of `TIERS`.
    """
    allowed = TIERS[tier]
    return allowed is None or VERSION.sub("", license or "") in allowed


def license_and_retraction(metadata: JsonDict, name: str) -> tuple[str | None, bool]:
    """Read `license_code` and `is_retracted` from an article's metadata in the bucket; None and False if missing.

    Args:
        metadata: metadata of the article.
        name: name of the file, for messages.

    Raises:
        BadInput: `license_code` is not a text, or `is_retracted` is neither true nor false.
    """
    license, is_retracted = metadata.get("license_code"), metadata.get("is_retracted")
    if license is not None and not isinstance(license, str):
        raise BadInput(f"{name}: its metadata have the license_code {license!r}, not a text")
    if is_retracted is not None and not isinstance(is_retracted, bool):
        raise BadInput(f"{name}: its metadata have is_retracted {is_retracted!r}, not true or false")
    return license, bool(is_retracted)


def license_of(meta: etree._Element) -> str | None:
    """Find the licence in the XML: a code such as `CC BY 4.0` from a link, else `CC BY` from words, else None."""
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
    """The earliest date on which the article appeared; `2011-08-02` is preferred to an issue's bare year `2011`."""
    dates = [
        iso_date(date.findtext("year"), date.findtext("month"), date.findtext("day"))
        for date in meta.iterchildren("pub-date")
        if (date.get("pub-type") or date.get("date-type")) in ("epub", "ppub", "epub-ppub", "collection", "pub")
    ]
    return min(filter(None, dates), key=lambda date: date + "~", default=None)

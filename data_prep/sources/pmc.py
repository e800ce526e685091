"""PubMed Central articles: JATS XML, as files, in tar archives, or laid out as in the public bucket `pmc-oa-opendata`.

There an article is `PMC<id>.<version>/PMC<id>.<version>.xml`, and `metadata/PMC<id>.<version>.json` says its licence
and whether it was retracted, which then goes before what the XML says. In a tar file, as acquire.py packs them, the
metadata stand right before their article. Of the versions of an article the last counts.

Text: title, abstracts, body, appendices, and the captions of figures and tables that stand apart, in this order; every
title, paragraph, list item and caption is a line of its own with its white space folded, and an empty line lies
between them. A figure, table, note or box inside a paragraph follows it, so that the sentence around it stays whole; a
label (`2.1`, `Figure 1`) leads the line after it. Left out are the grids of tables, formulas, references, and the
marks that cite them (`[1]-[3]`, `(4, 5)`, a raised 6) with their brackets; `(Orr, 2000)` is words and stays.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, ClassVar

import orjson
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.bounds import METADATA_BYTES, TAR_HEADER_BYTES, check_bytes
from data_prep.common.command_line import Allowed
from data_prep.common.dates import iso_date
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import OneOf
from data_prep.common.location import without_query
from data_prep.common.pmid import parse_pmid
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.sources.document import ARTICLES, Bad, Document, Dropped, Entry, fold, switch
from data_prep.sources.xml_size import SizedXml

# fmt: off
# Elements that start a line. All others are part of the line around them, so an unknown one loses no text.
BLOCKS = {
    "abstract", "app", "app-group", "article-title", "attrib", "body", "caption", "code", "def", "def-item", "def-list",
    "disp-quote", "list", "list-item", "media", "p", "preformat", "sec", "sig-block", "speech", "statement", "subtitle",
    "term", "title", "verse-group", "verse-line",
}
# Elements that wait until the line around them has ended.
FLOATS = {
    "boxed-text", "fig", "fig-group", "fn", "fn-group", "supplementary-material", "table-wrap", "table-wrap-group",
}
DROPPED = {
    "alt-text", "array", "chem-struct", "disp-formula", "disp-formula-group", "graphic", "inline-formula",
    "inline-graphic", "long-desc", "object-id", "permissions", "ref-list", "sec-meta", "table", "table-wrap-foot",
    "tex-math", "{http://www.w3.org/1998/Math/MathML}math",
}
# fmt: on
PARTS = (
    "front/article-meta/title-group/article-title",
    "front/article-meta/abstract",
    "body",
    "back/app-group",
    "back/app",
    "floats-group",
)
BOILERPLATE = "Click here for additional data file."

# In the place of a citation mark until the brackets and commas around it are known; XML cannot contain this character.
MARK = "\0"
MARKS = rf"{MARK}(?:[\s,;–—-]*{MARK})*"
CITATIONS = re.compile(rf"\s*(?:\[\s*{MARKS}\s*\]|\(\s*{MARKS}\s*\)|{MARKS})")
NUMBERS = re.compile(r"[\W\d_]*[a-z]?[\W\d_]*")  # `[1]`, `2–4`, `7a`, `*`; an author's name does not match

ALI = "{http://www.niso.org/schemas/ali/1.0/}license_ref"
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
TARS = (".tar", ".tar.gz", ".tar.xz", ".tar.zst")
XML = (".nxml", ".xml")
BUCKET = re.compile(r"(.*?)([^/]+)/\2\.xml")
METADATA = re.compile(r"(^|/)metadata/[^/]+\.json$")


TIER = OneOf(tuple(TIERS))


@dataclass(frozen=True)
class Pmc:
    """Articles.

    Attributes:
        licenses: a key of `TIERS`: `commercial` use allowed; `noncommercial` beside them; `all`, also the unknown.
    """

    licenses: str = switch(
        "all", f"of articles by their licences keep: {', '.join(TIERS)} (default all)", Allowed(TIER)
    )
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = True

    def __post_init__(self) -> None:
        TIER.check("--licenses", self.licenses)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files, by name."""
        return inputs.find(patterns, (*XML, *TARS))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The articles of one file, one at a time in memory.

        Raises:
            BadInput: it is not XML or tar, or cut off, or its one article is not as `read_article` needs it.
        """
        if not file.name.endswith(TARS):
            yield self._allowed(read_article(stream, file.url, _metadata(file)))
            return
        content = _Unpacked(stream, file.url)
        try:
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_member_type(content)) as archive:
                last_metadata: dict[str, bytes] = {}
                for member in archive:
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (it keeps all it has seen)
                    if not member.isfile() or not member.name.endswith((*XML, ".json")):
                        continue
                    extracted = archive.extractfile(member)
                    assert extracted is not None
                    if not member.name.endswith(XML):
                        is_metadata = METADATA.search(member.name)
                        if is_metadata:
                            check_bytes(member.size, METADATA_BYTES, f"{file.url}:{member.name}", "download it again")
                        last_metadata = {member.name: extracted.read()} if is_metadata else {}
                        continue
                    name = f"{file.url}:{member.name}"
                    try:
                        metadata = _parsed(last_metadata.get(_metadata_name(member.name) or ""), name)
                        yield self._allowed(read_article(extracted, name, metadata))
                    except BadInput as error:
                        yield Bad(member.name, str(error))
        except tarfile.TarError as error:
            raise BadInput(f"{file.url} is damaged, or not a tar file ({error}); download it again") from None
        if not content.ended():
            raise BadInput(f"{file.url} is cut off; download it again")

    def _allowed(self, entry: Document | Dropped) -> Entry:
        if isinstance(entry, Dropped) or in_tier(entry.license, self.licenses):
            return entry
        return Dropped("of other licences", entry.id)


def in_tier(license: str | None, tier: str) -> bool:
    """Whether a licence such as `CC BY 4.0` is one of a tier's; None is unknown.

    Args:
        license: the licence.
        tier: a key of `TIERS`.
    """
    allowed = TIERS[tier]
    return allowed is None or VERSION.sub("", license or "") in allowed


class _Unpacked(io.RawIOBase):
    """The content of an archive, and its end: tarfile takes one that was cut between two files for a whole one."""

    END = bytes(2 * tarfile.BLOCKSIZE)

    def __init__(self, stream: Stream, name: str):
        self._blocks = json_lines.blocks(stream, name)
        self._name = name
        self._rest = self._tail = b""
        self._read_bytes = 0
        self._limit_bytes: int | None = None

    @contextmanager
    def reading_header(self) -> Iterator[None]:
        """What is read meanwhile is before a member: tarfile takes names and maps of any length into memory."""
        before = self._limit_bytes
        if before is None:
            self._limit_bytes = self._read_bytes + TAR_HEADER_BYTES
        try:
            yield
        finally:
            self._limit_bytes = before

    def bad_header(self, what: str) -> BadInput:
        """The error of a member of the archive, where it is read now."""
        place = f"{self._name}, byte {self._read_bytes:,} of its content"
        return BadInput(f"{place}: a member whose header {what}; pack it again without it")

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end.

        Raises:
            BadInput: as `json_lines.blocks`; or a header is too large.
        """
        if self._limit_bytes is not None and self._read_bytes > self._limit_bytes:
            raise self.bad_header(f"has more than {TAR_HEADER_BYTES:,} bytes")
        parts = [self._rest]
        missing = size - len(self._rest)
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            missing -= len(block)
        content = b"".join(parts)
        data, self._rest = content[:size], content[size:]
        self._tail = (self._tail + data)[-len(self.END) :]
        self._read_bytes += len(data)
        return data

    def ended(self) -> bool:
        """Whether all of it ends as an archive does."""
        while self.read(1 << 20):
            pass
        return self._tail == self.END


def _member_type(content: _Unpacked) -> type[tarfile.TarInfo]:
    class Member(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:
            with content.reading_header():
                try:
                    return super().fromtarfile(tarfile)
                except (ValueError, OverflowError) as error:  # numbers in a header that are none
                    raise content.bad_header(f"cannot be read ({error})") from None

    return Member


def _metadata(file: Input) -> JsonDict:
    """What the bucket says of an article beside its XML; nothing for other files."""
    if _metadata_name(without_query(file.url)) is None:
        return {}
    name = file.url.changed(lambda path: _metadata_name(path) or path)
    return _parsed(inputs.content(name, METADATA_BYTES), file.url)


def _metadata_name(name: str) -> str | None:
    """Where the metadata of an article of the bucket lie; None for other files."""
    found = BUCKET.fullmatch(name)
    return f"{found[1]}metadata/{found[2]}.json" if found else None


def _parsed(content: bytes | None, name: str) -> JsonDict:
    """The metadata of the article `name`; nothing where there are none."""
    if content is None:
        return {}
    try:
        metadata = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{name}: its metadata are not JSON ({error}); download them again") from None
    if not isinstance(metadata, dict):
        raise BadInput(f"{name}: its metadata are not a JSON object; download them again")
    return metadata


def read_article(stream: Stream | IO[bytes], name: str, metadata: JsonDict | None = None) -> Document | Dropped:
    """The document of one article.

    Args:
        stream: the XML.
        name: what messages call it.
        metadata: `license_code` and `is_retracted` go before what the XML says.

    Raises:
        BadInput: it is not XML, not a JATS article, or has no PMC id; or as `license_and_retraction`.
    """
    metadata = metadata or {}
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    try:
        article = etree.parse(SizedXml(stream, name), parser).getroot()
    except etree.XMLSyntaxError as error:
        raise BadInput(f"{name}, line {error.lineno}: not XML ({error.msg}); download it again") from None
    meta = article.find("front/article-meta")
    if article.tag != "article" or meta is None:
        raise BadInput(f"{name} has the root element <{article.tag}>, not a JATS <article> with <article-meta>")
    found = re.fullmatch("(?:PMC)?([0-9]+)", _id(meta, "pmc", "pmcid"))
    if found is None:
        raise BadInput(f"{name} has no <article-id> with a PMC number")
    pmcid, pmid = f"pmcid:PMC{found.group(1)}", parse_pmid(_id(meta, "pmid"))
    license, is_retracted = license_and_retraction(metadata, name)
    if is_retracted or any(
        related.get("related-article-type") == "retraction-forward" for related in meta.iterfind("related-article")
    ):
        return Dropped("retracted", pmcid)
    lines = [line for part in PARTS for element in article.iterfind(part) for line in _lines(element)]
    if not lines:
        return Dropped("without text", pmcid)
    return Document(pmcid, "\n\n".join(lines), ARTICLES, license or _license(meta), _date(meta), pmid)


def license_and_retraction(metadata: JsonDict, name: str) -> tuple[str | None, bool]:
    """What an article's metadata in the bucket say: `license_code`, and `is_retracted`; None, False where they do not.

    Args:
        metadata: of the article.
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


def _id(meta: etree._Element, *kinds: str) -> str:
    ids = [element.text or "" for element in meta.iterfind("article-id") if element.get("pub-id-type") in kinds]
    return ids[0].strip() if ids else ""


def _lines(block: etree._Element) -> list[str]:
    """The lines of a block in reading order, then those of the floats that stand inside it."""
    lines, floats = [""], []
    _collect(block, lines, floats)
    lines = [text for line in lines if (text := fold(CITATIONS.sub("", line)))]
    for element in floats:
        lines += _lines(element)
    return [line for line in lines if line != BOILERPLATE]


def _collect(element: etree._Element, lines: list[str], floats: list[etree._Element]) -> None:
    """Append the text of an element to the last line; blocks inside it begin new ones."""
    lines[-1] += element.text or ""
    for child in element:
        if child.tag in FLOATS and lines[-1].strip():
            floats.append(child)
        elif child.tag in BLOCKS or child.tag in FLOATS:
            inner, before = _lines(child), child.getprevious()
            if inner and before is not None and before.tag == "label":
                inner[0] = f"{lines.pop()} {inner[0]}"
            lines += [*inner, ""]
        elif child.tag == "xref" and child.get("ref-type") == "bibr" and NUMBERS.fullmatch("".join(child.itertext())):
            lines[-1] += MARK
        elif child.tag == "break":
            lines[-1] += " "
        elif child.tag not in DROPPED:
            _collect(child, lines, floats)
        lines[-1] += child.tail or ""


def _license(meta: etree._Element) -> str | None:
    """`CC BY 4.0` and its like from a link, `CC BY` from words without one, None where neither is there."""
    notices = list(meta.iter("license", "copyright-statement", ALI))
    links = [element.get(HREF, "") for notice in notices for element in notice.iter("*")]
    words = fold(" ".join("".join(notice.itertext()) for notice in notices))
    if url := LICENSE_URL.search(" ".join([*links, words])):
        terms, public, version = url.groups()
        name = f"CC {terms.upper()}" if terms else "CC0" if public.lower() == "zero" else "CC PDM"
        return f"{name} {version}" if version else name
    if found := LICENSE_WORDS.search(words):
        return "CC BY" + "".join(code for code, term in zip(("-NC", "-ND", "-SA"), found.groups(), strict=True) if term)
    return None


def _date(meta: etree._Element) -> str | None:
    """The earliest day that the article itself appeared; `2011-08-02` goes before a bare `2011` of an issue."""
    dates = [
        iso_date(date.findtext("year"), date.findtext("month"), date.findtext("day"))
        for date in meta.iterfind("pub-date")
        if (date.get("pub-type") or date.get("date-type")) in ("epub", "ppub", "epub-ppub", "collection", "pub")
    ]
    return min(filter(None, dates), key=lambda date: date + "~", default=None)

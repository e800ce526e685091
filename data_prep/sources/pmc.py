"""Read PubMed Central articles in JATS XML: from files, tar archives, or folders laid out like PMC's public bucket.

In the bucket `pmc-oa-opendata`, an article is `PMC<id>.<version>/PMC<id>.<version>.xml`. Its metadata in
`metadata/PMC<id>.<version>.json` give its licence and whether it was retracted, and take precedence over the XML. In a
tar file made by acquire.py, the metadata come directly before their article. Of several versions of an article, the
last one is kept.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import orjson

from data_prep.common.bounds import METADATA_BYTES, TAR_HEADER_BYTES, check_bytes
from data_prep.common.command_line import Allowed
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import OneOf
from data_prep.common.location import without_query
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.sources.document import ARTICLES, Bad, Document, Dropped, Entry, switch
from data_prep.sources.pmc_article import read_articles
from data_prep.sources.pmc_licenses import TIER, TIERS, in_tier
from data_prep.sources.pmc_text import BACK

TARS = (".tar", ".tar.gz", ".tar.xz", ".tar.zst")
XML = (".nxml", ".xml")
BUCKET = re.compile(r"(.*?)([^/]+)/\2\.xml")
METADATA = re.compile(r"(^|/)metadata/[^/]+\.json$")
BACK_MATTER = OneOf(tuple(BACK))


@dataclass(frozen=True)
class Pmc:
    """Articles of PubMed Central.

    Attributes:
        licenses: licences to keep, a key of `TIERS`: `commercial` keeps licences that allow commercial use,
            `noncommercial` also those that allow only non-commercial use, `all` also unknown licences.
        back_matter: elements after the body to keep, a key of `BACK`: `text` keeps sections, appendices, notes,
            glossaries and acknowledgements; `all` also footnotes and biographies; `none` keeps nothing after the body.
    """

    licenses: str = switch("all", f"licences of the articles to keep: {', '.join(TIERS)} (default all)", Allowed(TIER))
    back_matter: str = switch(
        "text",
        "parts after the body of an article to keep: none; text (such as appendices and acknowledgements); all (also "
        "footnotes and biographies) (default text)",
        Allowed(BACK_MATTER),
    )
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = True

    def __post_init__(self) -> None:
        TIER.check("--licenses", self.licenses)
        BACK_MATTER.check("--back-matter", self.back_matter)

    @property
    def sets(self) -> tuple[str, ...]:
        """The possible values of the documents' `source`."""
        return (ARTICLES,)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files, sorted by name."""
        return inputs.find(patterns, (*XML, *TARS), beside=(".json",))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the articles of one file, one at a time in memory.

        Raises:
            BadInput: the file is neither XML nor tar, is cut off, or is refused by `read_articles`.
        """
        if not file.name.endswith(TARS):
            yield from self._allowed(read_articles(stream, file.url, self.back_matter, _metadata(file)))
            return
        content = _Unpacked(stream, file.url)
        try:
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_member_type(content)) as archive:
                last_metadata: dict[str, bytes] = {}
                for member in archive:
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (tarfile keeps all members it has read)
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
                        yield from self._allowed(read_articles(extracted, name, self.back_matter, metadata))
                    except BadInput as error:
                        yield Bad(member.name, str(error))
        except tarfile.TarError as error:
            raise BadInput(f"{file.url} is damaged, or not a tar file ({error}); download it again") from None
        if not content.ended():
            raise BadInput(f"{file.url} is cut off; download it again")

    def _allowed(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if isinstance(entry, Document) and not in_tier(entry.license, self.licenses):
                entry = Dropped("of other licences", entry.id)
            yield entry


class _Unpacked(io.RawIOBase):
    """The decompressed content of an archive. It checks the end, because tarfile accepts a cut between two members."""

    END = bytes(2 * tarfile.BLOCKSIZE)

    def __init__(self, stream: Stream, name: str):
        self._blocks = json_lines.blocks(stream, name)
        self._name = name
        self._rest = self._tail = b""
        self._read_bytes = 0
        self._limit_bytes: int | None = None

    @contextmanager
    def reading_header(self) -> Iterator[None]:
        """Limit the bytes of a member's header that are read, because tarfile reads names and maps of any length."""
        before = self._limit_bytes
        if before is None:
            self._limit_bytes = self._read_bytes + TAR_HEADER_BYTES
        try:
            yield
        finally:
            self._limit_bytes = before

    def bad_header(self, what: str) -> BadInput:
        """Make the error for a member with a bad header at the current position."""
        place = f"{self._name}, byte {self._read_bytes:,} of its content"
        return BadInput(f"{place}: a member whose header {what}; pack it again without it")

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, fewer at the end.

        Raises:
            BadInput: as in `json_lines.blocks`; or a header is too large.
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
        """Read the rest, and return whether it ends like a complete archive."""
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
                except (ValueError, OverflowError) as error:  # a field of the header is not a number
                    raise content.bad_header(f"cannot be read ({error})") from None

    return Member


def _metadata(file: Input) -> JsonDict:
    """The metadata of an article in the layout of the bucket; empty for other files."""
    if _metadata_name(without_query(file.url)) is None:
        return {}
    name = file.url.changed(lambda path: _metadata_name(path) or path)
    return _parsed(inputs.content(name, METADATA_BYTES), file.url)


def _metadata_name(name: str) -> str | None:
    """The name of the metadata of an article in the layout of the bucket; None for other files."""
    match = BUCKET.fullmatch(name)
    return f"{match[1]}metadata/{match[2]}.json" if match else None


def _parsed(content: bytes | None, name: str) -> JsonDict:
    """Parse the metadata of the article `name`; empty if there are none."""
    if content is None:
        return {}
    try:
        metadata = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{name}: its metadata are not JSON ({error}); download them again") from None
    if not isinstance(metadata, dict):
        raise BadInput(f"{name}: its metadata are not a JSON object; download them again")
    return metadata

"""Read PubMed citation files, `pubmedYYnNNNN.xml.gz`, of the yearly baseline and of the daily updates.

A document has the same form as in the Pile: title, a line feed, abstract. White space is folded, section labels of
structured abstracts and copyright notices are removed, and markup is reduced to its text (`medline_text`). Articles in
all languages are kept: their `Abstract` is in English, and `OtherAbstract` is read only if a switch says so. Retracted
articles are dropped. A title in brackets is NLM's translation; the brackets are kept, as in the Pile. Records of books
and chapters, which other downloads of PubMed contain, are read in the same way as citations.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from isal import igzip, isal_zlib
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.bounds import MD5_BYTES
from data_prep.common.command_line import Allowed, names
from data_prep.common.dates import iso_date
from data_prep.common.errors import BadInput
from data_prep.common.limits import Text
from data_prep.common.pmid import parse_pmid
from data_prep.files import inputs
from data_prep.files.inputs import Input, Stream
from data_prep.sources.changes import METADATA, listener
from data_prep.sources.document import ABSTRACTS, DELETED, Bad, Document, Dropped, Entry, fold, switch
from data_prep.sources.entities import replace_entities, with_doctype
from data_prep.sources.medline_text import (
    LABELS,
    NOTICES,
    OTHERS,
    PLACEHOLDERS,
    says_nothing,
    text_of,
    without_notice,
)
from data_prep.sources.medline_unread import ROOT, without_unread
from data_prep.sources.xml_size import XmlSize

BLOCK_BYTES = 1 << 18  # XML that is parsed at a time
VERSIONS = re.compile("[1-9][0-9]{0,3}")


class _Kind:
    """The parts of a kind of record that are read, as compiled XPath, which is three times as fast as `find`.

    Args:
        head: path of the element with the PMID.
        article: path of the element with title, abstract and languages.
        date: path of the element whose children are the parts of the date.
        retracted: XPath condition that is true if the article was retracted. A retraction notice on another article is
            an ordinary document.
    """

    def __init__(self, head: str, article: str, date: str, retracted: str):
        self.pmids = etree.XPath(f"{head}/PMID")
        self.languages = etree.XPath(f"{article}/Language/text()")
        self.titles = etree.XPath(f"{article}/ArticleTitle")
        self.sections = etree.XPath(f"{article}/Abstract/AbstractText")
        self.others = etree.XPath(f"{head}/OtherAbstract")
        self.unread = etree.XPath(f"{article}/VernacularTitle | {article}/Abstract/*[not(self::AbstractText)]")
        self.date_parts = etree.XPath(f"{date}/*")
        self.retracted = etree.XPath(f"boolean({retracted})")


BOOK_TITLES = etree.XPath("BookDocument/Book/BookTitle")  # title in a record of a whole book
KINDS = {
    "PubmedArticle": _Kind(
        "MedlineCitation",
        "MedlineCitation/Article",
        "MedlineCitation/Article/Journal/JournalIssue/PubDate",
        # D016441 is "Retracted Publication" in MeSH.
        "MedlineCitation/Article/PublicationTypeList/PublicationType[@UI='D016441'] "
        "or MedlineCitation/CommentsCorrectionsList/*[@RefType='RetractionIn']",
    ),
    "PubmedBookArticle": _Kind(
        "BookDocument", "BookDocument", "BookDocument/Book/PubDate", "BookDocument/PublicationType[@UI='D016441']"
    ),
}
DELETIONS = ("DeleteCitation", "DeleteDocument")
READ = (*KINDS, *DELETIONS)


CODE = Text(re.compile("[a-z]{3}").fullmatch, "PubMed's language code of three small letters, such as eng")


def language_codes(text: str) -> str:
    """The type of `--languages`."""
    return ",".join(map(Allowed(CODE), names(text)))


@dataclass(frozen=True)
class Medline:
    """PubMed's files, oldest first. A later entry of a PMID replaces the earlier ones of the same version.

    Of several versions of a PMID, the highest one that was not deleted is kept.

    If a file has an MD5 file beside it, such as `pubmed26n0001.xml.gz.md5`, the file must have that hash.

    Attributes:
        section_labels: keep the labels of structured abstracts, as in `METHODS: We …`; the Pile has no labels.
        languages: keep only articles in these languages, such as `eng,fre`; PubMed's codes of three letters.
        other_abstracts: also read further abstracts (from publishers and other collections) in these languages, such as
            `eng,spa`; each becomes a paragraph after the first abstract.
    """

    section_labels: bool = switch(False, "keep section labels, as in `METHODS: We …`")
    languages: str | None = switch(
        None, "keep only articles in these languages, such as eng,fre (default all)", language_codes
    )
    other_abstracts: str | None = switch(
        None, "also read further abstracts in these languages, such as eng,spa (default none)", language_codes
    )
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = True

    @property
    def sets(self) -> tuple[str, ...]:
        """The possible values of the documents' `source`."""
        return (ABSTRACTS,)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """Find the files, in numeric order."""
        return inputs.find(patterns, (".xml.gz",), beside=(".md5",))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """Read the entries of one file, one at a time in memory.

        Raises:
            BadInput: the file is not gzip, is cut off, is not XML, or is not a PubMed citation file.
        """
        _check_md5(file)
        for element in citations(stream, file.url):
            if element.tag in KINDS:
                try:
                    replace_entities(element, file.url)
                    yield self._entry(element, KINDS[element.tag])
                except BadInput as error:
                    yield Bad(f"record at line {element.sourceline}", str(error))
            elif element.tag in DELETIONS:
                yield from map(_deletion, element.iter("PMID"))
            else:
                yield Dropped(f"records <{element.tag}>")

    def _entry(self, record: etree._Element, kind: _Kind) -> Entry:
        number_text, version_text = _number_and_version(*kind.pmids(record)[:1])
        if (pmid := parse_pmid(number_text)) is None:
            return Bad(f"line {record.sourceline}", f"a citation with the PMID {number_text!r}")
        if (version := _version(version_text)) is None:
            return Bad(f"line {record.sourceline}", f"PMID {pmid} with the Version {version_text!r}")
        id = f"pmid:{pmid}"
        if kind.retracted(record):
            return Dropped("retracted", id, version)
        if self.languages is not None and not set(self.languages.split(",")) & set(kind.languages(record)):
            return Dropped("of other languages", id, version)
        sections, record_of = kind.sections(record), listener()
        others = kind.others(record) if self.other_abstracts is not None or record_of else []
        if not sections and not others:
            return Dropped("without abstract", id, version)
        title = self._title(kind.titles(record) or BOOK_TITLES(record))
        if not (abstract := "\n\n".join(filter(None, [self._abstract(sections), *self._others(others)]))):
            return Dropped("without abstract", id, version)
        if record_of:
            for element in kind.unread(record):
                record_of.left_out("".join(element.itertext()), METADATA)
        text = f"{title}\n{abstract}" if title else abstract
        date = _date({part.tag: part.text or "" for part in kind.date_parts(record)})
        return Document(id, text, ABSTRACTS, None, date, pmid, version)

    def _title(self, titles: Sequence[etree._Element]) -> str:
        """The title; empty if it is only a placeholder."""
        return _or_nothing(" ".join(map(text_of, titles)), len(titles))

    def _abstract(self, sections: Iterable[etree._Element]) -> str:
        """The joined sections of an abstract; empty if they are only a placeholder."""
        record = listener()
        before = record.lines if record else 0
        abstract = " ".join(filter(None, map(self._section, sections)))
        return _or_nothing(abstract, record.lines - before if record else 0)

    def _others(self, abstracts: Iterable[etree._Element]) -> Iterator[str]:
        languages = self.other_abstracts.split(",") if self.other_abstracts is not None else ()
        for abstract in abstracts:
            if abstract.get("Language", "eng") in languages:
                yield self._abstract(abstract.iterfind("AbstractText"))
            elif record := listener():
                record.left_out("".join(abstract.itertext()), OTHERS)

    def _section(self, element: etree._Element) -> str:
        record = listener()
        label = fold(element.get("Label") or "") if self.section_labels or record else ""
        label = "" if label == "UNLABELLED" else label
        if record and label:
            record.line(f"{label}:")
            record.became(f"{label}:" if self.section_labels else "", LABELS)
        text = without_notice(text_of(element))
        if record:
            record.became(text, NOTICES)
        return f"{label}: {text}" if self.section_labels and text and label else text


def _or_nothing(text: str, lines: int) -> str:
    """Return a title or abstract, or an empty text if it is only a placeholder.

    Args:
        text: title or abstract.
        lines: number of its lines in the listening record.
    """
    if not says_nothing(text):
        return text
    if record := listener():
        record.became("", PLACEHOLDERS, lines)
    return ""


def citations(stream: Stream, name: str) -> Iterator[etree._Element]:
    """Parse a file and yield its records and lists of deletions; each element is cleared when the next is requested.

    Other elements between them are yielded too, but later than their place in the file.

    Args:
        stream: file to read.
        name: name of the file, for messages.

    Raises:
        BadInput: the file is not gzip, is cut off, is not XML, or is not a PubMed citation file.
    """
    # The files come from the network, so the parser must not read external entities, DTDs or the network.
    parser = etree.XMLPullParser(
        events=("end",),
        tag=READ,
        resolve_entities=False,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
    )
    size = XmlSize(name)
    try:
        with igzip.IGzipFile(fileobj=io.BufferedReader(stream, 1 << 20), mode="rb") as unpacked:
            blocks = without_unread(iter(lambda: unpacked.read(BLOCK_BYTES), b""))
            for block in chain([with_doctype(next(blocks))], blocks):
                size.add(block)
                parser.feed(block)
                for _, element in parser.read_events():
                    size.reset()
                    yield element
                    element.clear()
                    root = element.getparent()
                    while (first := root[0]) is not element:
                        if first.tag not in READ:
                            yield first
                        del root[0]
        root = parser.close()
        if root.tag != ROOT.decode():
            raise BadInput(f"{name} has the root element <{root.tag}>, not <{ROOT.decode()}>")
        yield from (element for element in root if element.tag not in READ)
    except igzip.BadGzipFile:
        raise BadInput(f"{name} is not a gzip file; PubMed's files end in .xml.gz, download it again") from None
    except (EOFError, isal_zlib.error):  # pyright: ignore[reportGeneralTypeIssues] (a class)
        raise BadInput(f"{name} is cut off or damaged; download it again and compare its .md5") from None
    except etree.XMLSyntaxError as error:
        raise BadInput(f"{name}, line {error.lineno}: not XML ({error.msg}); download it again") from None


def _deletion(pmid: etree._Element) -> Entry:
    number_text, version_text = _number_and_version(pmid)
    if (number := parse_pmid(number_text)) is None:
        return Bad(f"line {pmid.sourceline}", f"the deletion of the PMID {number_text!r}")
    if (version := _version(version_text)) is None:
        return Bad(f"line {pmid.sourceline}", f"the deletion of PMID {number} with the Version {version_text!r}")
    return Dropped(DELETED, f"pmid:{number}", version)


def _number_and_version(pmid: etree._Element | None = None) -> tuple[str, str]:
    """The texts of the number and the version in a `PMID` element; empty if there is no element."""
    return ("", "") if pmid is None else ((pmid.text or "").strip(), pmid.get("Version", ""))


def _version(text: str) -> int | None:
    """Parse the version of a record: 1 for an empty text, None if the text is no number."""
    text = text.strip()
    return 1 if not text else int(text) if VERSIONS.fullmatch(text) else None


def _check_md5(file: Input) -> None:
    md5_file = inputs.content(file.url.changed(lambda path: f"{path}.md5"), MD5_BYTES)
    if md5_file is None:
        return
    hashes = re.findall(rb"\b[0-9a-f]{32}\b", md5_file.lower())
    digest = hashlib.md5(usedforsecurity=False)
    with inputs.opened(file) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest().encode() not in hashes:
        raise BadInput(f"{file.url} has the MD5 {digest.hexdigest()}, not that of {file.url}.md5; download it again")


def _date(parts: Mapping[str, str]) -> str | None:
    """The date from `Year`, `Month` and `Day`, or the first year in a `MedlineDate` such as `1979 Nov-1980 May`."""
    if year := parts.get("Year"):
        return iso_date(year, parts.get("Month"), parts.get("Day"))
    match = re.search("[0-9]{4}", parts.get("MedlineDate", ""))
    return iso_date(match.group(), None, None) if match else None

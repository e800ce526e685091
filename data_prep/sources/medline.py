"""PubMed citation files: `pubmedYYnNNNN.xml.gz`, the yearly baseline and the daily updates alike.

A document is what The Pile made of a citation: title, a line feed, abstract; white space folded, the section labels of
structured abstracts and notices of copyright left out, markup reduced to its text (`medline_text`). All languages stay:
`Abstract` is English whatever the article is, and `OtherAbstract` is read where a switch says so. Retracted articles
are left out. A title in brackets, NLM's translation of one, keeps them, as in The Pile. Records of books and of their
chapters, which other downloads of PubMed hold, are read as citations are.
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

BLOCK_BYTES = 1 << 18  # of XML at a time
VERSIONS = re.compile("[1-9][0-9]{0,3}")


class _Kind:
    """What is read of a kind of record, as compiled XPath: three times as fast as `find` and `iterfind`.

    Args:
        head: the element that holds the PMID.
        article: the element that holds title, abstract and languages.
        date: the element whose children are parts of the date.
        retracted: true where the article was retracted; the notice that says so of another is a document.
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


BOOK_TITLES = etree.XPath("BookDocument/Book/BookTitle")  # of a record of a whole book
KINDS = {
    "PubmedArticle": _Kind(
        "MedlineCitation",
        "MedlineCitation/Article",
        "MedlineCitation/Article/Journal/JournalIssue/PubDate",
        # "Retracted Publication" in MeSH
        "MedlineCitation/Article/PublicationTypeList/PublicationType[@UI='D016441'] "
        "or MedlineCitation/CommentsCorrectionsList/*[@RefType='RetractionIn']",
    ),
    "PubmedBookArticle": _Kind(
        "BookDocument", "BookDocument", "BookDocument/Book/PubDate", "BookDocument/PublicationType[@UI='D016441']"
    ),
}
DELETIONS = ("DeleteCitation", "DeleteDocument")
READ = (*KINDS, *DELETIONS)


CODE = Text(re.compile("[a-z]{3}").fullmatch, "PubMed's code of a language, three small letters, such as eng")


def language_codes(text: str) -> str:
    """The type of `--languages`."""
    return ",".join(map(Allowed(CODE), names(text)))


@dataclass(frozen=True)
class Medline:
    """PubMed's files, oldest first: a later entry of a PMID replaces the earlier ones of its version.

    Of several versions of a PMID the highest counts that was not deleted.

    Where `pubmed26n0001.xml.gz.md5` lies beside a file, the file must be what it says.

    Attributes:
        section_labels: keep the labels of structured abstracts, as in `METHODS: We …`; The Pile had none.
        languages: keep articles in one of these alone, as `eng,fre`; PubMed's codes, of three letters.
        other_abstracts: languages of abstracts to read beside the first, as `eng,spa`, of publishers and of other
            collections: each is a paragraph of its own after it.
    """

    section_labels: bool = switch(False, "keep labels, as in `METHODS: We …`")
    languages: str | None = switch(None, "keep articles in these alone, as eng,fre (default all)", language_codes)
    other_abstracts: str | None = switch(
        None, "add further abstracts in these languages, as eng,spa (default none)", language_codes
    )
    needs_input: ClassVar[bool] = True
    newest_wins: ClassVar[bool] = True

    @property
    def sets(self) -> tuple[str, ...]:
        """What its documents' `source` may be."""
        return (ABSTRACTS,)

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files in numeric order."""
        return inputs.find(patterns, (".xml.gz",), beside=(".md5",))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The entries of one file, one at a time in memory.

        Raises:
            BadInput: it is not gzip, cut off, not XML, or not a PubMed citation file.
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
        said, said_version = _number_said(*kind.pmids(record)[:1])
        if (pmid := parse_pmid(said)) is None:
            return Bad(f"line {record.sourceline}", f"a citation with the PMID {said!r}")
        if (version := _version(said_version)) is None:
            return Bad(f"line {record.sourceline}", f"PMID {pmid} with the Version {said_version!r}")
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
        """The title; nothing where it says that there is none."""
        return _or_nothing(" ".join(map(text_of, titles)), len(titles))

    def _abstract(self, sections: Iterable[etree._Element]) -> str:
        """The sections of an abstract; nothing where they say that there is none."""
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
    """A title or an abstract; nothing where it says that there is none.

    Args:
        text: as it was read.
        lines: how many were told of it to who listens.
    """
    if not says_nothing(text):
        return text
    if record := listener():
        record.became("", PLACEHOLDERS, lines)
    return ""


def citations(stream: Stream, name: str) -> Iterator[etree._Element]:
    """The records and the lists of deletions of a file; each is emptied when the next one is asked for.

    What else stands among them comes, too, later than in its place.

    Args:
        stream: the file.
        name: what messages call it.

    Raises:
        BadInput: it is not gzip, cut off, not XML, or not a PubMed citation file.
    """
    # External entities, DTDs and the network stay out of reach: the files come from the network themselves.
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
    said, said_version = _number_said(pmid)
    if (number := parse_pmid(said)) is None:
        return Bad(f"line {pmid.sourceline}", f"the deletion of the PMID {said!r}")
    if (version := _version(said_version)) is None:
        return Bad(f"line {pmid.sourceline}", f"the deletion of PMID {number} with the Version {said_version!r}")
    return Dropped(DELETED, f"pmid:{number}", version)


def _number_said(pmid: etree._Element | None = None) -> tuple[str, str]:
    """The number and the version that a `PMID` says; nothing where there is none."""
    return ("", "") if pmid is None else ((pmid.text or "").strip(), pmid.get("Version", ""))


def _version(said: str) -> int | None:
    """The version of a record: 1 where nothing is said, None where no number is."""
    said = said.strip()
    return 1 if not said else int(said) if VERSIONS.fullmatch(said) else None


def _check_md5(file: Input) -> None:
    said = inputs.content(file.url.changed(lambda path: f"{path}.md5"), MD5_BYTES)
    if said is None:
        return
    hashes = re.findall(rb"\b[0-9a-f]{32}\b", said.lower())
    digest = hashlib.md5(usedforsecurity=False)
    with inputs.opened(file) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest().encode() not in hashes:
        raise BadInput(f"{file.url} is not what {file.url}.md5 says ({digest.hexdigest()}); download it again")


def _date(parts: Mapping[str, str]) -> str | None:
    """`Year`, `Month`, `Day`; or the first year of a `MedlineDate` such as `1979 Nov-1980 May`."""
    if year := parts.get("Year"):
        return iso_date(year, parts.get("Month"), parts.get("Day"))
    match = re.search("[0-9]{4}", parts.get("MedlineDate", ""))
    return iso_date(match.group(), None, None) if match else None

"""PubMed citation files: `pubmedYYnNNNN.xml.gz`, the yearly baseline and the daily updates alike.

A document is what The Pile made of a citation: title, a line feed, abstract; white space folded, the section labels of
structured abstracts and the copyright line left out, inline markup and MathML reduced to their text. All languages
stay: `Abstract` is English whatever the article is, and `OtherAbstract` is not used.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources import ABSTRACTS, Document, fold, iso_date
from data_prep.stage import BadInput


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a file: a citation, or the deletion of one.

    Attributes:
        pmid: PubMed's number of it.
        deleted: true for an entry of `<DeleteCitation>`.
        document: None for a deletion and for a citation without an abstract.
    """

    pmid: int
    deleted: bool
    document: Document | None


def read_records(path: Path) -> Iterator[Record]:
    """The entries of one file, in its order, one at a time in memory.

    Raises:
        BadInput: the file is missing, not gzip, cut off, not XML, or not a PubMed citation file.
    """
    try:
        with gzip.open(path) as file:
            # External entities, DTDs and the network stay out of reach: the files come from the network themselves.
            parser = etree.iterparse(
                file,
                tag=("PubmedArticle", "DeleteCitation"),
                resolve_entities=False,
                no_network=True,
                remove_comments=True,
                remove_pis=True,
            )
            for _, element in parser:
                if element.tag == "PubmedArticle":
                    yield _record(element)
                else:
                    yield from (Record(int(pmid.text or ""), True, None) for pmid in element.iter("PMID"))
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
            if parser.root.tag != "PubmedArticleSet":
                raise BadInput(f"{path} has the root element <{parser.root.tag}>, not <PubmedArticleSet>")
    except gzip.BadGzipFile:
        raise BadInput(f"{path} is not a gzip file; PubMed's files end in .xml.gz, download it again") from None
    except (EOFError, zlib.error):
        raise BadInput(f"{path} is cut off or damaged; download it again and compare its .md5") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except etree.XMLSyntaxError as error:
        raise BadInput(f"{path}, line {error.lineno}: not XML ({error.msg}); download it again") from None
    except ValueError as error:
        raise BadInput(f"{path}: a citation without a proper PMID ({error})") from None


def newest(paths: Sequence[Path], dropped: Counter[str]) -> Iterator[Document]:
    """The documents that hold after all files were applied in order: the last entry of a PMID decides.

    The files are read from the last to the first, so that memory holds one file's documents and the numbers seen,
    about 60 bytes a PMID, however many files there are.

    Args:
        paths: baseline and update files, oldest first.
        dropped: counts `superseded` entries, `deletions` that hold, and citations `without abstract`.
    """
    decided: set[int] = set()
    for path in reversed(paths):
        last: dict[int, Record] = {}
        for record in read_records(path):
            dropped["superseded"] += record.pmid in last
            last[record.pmid] = record
        for record in last.values():
            if record.pmid in decided:
                dropped["superseded"] += 1
            elif record.deleted:
                dropped["deletions"] += 1
            elif record.document is None:
                dropped["without abstract"] += 1
            else:
                yield record.document
        decided |= last.keys()


def _record(article: etree._Element) -> Record:
    pmid = int(article.findtext("MedlineCitation/PMID") or "")
    title = _text(article.find("MedlineCitation/Article/ArticleTitle"))
    abstract = " ".join(filter(None, map(_text, article.iterfind("MedlineCitation/Article/Abstract/AbstractText"))))
    if not abstract:
        return Record(pmid, False, None)
    text = f"{title}\n{abstract}" if title else abstract
    date = _date(article.find("MedlineCitation/Article/Journal/JournalIssue/PubDate"))
    return Record(pmid, False, Document(f"pmid:{pmid}", text, ABSTRACTS, None, date))


def _text(element: etree._Element | None) -> str:
    return "" if element is None else fold("".join(element.itertext()))


def _date(published: etree._Element | None) -> str | None:
    """`Year`, `Month`, `Day`; or the first year of a `MedlineDate` such as `1979 Nov-1980 May`."""
    if published is None:
        return None
    if year := published.findtext("Year"):
        return iso_date(year, published.findtext("Month"), published.findtext("Day"))
    found = re.search(r"\d{4}", published.findtext("MedlineDate") or "")
    return found.group() if found else None

"""PubMed citation files: `pubmedYYnNNNN.xml.gz`, the yearly baseline and the daily updates alike.

A document is what The Pile made of a citation: title, a line feed, abstract; white space folded, the section labels of
structured abstracts and the copyright line left out, inline markup and MathML reduced to their text. All languages
stay: `Abstract` is English whatever the article is, and `OtherAbstract` is not used.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep import inputs
from data_prep.inputs import Input, Stream
from data_prep.sources import ABSTRACTS, Document, Dropped, Entry, fold, iso_date
from data_prep.stage import BadInput


@dataclass(frozen=True)
class Medline:
    """PubMed's files, oldest first: a later entry of a PMID replaces the earlier ones, a deletion among them."""

    newest_wins: ClassVar[bool] = True

    def find(self, patterns: Sequence[str]) -> list[Input]:
        """The files in numeric order."""
        return inputs.find(patterns, (".xml.gz",))

    def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
        """The entries of one file, one at a time in memory.

        Raises:
            BadInput: it is not gzip, cut off, not XML, or not a PubMed citation file.
        """
        name = file.url
        try:
            with gzip.open(io.BufferedReader(stream, 1 << 20)) as unpacked:
                # External entities, DTDs and the network stay out of reach: the files come from the network themselves.
                parser = etree.iterparse(
                    unpacked,
                    tag=("PubmedArticle", "DeleteCitation"),
                    resolve_entities=False,
                    no_network=True,
                    remove_comments=True,
                    remove_pis=True,
                )
                for _, element in parser:
                    if element.tag == "PubmedArticle":
                        yield _entry(element)
                    else:
                        yield from (
                            Dropped("deletions", f"pmid:{int(pmid.text or '')}") for pmid in element.iter("PMID")
                        )
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
                if parser.root.tag != "PubmedArticleSet":
                    raise BadInput(f"{name} has the root element <{parser.root.tag}>, not <PubmedArticleSet>")
        except gzip.BadGzipFile:
            raise BadInput(f"{name} is not a gzip file; PubMed's files end in .xml.gz, download it again") from None
        except (EOFError, zlib.error):
            raise BadInput(f"{name} is cut off or damaged; download it again and compare its .md5") from None
        except etree.XMLSyntaxError as error:
            raise BadInput(f"{name}, line {error.lineno}: not XML ({error.msg}); download it again") from None
        except ValueError as error:
            raise BadInput(f"{name}: a citation without a proper PMID ({error})") from None


def _entry(article: etree._Element) -> Entry:
    pmid = int(article.findtext("MedlineCitation/PMID") or "")
    title = _text(article.find("MedlineCitation/Article/ArticleTitle"))
    abstract = " ".join(filter(None, map(_text, article.iterfind("MedlineCitation/Article/Abstract/AbstractText"))))
    if not abstract:
        return Dropped("without abstract", f"pmid:{pmid}")
    text = f"{title}\n{abstract}" if title else abstract
    date = _date(article.find("MedlineCitation/Article/Journal/JournalIssue/PubDate"))
    return Document(f"pmid:{pmid}", text, ABSTRACTS, None, date, pmid)


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

"""The documents of one XML file of PMC: an article, several in a `pmc-articleset`, or an answer of OAI-PMH."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.pmid import parse_pmid
from data_prep.files.inputs import Stream
from data_prep.sources.changes import listener
from data_prep.sources.document import ARTICLES, Bad, Document, Dropped
from data_prep.sources.entities import replace_entities
from data_prep.sources.pmc_licenses import date_of, license_and_retraction, license_of
from data_prep.sources.pmc_text import article_lines
from data_prep.sources.pmc_unread import parse_article
from data_prep.sources.xml_size import read_xml

ENVELOPES = {"pmc-articleset": "articles that efetch gave", "OAI-PMH": "an answer of OAI-PMH"}


def read_articles(
    stream: Stream | IO[bytes], name: str, back: str, metadata: JsonDict | None = None
) -> Iterator[Document | Dropped | Bad]:
    """The documents of one file, most often one.

    Args:
        stream: the XML.
        name: what messages call it.
        back: which elements behind the body are read, a key of `pmc_text.BACK`.
        metadata: metadata of its article; `license_code` and `is_retracted` go before what the XML says.

    Raises:
        BadInput: it is not XML, holds no article in JATS, or its one article is not as `read_article` needs it.
    """
    xml = read_xml(stream, name)
    try:
        root = parse_article(xml, whole=listener() is not None)
    except etree.XMLSyntaxError as error:
        raise BadInput(f"{name}, line {error.lineno}: not XML ({error.msg}); download it again") from None
    kind = etree.QName(root).localname
    if kind == "article":
        yield read_article(root, name, back, metadata)
    elif kind in ENVELOPES:
        yield from _enveloped(root, name, back)
    else:
        raise BadInput(
            f"{name} has the root element <{kind}>, not a JATS <article>, {', '.join(map('<{}>'.format, ENVELOPES))}"
        )


def _enveloped(root: etree._Element, name: str, back: str) -> Iterator[Document | Dropped | Bad]:
    """The articles inside a root that is none, and the deletions of OAI-PMH."""
    deleted = [header.findtext("{*}identifier", "") for header in root.iterfind(".//{*}header[@status='deleted']")]
    articles = list(root.iter("{*}article"))
    if not articles and not deleted:
        said = " ".join("".join(error.itertext()) for error in root.iter("{*}error"))
        raise BadInput(
            f"{name} is {ENVELOPES[etree.QName(root).localname]} without a JATS <article>"
            f"{f': {said[:200]}' if said else ''}; of OAI-PMH, ask for metadataPrefix=pmc"
        )
    for identifier in deleted:
        number = re.fullmatch(r".*?(?:PMC)?(\d+)", identifier.strip())
        if number:
            yield Dropped("deletions", f"pmcid:PMC{number[1]}")
        else:
            yield Bad("a deletion", f"it names the article {identifier[:200]!r}")
    for article in articles:
        place = f"line {article.sourceline}"
        try:
            yield read_article(article, f"{name}, {place}", back)
        except BadInput as error:
            yield Bad(place, str(error))


def read_article(article: etree._Element, name: str, back: str, metadata: JsonDict | None = None) -> Document | Dropped:
    """The document of one article.

    Args:
        article: the element; it is changed.
        name: what messages call it.
        back: as in `read_articles`.
        metadata: as in `read_articles`.

    Raises:
        BadInput: it has no metadata in JATS, no PMC id, or an entity that nobody knows; or as `license_and_retraction`.
    """
    metadata = metadata or {}
    _without_namespace(article)
    replace_entities(article, name)
    meta = article.find("front/article-meta")
    if meta is None:
        raise BadInput(f"{name} has an <article> without <article-meta>, not one in JATS")
    match = re.fullmatch("(?:PMC)?([0-9]+)", _id(meta, "pmc", "pmcid"))
    if match is None:
        raise BadInput(f"{name} has no <article-id> with a PMC number")
    pmcid, pmid = f"pmcid:PMC{match.group(1)}", parse_pmid(_id(meta, "pmid"))
    license, is_retracted = license_and_retraction(metadata, name)
    if is_retracted or any(
        related.get("related-article-type") == "retraction-forward" for related in meta.iterchildren("related-article")
    ):
        return Dropped("retracted", pmcid)
    lines = article_lines(article, back)
    if not lines:
        return Dropped("without text", pmcid)
    return Document(pmcid, "\n\n".join(lines), ARTICLES, license or license_of(meta), date_of(meta), pmid)


def _without_namespace(article: etree._Element) -> None:
    """Take JATS' own namespace, which OAI-PMH has, from the names of elements."""
    namespace = etree.QName(article).namespace
    if namespace:
        for element in article.iter(f"{{{namespace}}}*"):
            element.tag = etree.QName(element).localname


def _id(meta: etree._Element, *kinds: str) -> str:
    ids = [element.text or "" for element in meta.iterchildren("article-id") if element.get("pub-id-type") in kinds]
    return ids[0].strip() if ids else ""

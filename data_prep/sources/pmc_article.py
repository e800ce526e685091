"""Read the documents of one XML file of PMC: an article, a `pmc-articleset`, or a response of OAI-PMH."""

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
    """Read the documents of one file, in most cases one.

    Args:
        stream: XML of the file.
        name: name of the file, for messages.
        back: elements after the body that are read, a key of `pmc_text.BACK`.
        metadata: metadata of the article; `license_code` and `is_retracted` take precedence over the XML.

    Raises:
        BadInput: the file is not XML or holds no JATS article, or `read_article` refuses its only article.
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
    """Read the articles inside another root element, and the deletions of OAI-PMH."""
    deleted = [header.findtext("{*}identifier", "") for header in root.iterfind(".//{*}header[@status='deleted']")]
    articles = list(root.iter("{*}article"))
    if not articles and not deleted:
        message = " ".join("".join(error.itertext()) for error in root.iter("{*}error"))
        raise BadInput(
            f"{name} is {ENVELOPES[etree.QName(root).localname]} without a JATS <article>"
            f"{f': {message[:200]}' if message else ''}; with OAI-PMH, ask for metadataPrefix=pmc"
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
    """Read the document of one article.

    Args:
        article: article element; this function changes it.
        name: name of the file, for messages.
        back: as in `read_articles`.
        metadata: as in `read_articles`.

    Raises:
        BadInput: the article has no JATS metadata, no PMC id, or an undefined entity; or as in
            `license_and_retraction`.
    """
    metadata = metadata or {}
    _without_namespace(article)
    replace_entities(article, name)
    meta = article.find("front/article-meta")
    if meta is None:
        raise BadInput(f"{name} has an <article> without <article-meta>, so it is not JATS")
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
    """Remove the JATS namespace, which OAI-PMH uses, from the names of elements."""
    namespace = etree.QName(article).namespace
    if namespace:
        for element in article.iter(f"{{{namespace}}}*"):
            element.tag = etree.QName(element).localname


def _id(meta: etree._Element, *kinds: str) -> str:
    ids = [element.text or "" for element in meta.iterchildren("article-id") if element.get("pub-id-type") in kinds]
    return ids[0].strip() if ids else ""

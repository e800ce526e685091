"""Parsing of PubMed and PMC files, made-up ones and the real ones of the sample."""

from __future__ import annotations

import gzip
import string
from collections import Counter
from pathlib import Path

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources import ABSTRACTS, ARTICLES, Document, fold, iso_date, medline, pmc, sample
from data_prep.stage import BadInput

PLAIN = "<AbstractText>Text.</AbstractText>"


def citation(pmid: int, abstract: str = PLAIN, title: str = "Title.", date: str = "<Year>2020</Year>") -> str:
    return f"""<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article>
        <Journal><JournalIssue><PubDate>{date}</PubDate></JournalIssue></Journal>
        <ArticleTitle>{title}</ArticleTitle><Abstract>{abstract}</Abstract></Article>
        <OtherAbstract><AbstractText>Autre.</AbstractText></OtherAbstract></MedlineCitation></PubmedArticle>"""


def delete(*pmids: int) -> str:
    entries = "".join(f'<PMID Version="1">{pmid}</PMID>' for pmid in pmids)
    return f"<DeleteCitation>{entries}</DeleteCitation>"


def pubmed_file(path: Path, *entries: str) -> Path:
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>{"".join(entries)}</PubmedArticleSet>'
    path.write_bytes(gzip.compress(text.encode()))
    return path


def only(path: Path) -> Document:
    (record,) = medline.read_records(path)
    assert record.document is not None
    return record.document


def test_structured_abstract_loses_labels_and_copyright(tmp_path: Path):
    abstract = (
        '<AbstractText Label="AIMS" NlmCategory="OBJECTIVE">To\n  see.</AbstractText>'
        '<AbstractText Label="RESULTS">Seen\u2009.</AbstractText><AbstractText/>'
        "<CopyrightInformation>© 2020 The Owners.</CopyrightInformation>"
    )
    document = only(pubmed_file(tmp_path / "a.xml.gz", citation(7, abstract, title="[On\u00a0a  title].")))
    assert document == Document("pmid:7", "[On a title].\nTo see. Seen .", ABSTRACTS, None, "2020")


def test_markup_and_mathml_become_their_text(tmp_path: Path):
    mathml = '<math xmlns="http://www.w3.org/1998/Math/MathML"><msup><mi>R</mi><mn>2</mn></msup></math>'
    abstract = f"<AbstractText>CO<sub>2</sub> in <i>E. <b>coli</b></i>, <!-- no -->{mathml} = 0 &lt; 1.</AbstractText>"
    document = only(pubmed_file(tmp_path / "a.xml.gz", citation(7, abstract, title="<i>In vitro</i> H<sub>2</sub>O.")))
    assert document.text == "In vitro H2O.\nCO2 in E. coli, R2 = 0 < 1."


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("<Year>2021</Year><Month>Mar</Month><Day>09</Day>", "2021-03-09"),
        ("<Year>2021</Year><Month>03</Month><Day>9</Day>", "2021-03-09"),
        ("<Year>2021</Year><Month>Dec</Month>", "2021-12"),
        ("<Year>2021</Year><Season>Spring</Season>", "2021"),
        ("<MedlineDate>1979 Nov-1980 May</MedlineDate>", "1979"),
        ("<MedlineDate>Winter</MedlineDate>", None),
        ("", None),
    ],
)
def test_dates(tmp_path: Path, parts: str, expected: str | None):
    assert only(pubmed_file(tmp_path / "a.xml.gz", citation(7, date=parts))).date == expected


def test_impossible_date_parts_are_left_out():
    assert iso_date("2021", "13", "1") == "2021"
    assert iso_date("2021", "2", "32") == "2021-02"
    assert iso_date("21", "2", "3") is None


def test_updates_apply_in_order(tmp_path: Path):
    first = pubmed_file(tmp_path / "1.xml.gz", *(citation(pmid, title=f"Old {pmid}.") for pmid in range(1, 7)))
    second = pubmed_file(
        tmp_path / "2.xml.gz",
        citation(1, title="Draft 1."),
        citation(1, title="New 1."),
        citation(2, abstract=""),  # a revision that has lost its abstract
        delete(3, 4, 99),
    )
    third = pubmed_file(tmp_path / "3.xml.gz", citation(4, title="Back 4."))
    dropped: Counter[str] = Counter()
    documents = {d.id: d.text for d in medline.newest([first, second, third], dropped)}
    assert documents == {
        "pmid:1": "New 1.\nText.",
        "pmid:4": "Back 4.\nText.",
        "pmid:5": "Old 5.\nText.",
        "pmid:6": "Old 6.\nText.",
    }
    # 13 entries: 4 documents and these
    assert dropped == {"superseded": 6, "deletions": 2, "without abstract": 1}


def test_entities_are_not_resolved(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    text = f'<!DOCTYPE PubmedArticleSet [<!ENTITY x SYSTEM "file://{secret}">]><PubmedArticleSet>'
    text += citation(1, "<AbstractText>a&x;b</AbstractText>") + "</PubmedArticleSet>"
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(text.encode()))
    assert "SECRET" not in only(tmp_path / "a.xml.gz").text


def test_broken_pubmed_files_are_named(tmp_path: Path):
    good = gzip.compress(f"<PubmedArticleSet>\n{citation(1) * 2000}</PubmedArticleSet>".encode())
    numberless = citation(1).replace(">1<", "><")
    cases = {
        "plain.xml.gz": (b"<PubmedArticleSet/>", "not a gzip file"),
        "short.xml.gz": (good[:-2000], "cut off"),
        "flipped.xml.gz": (good[:900] + bytes([good[900] ^ 255]) + good[901:], "cut off or damaged|not XML"),
        "broken.xml.gz": (gzip.compress(b"<PubmedArticleSet>\n<PubmedArticle>\n</Pubmed>"), "line 3: not XML"),
        "empty.xml.gz": (gzip.compress(b""), "not XML"),
        "other.xml.gz": (gzip.compress(b"<html><p/></html>"), "root element <html>"),
        "pmid.xml.gz": (gzip.compress(f"<PubmedArticleSet>{numberless}</PubmedArticleSet>".encode()), "PMID"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            list(medline.read_records(tmp_path / name))
        assert name in str(error.value)
    with pytest.raises(BadInput, match=r"gone\.xml\.gz: No such file"):
        list(medline.read_records(tmp_path / "gone.xml.gz"))


def article(body: str, meta: str = "") -> bytes:
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
        '<article-id pub-id-type="pmc">42</article-id><title-group><article-title>Title</article-title></title-group>'
        f"{meta}</article-meta></front><body>{body}</body></article>"
    ).encode()


def lines_of(tmp_path: Path, body: str) -> list[str]:
    (tmp_path / "a.nxml").write_bytes(article(body))
    document = pmc.read_article(tmp_path / "a.nxml")
    assert document is not None
    return document.text.split("\n\n")[1:]


def test_no_paragraph_of_an_article_is_lost(tmp_path: Path):
    body = """<sec><label>1.</label><title>Methods</title>
        <p>Of <list><list-item><p>one</p><list><list-item><p>inner</p></list-item></list></list-item></list> tail.</p>
        <p>Sentence <fig><label>Figure 1</label><caption><title>Seen.</title><p>More.</p></caption>
           <graphic><alt-text>no</alt-text></graphic></fig>goes on<fn><p>Note.</p></fn>.</p>
        <boxed-text><sec><title>Box</title><p>In it.</p></sec></boxed-text>
        <table-wrap><label>Table 1</label><caption><p>Cells.</p></caption><table><tr/></table></table-wrap>
        <disp-quote><p>Quoted <named-content>text</named-content>.</p></disp-quote>
        <p>If <inline-formula><tex-math>x</tex-math></inline-formula> is<disp-formula>y</disp-formula> so.</p></sec>"""
    assert lines_of(tmp_path, body) == [
        *("1. Methods", "Of", "one", "inner", "tail."),
        *("Sentence goes on.", "Figure 1 Seen.", "More.", "Note."),
        *("Box", "In it.", "Table 1 Cells.", "Quoted text.", "If is so."),
    ]


def test_citation_marks_go_and_names_stay(tmp_path: Path):
    def cite(mark: str) -> str:
        return f'<xref ref-type="bibr" rid="r">{mark}</xref>'

    body = f"""<p>a [{cite("1")}-{cite("3")}, {cite("5")}]. b {cite("[1]")}–{cite("[4]")},
        c<sup>{cite("6")},{cite("7")}</sup> d ({cite("8")}; {cite("9a")})
        e ({cite("Orr, 2000")}; <xref ref-type="fig" rid="f">Figure 2</xref>) x<sup>2</sup>.</p>"""
    assert lines_of(tmp_path, body) == ["a. b, c d e (Orr, 2000; Figure 2) x2."]


@pytest.mark.parametrize(
    ("notice", "expected"),
    [
        ('<license xlink:href="https://creativecommons.org/licenses/by-nc-nd/4.0/"/>', "CC BY-NC-ND 4.0"),
        ('<license xlink:href="http://creativecommons.org/publicdomain/zero/1.0/"/>', "CC0 1.0"),
        ("<license><p>the Creative Commons Attribution License, which</p></license>", "CC BY"),
        ("<license><p>Creative Commons Attribution-NonCommercial-ShareAlike</p></license>", "CC BY-NC-SA"),
        ("<copyright-statement>© Someone</copyright-statement>", None),
    ],
)
def test_licenses(tmp_path: Path, notice: str, expected: str | None):
    (tmp_path / "a.nxml").write_bytes(article("<p>x</p>", f"<permissions>{notice}</permissions>"))
    document = pmc.read_article(tmp_path / "a.nxml")
    assert document is not None and document.license == expected


def test_broken_articles_are_named(tmp_path: Path):
    cases = {
        "cut.nxml": (article("<p>x</p>")[:-20], "line 1: not XML"),
        "html.nxml": (b"<html/>", "root element <html>"),
        "number.nxml": (article("").replace(b">42<", b">x<"), "no <article-id>"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            pmc.read_article(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(BadInput, match=r"gone\.nxml"):
        pmc.read_article(tmp_path / "gone.nxml")


def test_real_articles_lose_no_letter():
    """Every letter outside the dropped elements is in the text, as often as in the XML."""
    paths = sample._paths(".nxml")
    assert len(paths) == 8
    for path in paths:
        tree = etree.parse(path, etree.XMLParser(remove_comments=True, remove_pis=True))
        etree.strip_elements(tree, *pmc.DROPPED, with_tail=False)
        text = " ".join(part for tag in pmc.PARTS for e in tree.iterfind(tag) for part in e.itertext())
        expected = Counter(c for c in text.replace(pmc.BOILERPLATE, "") if c.isalpha())
        document = pmc.read_article(path)
        assert document is not None
        assert Counter(c for c in document.text if c.isalpha()) == expected, path.name
        assert sum(expected.values()) > 9_000
        assert not set(document.text.replace("\n\n", "")) & set(string.whitespace) - {" "}


def test_sample_is_what_we_know_of_it():
    dropped: Counter[str] = Counter()
    documents = {document.id: document for document in sample.documents(dropped)}
    assert Counter(d.source for d in documents.values()) == {ABSTRACTS: 33_272, ARTICLES: 8}
    # 30,000 + 20,788 citations and 20 deletions = 33,272 documents and these
    assert dropped == {"without abstract": 17_511, "deletions": 20, "superseded": 5}
    assert Counter(d.license for d in documents.values() if d.source == ARTICLES) == {
        "CC BY": 3,
        "CC BY 2.0": 2,
        "CC BY-NC 3.0": 1,
        "CC PDM 1.0": 1,
        None: 1,
    }
    assert {d.id: d.date for d in documents.values()}["pmcid:PMC3574550"] == "2012-11-12"
    assert all(line == fold(line) for d in documents.values() for line in d.text.split("\n"))
    assert len(sample.inputs()) == 10

"""The sources: PubMed and PMC files, synthetic and from the sample; the Pile; own text."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import lzma
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.dates import iso_date, parse_date
from data_prep.common.errors import BadInput
from data_prep.files.inputs import reading
from data_prep.filtering import corpus_format, spool
from data_prep.filtering.build_corpus import build_corpus
from data_prep.filtering.corpus_format import SPLITS
from data_prep.sources import medline_unread, sample
from data_prep.sources.document import ABSTRACTS, ARTICLES, Bad, Document, Dropped, Entry, Source, fold
from data_prep.sources.medline import KINDS, Medline
from data_prep.sources.medline_unread import without_unread
from data_prep.sources.pile import Pile
from data_prep.sources.pmc import Pmc
from data_prep.sources.pmc_licenses import TIERS
from data_prep.sources.sample import Sample
from data_prep.sources.text import Text

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


def entries(source: Source, *paths: Path) -> list[Entry]:
    """The entries that a source reads from the files, in order."""
    documents: list[Entry] = []
    for file in source.find([str(path) for path in paths]):
        with reading(file) as stream:
            documents += source.read(file, stream)
    return documents


def only(path: Path) -> Document:
    (document,) = entries(Medline(), path)
    assert isinstance(document, Document)
    return document


def test_structured_abstract_loses_labels_and_copyright(tmp_path: Path):
    abstract = (
        '<AbstractText Label="AIMS" NlmCategory="OBJECTIVE">To\n  see.</AbstractText>'
        '<AbstractText Label="RESULTS">Seen\u2009.</AbstractText><AbstractText/>'
        "<CopyrightInformation>© 2020 The Owners.</CopyrightInformation>"
    )
    document = only(pubmed_file(tmp_path / "a.xml.gz", citation(7, abstract, title="[On\u00a0a  title].")))
    assert document == Document("pmid:7", "[On a title].\nTo see. Seen .", ABSTRACTS, None, "2020", 7)


def test_markup_and_mathml_become_their_text(tmp_path: Path):
    mathml = '<math xmlns="http://www.w3.org/1998/Math/MathML"><msup><mi>R</mi><mn>2</mn></msup></math>'
    abstract = f"<AbstractText>CO<sub>2</sub> in <i>E. <b>coli</b></i>, <!-- no -->{mathml} = 0 &lt; 1.</AbstractText>"
    document = only(pubmed_file(tmp_path / "a.xml.gz", citation(7, abstract, title="<i>In vitro</i> H<sub>2</sub>O.")))
    assert document.text == "In vitro H2O.\nCO2 in E. coli, R^2 = 0 < 1."


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
    assert iso_date("2021", "2", "30") == "2021-02"
    assert iso_date("21", "2", "3") is None
    assert iso_date("٢٠٢١", "2", "3") is iso_date("0000", "2", "3") is None
    assert iso_date("2021", "٢", "3") == "2021" and iso_date("2021", "2", "٣") == "2021-02"


NO_DATES = ("9999-99-99", "2021-13", "2021-00", "2021-02-29", "2021-02-1", "20210309", "٢٠٢١-٠٣-٠٩", "0000",
            "2021-3-9", "2021-W01-1", "2021-060", "2021x",
            "-2021", "2021-", "2021-03-", "2021-03-09x", "", "May", "True")  # fmt: skip


@pytest.mark.parametrize("no_date", NO_DATES)
def test_a_date_is_of_the_calendar_in_every_source_and_filter(tmp_path: Path, no_date: str):
    """Otherwise the date would sort before or after every day that --recent-after may name."""
    assert parse_date(no_date) is None
    (tmp_path / "a.jsonl").write_bytes(json_bytes({"text": "x", "date": no_date}))
    (bad,) = entries(Text(), tmp_path / "a.jsonl")
    assert isinstance(bad, Bad) and f"'date' is '{no_date}', not a date such as" in bad.problem
    parts = dict(zip(("Year", "Month", "Day"), no_date.split("-"), strict=False))
    xml = "".join(f"<{name}>{part}</{name}>" for name, part in parts.items())
    (tmp_path / "a.nxml").write_bytes(article("<p>x</p>", f'<pub-date pub-type="epub">{xml.lower()}</pub-date>'))
    medline_date = f"<MedlineDate>{no_date}</MedlineDate>"
    for date in (
        only(pubmed_file(tmp_path / "a.xml.gz", citation(7, date=xml))).date,
        only(pubmed_file(tmp_path / "b.xml.gz", citation(7, date=medline_date))).date,
        only_article(tmp_path / "a.nxml").date,
    ):
        assert date is None or date == parse_date(date), date
    with pytest.raises(BadInput, match=r"--recent-after = .* must be a day"):
        build_corpus({"text": (Text(), [str(tmp_path / "a.jsonl")])}, tmp_path / "corpus", recent_after=no_date)


def test_dates_that_are_some():
    for text, expected in {
        "2021": "2021", "2021-03": "2021-03", "2024-02-29": "2024-02-29", "2021-03-09T10:00:00Z": "2021-03-09",
        "2021-03-09 10:00:00+01:00": "2021-03-09",
    }.items():  # fmt: skip
        assert parse_date(text) == expected
    days = [datetime.date(1, 1, 1) + datetime.timedelta(n) for n in range(0, 3_650_000, 997)]
    texts = [parse_date(str(day)) or "" for day in days]
    assert texts == sorted(texts) == [day.isoformat() for day in days]


def test_updates_apply_in_order(tmp_path: Path):
    first = pubmed_file(tmp_path / "1.xml.gz", *(citation(pmid, title=f"Old {pmid}.") for pmid in range(1, 7)))
    second = pubmed_file(
        tmp_path / "2.xml.gz",
        citation(1, title="Draft 1."),
        citation(1, title="New 1."),
        citation(2, abstract=""),  # a revision without the abstract
        delete(3, 4, 99),
    )
    third = pubmed_file(tmp_path / "3.xml.gz", citation(4, title="Back 4."), *(citation(n) for n in range(10, 30)))
    assert entries(Medline(), first, second)[-3:] == [Dropped("deletions", f"pmid:{pmid}") for pmid in (3, 4, 99)]
    paths = [str(third), str(first), str(second)]  # the order of the names counts
    manifest = build_corpus({"medline": (Medline(), paths)}, tmp_path / "corpus", 0.5)
    documents = {d.id: d.text for split in SPLITS for d in corpus_format.read_documents(tmp_path / "corpus", split)}
    assert {id: text for id, text in documents.items() if len(id) == len("pmid:1")} == {
        "pmid:1": "New 1.\nText.",
        "pmid:4": "Back 4.\nText.",
        "pmid:5": "Old 5.\nText.",
        "pmid:6": "Old 6.\nText.",
    }
    # 33 entries: 5 documents and these; the 20 have one text
    assert manifest["dropped"] == {"superseded": 6, "deletions": 2, "without abstract": 1, "same text": 19}


def test_entities_are_not_resolved(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    text = f'<!DOCTYPE PubmedArticleSet [<!ENTITY x SYSTEM "file://{secret}">]><PubmedArticleSet>'
    text += citation(1, "<AbstractText>a&x;b</AbstractText>") + "</PubmedArticleSet>"
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(text.encode()))
    (bad,) = entries(Medline(), tmp_path / "a.xml.gz")
    assert isinstance(bad, Bad) and "the entity &x; is a file" in bad.problem


def test_broken_pubmed_files_are_named(tmp_path: Path):
    good = gzip.compress(f"<PubmedArticleSet>\n{citation(1) * 2000}</PubmedArticleSet>".encode())
    cases = {
        "plain.xml.gz": (b"<PubmedArticleSet/>", "not a gzip file"),
        "short.xml.gz": (good[:-2000], "cut off"),
        "flipped.xml.gz": (good[:900] + bytes([good[900] ^ 255]) + good[901:], "cut off or damaged|not XML"),
        "broken.xml.gz": (gzip.compress(b"<PubmedArticleSet>\n<PubmedArticle>\n</Pubmed>"), "line 3: not XML"),
        "empty.xml.gz": (gzip.compress(b""), "not XML"),
        "other.xml.gz": (gzip.compress(b"<html><p/></html>"), "root element <html>"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            entries(Medline(), tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(BadInput, match=r"gone\.xml\.gz: there is no such file"):
        entries(Medline(), tmp_path / "gone.xml.gz")


def test_citations_without_a_proper_pmid_are_bad_records(tmp_path: Path):
    entries_of_file = citation(1).replace(">1<", "><"), citation(2), delete(3).replace(">3<", ">x<")
    first, good, last = entries(Medline(), pubmed_file(tmp_path / "a.xml.gz", *entries_of_file))
    assert first == Bad("line 2", "a citation with the PMID ''") and isinstance(good, Document)
    assert isinstance(last, Bad) and "deletion of the PMID 'x'" in last.problem


def test_retracted_articles_go_and_their_notices_stay(tmp_path: Path):
    kind = '<PublicationTypeList><PublicationType UI="{}">Any words</PublicationType></PublicationTypeList>'
    note = '<CommentsCorrectionsList><CommentsCorrections RefType="{}"/></CommentsCorrectionsList>'
    path = pubmed_file(
        tmp_path / "a.xml.gz",
        citation(1).replace("</Article>", kind.format("D016441") + "</Article>"),
        citation(2).replace("</MedlineCitation>", note.format("RetractionIn") + "</MedlineCitation>"),
        citation(3).replace("</Article>", kind.format("D016440") + "</Article>"),
        citation(4).replace("</MedlineCitation>", note.format("RetractionOf") + "</MedlineCitation>"),
    )
    read = entries(Medline(), path)
    assert read[:2] == [Dropped("retracted", "pmid:1"), Dropped("retracted", "pmid:2")]
    assert [entry.id for entry in read if isinstance(entry, Document)] == ["pmid:3", "pmid:4"]


def test_section_labels_and_languages(tmp_path: Path):
    abstract = (
        '<AbstractText Label="AIMS AND  SCOPE">To see.</AbstractText>'
        '<AbstractText Label="UNLABELLED">Seen.</AbstractText>'
        '<AbstractText Label="EMPTY"/><AbstractText>End.</AbstractText>'
    )
    languages = [
        "<Language>eng</Language>",
        "<Language>fre</Language><Language>eng</Language>",
        "<Language>ger</Language>",
    ]
    citations = [citation(n, abstract).replace("</Article>", f"{tag}</Article>") for n, tag in enumerate(languages)]
    path = pubmed_file(tmp_path / "a.xml.gz", *citations)
    labelled = entries(Medline(section_labels=True), path)[0]
    assert isinstance(labelled, Document) and labelled.text == "Title.\nAIMS AND SCOPE: To see. Seen. End."
    kept = [isinstance(entry, Document) for entry in entries(Medline(languages="eng,ita"), path)]
    assert kept == [True, True, False]
    assert entries(Medline(languages="eng"), path)[2] == Dropped("of other languages", "pmid:2")


@pytest.mark.parametrize("form", ["MD5(a.xml.gz)= {}\n", "{}  a.xml.gz\n", "MD5 (a.xml.gz) = {}"])
def test_md5_beside_a_file_is_checked(tmp_path: Path, form: str):
    path = pubmed_file(tmp_path / "a.xml.gz", citation(1))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    (tmp_path / "a.xml.gz.md5").write_text(form.format(md5.upper()))
    assert len(entries(Medline(), tmp_path)) == 1
    (tmp_path / "a.xml.gz.md5").write_text(form.format(md5[::-1]))
    with pytest.raises(BadInput, match=r"a\.xml\.gz has the MD5 [0-9a-f]{32}, not that of .*a\.xml\.gz\.md5"):
        entries(Medline(), tmp_path)


def full_citation(pmid: int, **parts: str) -> str:
    """A citation with every part that is not read, before, after or within the parts that are read."""
    unread = [
        f'<{name.decode()} Of="1">\n<PMID>9</PMID><Year>1</Year>\n</{name.decode()}>' for name in medline_unread.UNREAD
    ]
    whole = citation(pmid, **parts).replace("<Article>", f"{''.join(unread[:4])}<Article>")
    whole = whole.replace("</Article>", f"{''.join(unread[4:8])}</Article><?pmcsd ?>")
    return whole.replace("</PubmedArticle>", f"{''.join(unread[8:])}</PubmedArticle>")


def trimmed(text: str, block_bytes: int) -> bytes:
    """The XML that the parser reads after the cut, if the file arrives in blocks of this size."""
    head, body = b"<PubmedArticleSet>", f"{text}</PubmedArticleSet>".encode()
    blocks = (body[start : start + block_bytes] for start in range(0, len(body), block_bytes))
    return b"".join(without_unread(iter([head, *blocks])))


def test_what_is_not_read_is_cut_out_and_nothing_else():
    article = full_citation(1, abstract="<AbstractText>Of &lt;AuthorList &amp; <i>PubmedData</i>&gt;.</AbstractText>")
    text = article + full_citation(2) + delete(3)
    whole = etree.fromstring(f"<PubmedArticleSet>{text}</PubmedArticleSet>")
    expected = [Medline()._entry(element, KINDS[element.tag]) for element in whole.iter("PubmedArticle")]
    for block_bytes in [*range(1, 900), 1 << 18]:
        root = etree.fromstring(trimmed(text, block_bytes))
        assert [Medline()._entry(element, KINDS[element.tag]) for element in root.iter("PubmedArticle")] == expected
        assert root.findtext("DeleteCitation/PMID") == "3"
    left = trimmed(text, 1 << 18)
    names = [element.tag for element in etree.fromstring(left).iter()]
    assert names.count("AbstractText") == 4 and not {name.decode() for name in medline_unread.UNREAD} & {*names}
    assert left.count(b"\n") == text.count("\n") and names.count("PMID") == 3


@pytest.mark.parametrize("path", sample.paths(".xml.gz"), ids=lambda path: Path(path).name)
def test_real_records_are_the_same_with_and_without_what_is_not_read(path: str):
    with gzip.open(path) as file:
        content = file.read(3_000_000)
    whole = content[: content.rindex(b"</PubmedArticle>")] + b"</PubmedArticle></PubmedArticleSet>"
    left = b"".join(without_unread(iter([whole[at : at + 200_000] for at in range(0, len(whole), 200_000)])))
    assert len(left) < 0.5 * len(whole) and left.count(b"\n") == whole.count(b"\n")
    read = [
        [Medline(other_abstracts="fre")._entry(record, KINDS[record.tag]) for record in etree.fromstring(xml)]
        for xml in (whole, left)
    ]
    assert read[0] == read[1] and len(read[0]) > 150


def test_parts_that_never_end_are_looked_for_once():
    """A pattern whose time grows with the square of the number of parts would not end here."""
    text = citation(1) + "".join(f"<{name.decode()} >" * 200_000 for name in medline_unread.UNREAD)
    assert trimmed(text, 1 << 18).decode().endswith(f"{text}</PubmedArticleSet>")


def test_lines_keep_their_numbers(tmp_path: Path):
    text = full_citation(1) + full_citation(2).replace(">2<", ">x<")
    (bad,) = [entry for entry in entries(Medline(), pubmed_file(tmp_path / "a.xml.gz", text)) if isinstance(entry, Bad)]
    assert bad.place == f"line {2 + full_citation(1).count(chr(10))}"


@pytest.mark.parametrize("name", [name.decode() for name in medline_unread.UNREAD])
@pytest.mark.parametrize("kind", KINDS)
def test_no_citation_is_cut_out_with_an_unclosed_part(tmp_path: Path, kind: str, name: str):
    first, second = (full_citation(n).replace("PubmedArticle>", f"{kind}>") for n in (1, 2))
    path = pubmed_file(tmp_path / "a.xml.gz", first.replace(f"</{name}>", ""), second.replace(f'<{name} Of="1">', ""))
    with pytest.raises(BadInput, match="not XML"):
        entries(Medline(), path)


@pytest.mark.parametrize(
    "abstract",
    [
        "<!-- <PubmedData> --><AbstractText>Kept.</AbstractText><!-- </PubmedData> -->",
        "<?x <PubmedData> ?><AbstractText>Kept.</AbstractText><?x </PubmedData> ?>",
        "<AbstractText><![CDATA[<PubmedData>Kept.</PubmedData>]]></AbstractText>",
        f"<!-- {'x' * 500} <PubmedData> --><AbstractText>Kept.</AbstractText><!-- </PubmedData> -->",
    ],
)
def test_what_only_looks_like_an_element_cuts_nothing(abstract: str):
    for block_bytes in [*range(1, 900), 1 << 18]:
        assert b"Kept." in trimmed(citation(1, abstract), block_bytes)


def test_an_xml_bomb_is_harmless(tmp_path: Path):
    entities = '<!ENTITY a "ha">' + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghijk"))
    text = f"<!DOCTYPE x [{entities}]><PubmedArticleSet>{citation(1, '<AbstractText>a &k; b</AbstractText>')}"
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(f"{text}</PubmedArticleSet>".encode()))
    with pytest.raises(BadInput, match=r"not XML .*entity amplification"):
        only(tmp_path / "a.xml.gz")


def article(body: str, meta: str = "") -> bytes:
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
        '<article-id pub-id-type="pmc">42</article-id><title-group><article-title>Title</article-title></title-group>'
        f"{meta}</article-meta></front><body>{body}</body></article>"
    ).encode()


def only_article(path: Path) -> Document:
    (document,) = entries(Pmc(), path)
    assert isinstance(document, Document)
    return document


def lines_of(tmp_path: Path, body: str) -> list[str]:
    (tmp_path / "a.nxml").write_bytes(article(body))
    document = only_article(tmp_path / "a.nxml")
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
        *("Box", "In it.", "Table 1 Cells.", "Quoted text.", "If $x$ is so."),
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
    assert only_article(tmp_path / "a.nxml").license == expected


def test_broken_articles_are_named(tmp_path: Path):
    cases = {
        "cut.nxml": (article("<p>x</p>")[:-20], "line 1: not XML"),
        "html.nxml": (b"<html/>", "root element <html>"),
        "number.nxml": (article("").replace(b">42<", b">x<"), "no <article-id>"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            entries(Pmc(), tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(BadInput, match=r"gone\.nxml"):
        entries(Pmc(), tmp_path / "gone.nxml")


def numbered(number: int, license: str = "by") -> bytes:
    link = f'<license xlink:href="https://creativecommons.org/licenses/{license}/4.0/"/>'
    xml = article(f"<p>Body {number}.</p>", f"<permissions>{link}</permissions>")
    return xml.replace(b">42<", f">{number}<".encode())


def test_articles_in_tar_archives(tmp_path: Path):
    members = {
        "PMC0/PMC1.xml": numbered(1),
        "PMC0/notes.txt": b"no",
        "PMC0/PMC2.nxml": b"<html/>",
        "PMC3.nxml": numbered(3),
    }
    for name, mode in {"a.tar": "w", "b.tar.gz": "w:gz", "c.tar.xz": "w:xz"}.items():
        with tarfile.open(tmp_path / name, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        first, bad, last = entries(Pmc(), tmp_path / name)
        assert isinstance(first, Document) and first.text == "Title\n\nBody 1." and first.license == "CC BY 4.0"
        assert isinstance(bad, Bad) and bad.place == "PMC0/PMC2.nxml" and "root element <html>" in bad.problem
        assert isinstance(last, Document) and last.id == "pmcid:PMC3"
        whole = (tmp_path / name).read_bytes()
        for end in [700, 1024, 1300, 2048] if mode == "w" else [len(whole) - 60]:
            (tmp_path / name).write_bytes(whole[:end])
            with pytest.raises(BadInput, match=f"{name} is (cut off|damaged, or not a tar)"):
                entries(Pmc(), tmp_path / name)
    (tmp_path / "d.tar").write_bytes(b"plain text " * 100)
    with pytest.raises(BadInput, match=r"d\.tar is damaged, or not a tar file"):
        entries(Pmc(), tmp_path / "d.tar")


def test_articles_as_in_the_public_bucket(tmp_path: Path):
    articles: dict[str, tuple[bytes, Any]] = {
        "PMC1.1": (numbered(1), {"license_code": "CC BY-NC", "is_retracted": False}),
        "PMC2.1": (numbered(2), {"license_code": "CC BY", "is_retracted": True}),
        "PMC3.1": (numbered(3), {"license_code": "TDM"}),
        "PMC4.2": (numbered(4), {"license_code": "CC0"}),
        "PMC4.10": (numbered(4).replace(b"Body", b"New body"), {"license_code": "CC0"}),
        "PMC5.1": (numbered(5, "by-nd"), None),
    }
    (tmp_path / "metadata").mkdir()
    for name, (xml, metadata) in articles.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.xml").write_bytes(xml)
        if metadata is not None:
            (tmp_path / "metadata" / f"{name}.json").write_bytes(orjson.dumps(metadata))
    documents = entries(Pmc(), tmp_path)
    assert [getattr(entry, "license", entry) for entry in documents] == [
        *("CC BY-NC", Dropped("retracted", "pmcid:PMC2"), "TDM", "CC0", "CC0", "CC BY-ND 4.0")
    ]
    assert isinstance(documents[4], Document) and "New body" in documents[4].text  # version 10 comes after 2
    tiers = {
        tier: [entry.id for entry in entries(Pmc(tier), tmp_path) if isinstance(entry, Document)] for tier in TIERS
    }
    assert tiers == {
        "commercial": ["pmcid:PMC4", "pmcid:PMC4", "pmcid:PMC5"],
        "noncommercial": ["pmcid:PMC1", "pmcid:PMC4", "pmcid:PMC4", "pmcid:PMC5"],
        "all": ["pmcid:PMC1", "pmcid:PMC3", "pmcid:PMC4", "pmcid:PMC4", "pmcid:PMC5"],
    }
    with pytest.raises(BadInput, match=r"--licenses = .free., but it must be one of commercial, noncommercial, all"):
        Pmc("free")
    with tarfile.open(tmp_path / "in.tar", "w") as archive:  # as acquire.py packs them
        for name, (_, metadata) in articles.items():
            if metadata is not None:
                archive.add(tmp_path / "metadata" / f"{name}.json", f"metadata/{name}.json")
            archive.add(tmp_path / name / f"{name}.xml", f"{name}/{name}.xml")
    assert entries(Pmc(), tmp_path / "in.tar") == documents
    (tmp_path / "metadata" / "PMC1.1.json").write_bytes(b"<html>")
    with pytest.raises(BadInput, match=r"PMC1\.1\.xml: its metadata are not JSON"):
        entries(Pmc(), tmp_path / "PMC1.1")
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name in ("metadata/PMC1.1.json", "PMC1.1/PMC1.1.xml", "PMC4.2/PMC4.2.xml"):
            archive.add(tmp_path / name, name)
    bad, other = entries(Pmc(), tmp_path / "in.tar")
    assert isinstance(bad, Bad) and "its metadata are not JSON" in bad.problem
    # The article's own licence, because the metadata belong to another article.
    assert isinstance(other, Document) and other.license == "CC BY 4.0"


@pytest.mark.parametrize("value", ["no", "false", "yes", 0, 1, [], {}])
def test_metadata_of_another_type_drop_and_license_nothing(tmp_path: Path, value: Any):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "PMC1.1").mkdir()
    (tmp_path / "PMC1.1/PMC1.1.xml").write_bytes(numbered(1))
    for key, says in (("is_retracted", "not true or false"), ("license_code", "not a text")):
        if key == "license_code" and isinstance(value, str):
            continue
        (tmp_path / "metadata/PMC1.1.json").write_bytes(orjson.dumps({key: value}))
        with pytest.raises(BadInput, match=rf"PMC1\.1\.xml: its metadata have .*{key}.*{says}"):
            entries(Pmc(), tmp_path / "PMC1.1")
    (tmp_path / "metadata/PMC1.1.json").write_bytes(orjson.dumps({"is_retracted": None, "license_code": None}))
    assert isinstance(entries(Pmc(), tmp_path / "PMC1.1")[0], Document)


def test_articles_in_an_object_store(s3: Any):
    s3.create_bucket(Bucket="articles")
    for name, license in (("PMC1.1", "CC BY"), ("PMC2.1", "CC BY-NC")):
        s3.put_object(Bucket="articles", Key=f"{name}/{name}.xml", Body=numbered(int(name[3])))
        metadata = orjson.dumps({"license_code": license})
        s3.put_object(Bucket="articles", Key=f"metadata/{name}.json", Body=metadata)
    articles: list[Entry] = []
    source = Pmc("commercial")
    for file in source.find(["s3://articles"]):
        with reading(file) as stream:
            articles += source.read(file, stream)
    first, second = articles
    assert isinstance(first, Document) and first.license == "CC BY"
    assert second == Dropped("of other licences", "pmcid:PMC2")


def test_a_retracted_article_says_so_itself(tmp_path: Path):
    for kind, expected in {
        "retraction-forward": [Dropped("retracted", "pmcid:PMC42")],
        "retracted-article": None,
    }.items():
        related = f'<related-article related-article-type="{kind}"/>'
        (tmp_path / "a.nxml").write_bytes(article("<p>x</p>", related))
        articles = entries(Pmc(), tmp_path / "a.nxml")
        assert articles == expected if expected else isinstance(articles[0], Document)


def test_sample_is_what_we_know_of_it(tmp_path: Path):
    manifest = build_corpus({"sample": (Sample(), [])}, tmp_path / "corpus")
    documents = {d.id: d for split in SPLITS for d in corpus_format.read_documents(tmp_path / "corpus", split)}
    assert Counter(d.source for d in documents.values()) == {ABSTRACTS: 33_247, ARTICLES: 8}
    # 30,000 + 20,788 citations and 20 deletions = 33,251 abstracts and these
    assert manifest["dropped"] == {
        "deletions": 20,
        "retracted": 6,
        "same text": 16,
        "superseded": 5,
        "without abstract": 17_514,
    }
    assert manifest["inputs"]["sample"]["files"] == 10
    assert Counter(d.license for d in documents.values() if d.source == ARTICLES) == {
        "CC BY": 3,
        "CC BY 2.0": 2,
        "CC BY-NC 3.0": 1,
        "CC PDM 1.0": 1,
        None: 1,
    }
    assert documents["pmcid:PMC3574550"].date == "2012-11-12"
    assert all(line == fold(line) for d in documents.values() for line in d.text.split("\n"))


def packed(name: str, content: bytes) -> bytes:
    pack = {"zst": zstandard.compress, "gz": gzip.compress, "xz": lzma.compress}
    return pack.get(name.rpartition(".")[2], bytes)(content)


def json_bytes(*records: Any) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.jsonl.xz"])
def test_text_in_json_lines(tmp_path: Path, name: str):
    records = [
        {"id": "x", "text": " One\r\ntext\n", "date": "2021-03-09T10:00", "license": "CC BY", "pmid": "17"},
        {"id": 5, "text": "two"},
        {"id": None, "text": "three", "other": [1]},
        {"id": "e", "text": " \n"},
    ]
    (tmp_path / name).write_bytes(packed(name, json_bytes(*records)))
    assert entries(Text(set_name="notes"), tmp_path / name) == [
        Document("x", "One\ntext", "notes", "CC BY", "2021-03-09", 17),
        Document("5", "two", "notes", None, None),
        Document(f"{name}:3", "three", "notes", None, None),
        Dropped("without text"),
    ]


def test_text_keys_and_what_is_wrong_with_them(tmp_path: Path):
    records: list[Any] = [
        {"doc": {"body": "fine"}, "no": 1},
        {"text": "none"},
        {"doc": {"body": 3}},
        {"doc": {"body": "x"}, "no": 1.5},
        {"doc": {"body": "x"}, "date": "May"},
        {"doc": {"body": "x"}, "pmid": "PMC7"},
        {"doc": {"body": "x"}, "license": 4},
        ["x"],
    ]
    (tmp_path / "a.jsonl").write_bytes(json_bytes(*records) + b"\xff\n{")
    first, *others = entries(Text(text_key="doc.body", id_key="no"), tmp_path)
    assert first == Document("1", "fine", "text", None, None)
    problems = [
        *(
            "'doc.body' is missing",
            "'doc.body' is '3', not a text; name another key",
            "'no' is '1.5'",
            "'date' is 'May'",
        ),
        *("'pmid' is 'PMC7'", "'license' is '4'", "not a JSON object", "not JSON", "not JSON"),
    ]
    for number, (entry, problem) in enumerate(zip(others, problems, strict=True), start=2):
        assert isinstance(entry, Bad) and entry.place == f"line {number}" and problem in entry.problem


def test_text_in_files_of_its_own(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "n10.txt").write_bytes("Zehn µg.\r\n".encode())
    (tmp_path / "b" / "n9.txt.gz").write_bytes(gzip.compress(b"nine"))
    (tmp_path / "b" / "bad.txt").write_bytes(b"ab\xff")
    (tmp_path / "b" / "blank.txt").write_bytes(b" ")
    (tmp_path / "b" / "README.md").write_bytes(b"not taken")
    assert entries(Text(), tmp_path) == [
        Bad("byte 2", "not UTF-8 (invalid start byte)"),
        Dropped("without text"),
        Document("b/n9.txt.gz", "nine", "text", None, None),
        Document("b/n10.txt", "Zehn µg.", "text", None, None),
    ]


def test_text_in_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet: pip install pyarrow")
    from pyarrow import parquet

    days = [datetime.date(2021, 3, 9), None]
    table = pyarrow.table({"text": ["one", None], "id": [7, 8], "date": days, "pmid": [3, None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    good, bad = entries(Text(), tmp_path)
    assert good == Document("7", "one", "text", None, "2021-03-09", 3)
    assert bad == Bad("row 2", "the key 'text' is missing, not a text; name another key with --text-key")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"a\.parquet is damaged, or not a Parquet file"):
        entries(Text(), tmp_path)


def test_a_document_of_many_megabytes(tmp_path: Path):
    text = "long " * (8 << 20) + "end"
    (tmp_path / "a.jsonl.zst").write_bytes(
        zstandard.compress(json_bytes({"text": "short"}, {"text": text}, {"text": "s"}))
    )
    sizes = [len(entry.text) for entry in entries(Text(), tmp_path) if isinstance(entry, Document)]
    assert sizes == [5, len(text), 1]


def pile_record(text: str, set_name: str) -> dict[str, Any]:
    return {"text": text, "meta": {"pile_set_name": set_name}}


def test_pile_keeps_its_two_sets_however_they_are_spelt(tmp_path: Path):
    other = pile_record("On \\u0041 and PubMed.", "StackExchange")
    lines = [
        json_bytes(pile_record("Abs\r\ntract ", ABSTRACTS)),
        json_bytes(other),
        json_bytes(pile_record("Article", ARTICLES)),
        json_bytes(pile_record(f"It names {ABSTRACTS}.", "Github")),
        b'{"text": "escaped", "meta": {"pile_set_name": "Pub\\u004ded Central"}}\n',
        b'{"text": "the key is", "meta": {"pile_set\\u005Fname": "PubMed Abstracts"}}\n',
        b'{"text": "both are", "meta": {"pile_set\\u005fname": "PubMed\\u0020Abstracts"}}\n',
        json_bytes(pile_record("", ARTICLES)),
    ]
    (tmp_path / "07.jsonl").write_bytes(b"".join(lines))
    assert entries(Pile(), tmp_path) == [
        Document("pile:07:1", "Abs\r\ntract ", ABSTRACTS, None, None),
        Dropped("of other sets"),
        Document("pile:07:3", "Article", ARTICLES, None, None),
        Dropped("of other sets"),
        Document("pile:07:5", "escaped", ARTICLES, None, None),
        Document("pile:07:6", "the key is", ABSTRACTS, None, None),
        Document("pile:07:7", "both are", ABSTRACTS, None, None),
        Dropped("without text"),
    ]


def test_pile_lines_without_meta_are_bad(tmp_path: Path):
    records: list[Any] = [{"text": "x"}, {"text": "x", "meta": None}, {"text": 1, "meta": {"pile_set_name": ARTICLES}}]
    (tmp_path / "00.jsonl").write_bytes(json_bytes(*records, {"text": "x", "meta": ARTICLES}) + b'{"text": "')
    documents = entries(Pile(), tmp_path)
    assert [entry.place for entry in documents if isinstance(entry, Bad)] == [f"line {n}" for n in range(1, 6)]


def test_pile_parses_no_line_of_other_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A broken line of another set is not noticed."""
    (tmp_path / "00.jsonl").write_bytes(b'{"text": "x" "meta": {"pile_set_name": "Github"}}\n')
    assert entries(Pile(), tmp_path) == [Dropped("of other sets")]


def test_pile_own_val_and_test_are_val(tmp_path: Path):
    for name in ("00", "01", "val", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes(
            json_bytes(*(pile_record(f"{name} {n}", ABSTRACTS) for n in range(30)))
        )
    manifest = build_corpus({"pile": (Pile(), [str(tmp_path)])}, tmp_path / "corpus", 0.3)
    assert {split: counts["documents"] for split, counts in manifest["counts"].items()} == {"train": 60, "val": 60}
    held_out = {d.text.split()[0] for d in corpus_format.read_documents(tmp_path / "corpus", "val")}
    assert held_out == {"val", "test"}
    without = build_corpus({"pile": (Pile(), [str(tmp_path / "0?.jsonl")])}, tmp_path / "without", 0.3)
    assert without["counts"]["val"]["documents"] == sum(
        spool.split_of(f"pile:{name}:{n}", 0.3) == "val" for name in ("00", "01") for n in range(1, 31)
    )
    (tmp_path / "01.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(BadInput, match=r"01\.jsonl and .*01\.jsonl\.gz both have the name 01"):
        Pile().find([str(tmp_path)])

"""The rules for articles: citations, formulas, back matter, entities and envelopes."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from data_prep.sources.document import Bad, Document, Dropped
from data_prep.sources.pmc import Pmc
from data_prep.sources.pmc_article import read_articles
from data_prep.sources.pmc_citations import DASHES
from data_prep.sources.pmc_text import BACK

MATHML = 'xmlns:mml="http://www.w3.org/1998/Math/MathML"'


def article(body: str, title: str = "<article-title>Title</article-title>", others: str = "", number: int = 42) -> str:
    return (
        f'<article {MATHML}><front><article-meta><article-id pub-id-type="pmc">{number}</article-id>'
        f"<title-group>{title}</title-group></article-meta></front><body>{body}</body>{others}</article>"
    )


def read(content: str | bytes, back: str = "text") -> list[Document | Dropped | Bad]:
    content = content.encode() if isinstance(content, str) else content
    return list(read_articles(io.BytesIO(content), "a.nxml", back))


def text_of(content: str | bytes, back: str = "text") -> str:
    (document,) = read(content, back)
    assert isinstance(document, Document)
    return document.text


def paragraph(content: str) -> str:
    """Text of a body of one paragraph; `<5>` is a link to a reference, `<fn:a>` a link to a note."""
    content = re.sub(r"<(?:(fn|table-fn|bibr|aff):)?([^<>/a-z]*[\d*†‡,–-][^<>/]*|a|b)>",
                     lambda m: f'<xref ref-type="{m[1] or "bibr"}">{m[2]}</xref>', content)  # fmt: skip
    return text_of(article(f"<p>{content}</p>")).removeprefix("Title\n\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # numbers with any sign between them, and their brackets
        ("One [<1>], <2>–<4>.", "One."),
        ("A [<1>-<3>, <5>]. B <[1]>–<[4]>, C<sup><6>,<7></sup> D (<8>; <9a>).", "A. B, C D."),
        ("E [<1>, <2> and <4>], F [<1>&amp;<2>], G [<1>/<2>], H [<1>…<3>], I [<1>.<2>].", "E, F, G, H, I."),
        ("J ([<1>]), K {<2>}, L ( <3> ; <4> ) and M.", "J, K, L and M."),
        ("N [<1>–5, 7 and <9>] or O [2, <3>].", "N or O."),
        ("P<1>and Q<sup><2></sup>R.", "P and Q R."),
        ("CD4<sup><1></sup>-positive and Smith<2>’s.", "CD4-positive and Smith’s."),
        ("previously 90 <1>, <2>. Then", "previously 90. Then"),
        ("(<1>) [<2>]", ""),
        ('empty [<1>–<xref ref-type="bibr" rid="r2"/>–<3>].', "empty."),
        # brackets with words that mean nothing without the marks
        ("Ten [<1>, p. 23], (e.g., <1>), [see <1>], [see also <1> and <2>], (reviewed in <3>).", "Ten."),
        ("Units [<1>, pp. 57-59.]. In", "Units. In"),
        # brackets with other words: superscripts and marks in their own brackets are removed, bare numbers stay
        ("(n = 20; [<6>]) and ([<6>]; n = 20) and (n = 20, <6>, p. 3)", "(n = 20) and (n = 20) and (n = 20, 6, p. 3)"),
        ("(mice<sup><6></sup>), KCN [<12>, their figure five].", "(mice), KCN [12, their figure five]."),
        # years and names are words
        ("(Orr et al. <2000>; Lee <2003b>, <2004>), Orr (<2000>), Lee (<2003b>, p. 7).",
         "(Orr et al. 2000; Lee 2003b, 2004), Orr (2000), Lee (2003b, p. 7)."),
        ("(Orr <2003a>, <b>), (Orr, <1899>), <*>", "(Orr 2003a, b), (Orr, 1899),"),
        ("Orr <2003><sup><fn:a></sup> and (<2003>–<5>).", "Orr 2003 and (2003–5)."),
        # the sentence needs the mark
        ("see Refs. <3> and <4>, as in [<5>], by <6>; cf. reference <7>.",
         "see Refs. 3 and 4, as in [5], by 6; cf. reference 7."),
        ("see ref.<sup><3></sup> for it", "see ref. 3 for it"),
        ("It ends. [<5>] reported it. [<6>] Then Orr et al. [<7>] showed it.",
         "It ends. [5] reported it. Then Orr et al. showed it."),
        ("Wang et al. [<3>]. Then", "Wang et al. Then"),
        # links to notes; other links are words
        ("Cells<fn:1> and values<sup><table-fn:a></sup> in <table-fn:*>, m<aff:†>.", "Cells and values in *, m."),
        ('Fig. <xref ref-type="fig">1</xref>, Eq. (<xref ref-type="disp-formula">2</xref>).', "Fig. 1, Eq. (2)."),
        ("<table-wrap><caption><p>Stage (n = 98)<sup>a</sup> and m<sup>2</sup><sup>*</sup></p></caption></table-wrap>"
         "<p>x<sup>a</sup></p>", "Stage (n = 98) and m2\n\nxa"),
        # superscript numbers
        ("10<sup>6</sup>–10<sup>−8</sup> cm<sup>2</sup>, 10<sup>6,<3></sup>, log<sub>10</sub>2, H<sub>2</sub>O",
         "10^6–10^−8 cm2, 10^6, log10 2, H2O"),
    ],
)  # fmt: skip
def test_marks_go_whole_or_stay_whole(content: str, expected: str) -> None:
    assert paragraph(content).replace("Title", "") == expected


def test_every_dash_joins() -> None:
    dashes = [chr(n) for n in range(sys.maxunicode) if unicodedata.category(chr(n)) == "Pd"]
    assert len(dashes) > 20
    for dash in [*dashes, *"−~"]:
        if ord(dash) < 0x10000:
            assert re.match(f"[{DASHES}]", dash), f"U+{ord(dash):04X}"
            assert paragraph(f"One [<1>{dash}<3>]. Two<sup><1>{dash}<3></sup>.") == "One. Two.", f"U+{ord(dash):04X}"


@pytest.mark.parametrize("filling", ["[", "[<1>", "(<1>;", "<1>, ", "<2003>,", " ", ", ", "<sup><1></sup>", "and "])
def test_a_line_of_many_marks_takes_no_longer_than_it_is(filling: str) -> None:
    """If the time grew with the square of the length, this would take minutes."""
    assert paragraph("x <1>" + filling * 30_000 + "<1>]").startswith("x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("by<disp-formula>x</disp-formula>where", "by where"),
        ("by <disp-formula>x</disp-formula>, where (see <inline-graphic/>)", "by, where (see)"),
        ("1.<fig><label>Fig. 1</label><caption><p>C.</p></caption></fig>Next", "1. Next\n\nFig. 1 C."),
        ("if <inline-formula><tex-math>\\documentclass{m}\n\\begin{document}$$ k  = 2 $$\\end{document}</tex-math>"
         "</inline-formula>, so", "if $k = 2$, so"),
        ("if <inline-formula><alternatives><tex-math>k</tex-math><mml:math><mml:mi>K</mml:mi></mml:math>"
         "<inline-graphic/></alternatives></inline-formula> so", "if $k$ so"),
        ("if <inline-formula><mml:math><mml:mi>k</mml:mi><mml:mo>=</mml:mo><mml:msup><mml:mn>10</mml:mn><mml:mn>6"
         "</mml:mn></mml:msup></mml:math>, and</inline-formula> so", "if k=10^6, and so"),
        ("if <inline-formula><italic>k</italic> = 2</inline-formula> so", "if k = 2 so"),
        ("a<preformat>  x = 1\n\n\tif  x:\n</preformat>b<code>y\n z</code>",
         "a\n\n  x = 1\n\n        if  x:\n\nb\n\ny\n z"),
        ("a<break/>b<hr/>c<index-term><term>no</term></index-term>", "a b c"),
        ("Thanks to <funding-source>NIH</funding-source>. <mixed-citation><name><surname>Orr</surname></name>, "
         "<year>2000</year>.</mixed-citation>", "Thanks to NIH. Orr, 2000."),
        ("a<list><list-item><label>1.</label><p>b</p></list-item></list><speech><speaker>Q:</speaker><p>c</p></speech>",
         "a\n\n1. b\n\nQ: c"),
    ],
)  # fmt: skip
def test_no_hole_in_a_sentence(content: str, expected: str) -> None:
    assert paragraph(content) == expected


def test_boilerplate_goes() -> None:
    lines = ("Click here for file", "Click here for additional data file.", "(Click here to view.)", "(0.03 MB DOC)",
             "Click here for additional data file. (1.2MB, pdf)", "(XLSX)",
             "Pre-publication history", "The pre-publication history for this paper can be accessed here:")  # fmt: skip
    stays = ("Click here for file and read on, as others did", "(CI)", "(A DOC)")
    body = "".join(f"<p>{line}</p>" for line in (*lines, *stays))
    assert text_of(article(body)).split("\n\n")[1:] == list(stays)


def test_title_and_subtitle_are_a_line() -> None:
    title = (
        '<article-title>Main<xref ref-type="fn">*</xref><xref ref-type="aff">1</xref>{}</article-title><subtitle>A '
        "<italic>trial</italic></subtitle><trans-title-group><trans-title>T</trans-title></trans-title-group>"
    )
    for end, expected in {"": "Main: A trial", ":": "Main: A trial", "?": "Main? A trial"}.items():
        assert text_of(article("<p>x</p>", title.format(end))) == f"{expected}\n\nx"


def test_what_stands_behind_the_body_is_a_switch() -> None:
    names = ("ack", "sec", "app-group", "glossary", "notes", "fn-group", "bio", "ref-list")
    back = f"<back>{''.join(f'<{name}><p>{name}</p></{name}>' for name in names)}</back>"
    floats = "<floats-wrap><fig><caption><p>F.</p></caption></fig></floats-wrap>"
    content = article("<p>Body.</p>", others=back + floats)
    expected = {"none": (), "text": names[:5], "all": names[:7]}
    for key in BACK:
        assert text_of(content, key).split("\n\n")[2:] == [*expected[key], "F."]
    with pytest.raises(BadInput, match=r"--back-matter = .yes., but it must be one of none, text, all"):
        Pmc(back_matter="yes")


def test_entities_by_name() -> None:
    for doctype in ("", '<!DOCTYPE article SYSTEM "x.dtd">', '<?xml version="1.0"?>\n'):
        assert text_of(doctype + article("<p>A&nbsp;B &alpha;-<bold>&agr;</bold>&mdash;</p>")) == "Title\n\nA B α-α—"
        with pytest.raises(BadInput, match=r"a\.nxml, line \d: the entity &nosuch; is not defined by HTML"):
            text_of(doctype + article("<p>&nosuch;</p>"))


def test_envelopes() -> None:
    """Several articles in one file; an article that cannot be read does not affect the others."""
    articles = [article(f"<p>Body {number}.</p>", number=number) for number in (1, 2, 3)]
    articles[1] = articles[1].replace("article-id", "id")
    fetched = f"<pmc-articleset>{''.join(articles)}</pmc-articleset>"
    namespaced = [
        one.replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" ') for one in articles
    ]
    records = "".join(f"<record><header/><metadata>{one}</metadata></record>" for one in namespaced)
    gone = '<record><header status="deleted"><identifier>oai:pubmedcentral.nih.gov:77</identifier></header></record>'
    oai = f'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords>{records}{gone}</ListRecords></OAI-PMH>'
    for content, deletions in ((fetched, []), (oai, [Dropped("deletions", "pmcid:PMC77")])):
        *deleted, first, bad, last = read(content)
        assert deleted == deletions
        assert isinstance(first, Document) and (first.id, first.text) == ("pmcid:PMC1", "Title\n\nBody 1.")
        assert isinstance(bad, Bad) and bad.place == "line 1" and "no <article-id> with a PMC number" in bad.problem
        assert isinstance(last, Document) and last.text == "Title\n\nBody 3."
    assert text_of(namespaced[0]) == "Title\n\nBody 1."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<pmc-articleset/>", "articles that efetch gave without a JATS <article>"),
        ('<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><error code="x">no such record</error></OAI-PMH>',
         "an answer of OAI-PMH without a JATS <article>: no such record; with OAI-PMH, ask for metadataPrefix=pmc"),
        ("<html/>", "root element <html>, not a JATS <article>, <pmc-articleset>, <OAI-PMH>"),
        ("<article><p/></article>", "an <article> without <article-meta>"),
    ],
)  # fmt: skip
def test_what_holds_no_article_is_named(content: str, message: str) -> None:
    with pytest.raises(BadInput, match=rf"a\.nxml.*{re.escape(message)}"):
        read(content)


def test_no_sign_of_ours_comes_out() -> None:
    """With blocks inside scripts and links, the private signs around them are on different lines."""
    nested: Any = (
        "<sup>a<p>b</p>c</sup><xref ref-type='bibr'>1<list><list-item>2</list-item></list></xref><sub><fig/></sub>"
    )
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", text_of(article(f"<p>{nested}</p>{nested}")))

"""The text of PubMed records equals the XML word by word, except for changes by the rules."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from copy import deepcopy
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.files.inputs import reading
from data_prep.filtering import corpus_format
from data_prep.filtering.build_corpus import build_corpus
from data_prep.filtering.corpus_format import SPLITS
from data_prep.sources import medline, sample
from data_prep.sources.document import Bad, Document, Dropped, Entry
from data_prep.sources.mathml import MATH, math_text
from data_prep.sources.medline import KINDS, Medline
from data_prep.sources.medline_text import says_nothing, text_of, without_notice
from words import BORDER, Fault, Markup, faults, pieces

HEAD = (
    '<?xml version="1.0"?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n'
)
MML = 'xmlns:mml="http://www.w3.org/1998/Math/MathML"'
INLINE = ("i", "b", "u", "sub", "sup")


def record(pmid: int, abstract: str = "Text.", title: str = "Title.", version: str = "1", others: str = "") -> str:
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article>'
        f"<ArticleTitle>{title}</ArticleTitle><Abstract><AbstractText>{abstract}</AbstractText></Abstract></Article>"
        f"{others}</MedlineCitation></PubmedArticle>"
    )


def written(path: Path, *records: str) -> Path:
    path.write_bytes(gzip.compress(f"{HEAD}<PubmedArticleSet>\n{''.join(records)}</PubmedArticleSet>".encode()))
    return path


def entries(source: Medline, path: Path) -> list[Entry]:
    (file,) = source.find([str(path)])
    with reading(file) as stream:
        return list(source.read(file, stream))


def line(inner: str) -> str:
    return text_of(etree.fromstring(f"<AbstractText {MML}>{inner}</AbstractText>"))


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("10<sup>6</sup> cells, 2.5 × 10<sup>-3</sup> M", "10^6 cells, 2.5 × 10^-3 M"),
        ("10<sup><i>6</i></sup> and <b>10</b><sup>7</sup>", "10^6 and 10^7"),
        ("mol L<sup>-1</sup>, <sup>131</sup>I, Ca<sup>2+</sup>, 5 cm<sup>2</sup>", "mol L-1, 131I, Ca2+, 5 cm2"),
        ("log<sub>10</sub>2, R<sup>2</sup><sub>365</sub>, H<sub>2</sub>O", "log10 2, R2 365, H2O"),
        # Headings in bold, which count as inline for the author of the XML.
        ("<b>Patient: Male, 50</b><b>Diagnosis: Mass</b>", "Patient: Male, 50 Diagnosis: Mass"),
        ("as new ones.<b>Results:</b>We saw <b>L</b><b>1</b>", "as new ones. Results: We saw L1"),
        ("<b>ABSTRACT</b>Mice. <b>R-BOD</b>s and <b>1</b>Cl", "ABSTRACT Mice. R-BODs and 1Cl"),
        ("Phys. Biol.<b>65</b>055004", "Phys. Biol.65 055004"),
        # Markup that was escaped twice.
        ("&lt;i&gt;E. coli&lt;/i&gt; in H&lt;sub&gt;2&lt;/sub&gt;O", "E. coli in H2O"),
        ("10&lt;sup&gt;6&lt;/sup&gt; &amp;lt;b&amp;gt;M&amp;lt;/b&amp;gt;", "10^6 M"),
        ("&lt;p class=&quot;x&quot;&gt;One&lt;/p&gt;&lt;p&gt;two&lt;br/&gt;three&lt;/p&gt;", "One two three"),
        ("x &amp;lt; y &amp;#946;-cell &amp;#x3b2; &amp;nbsp;end", "x < y β-cell β end"),
        ("a &amp;amp; AT&amp;T; R&amp;D", "a & AT&T; R&D"),
        ("P&lt;0.001 and r&gt;0.5 in <i>n</i>&lt;20 mice", "P<0.001 and r>0.5 in n<20 mice"),
        ("if a&lt;b and c&gt;d, or a&lt;b&gt;c, or &lt;i&gt; alone", "if a<b and c>d, or a<b>c, or <i> alone"),
        ("&lt;script&gt;x&lt;/script&gt;", "<script>x</script>"),
        (f"by<DispFormula><mml:math {MML}><mml:mi>k</mml:mi></mml:math></DispFormula>where", "by k where"),
        (f"by<DispFormula><mml:math {MML}><mml:mi>k</mml:mi></mml:math></DispFormula>.", "by k."),
    ],
)  # fmt: skip
def test_markup_as_it_is_read(xml: str, expected: str) -> None:
    assert line(xml) == expected


NOTICES = (
    " This article is protected by copyright. All rights reserved.",
    " (PsycInfo Database Record (c) 2021 APA, all rights reserved).",
    " © 2021 The Pathological Society of Great Britain and Ireland. Published by John Wiley & Sons, Ltd.",
    " © 2021 23andMe, Inc. The Journal of Pathology published by John Wiley & Sons, Ltd. on behalf of The Society.",
    " Copyright © 2020 Elsevier B.V. All rights reserved.",
    " Copyright 2004 S. Karger AG, Basel.",
    " (c) 2019 J. Orr. This is an open access article under the CC BY licence.",
    " © RSNA, 2021 Supplemental material is available for this article. See also the editorial by Orr in this issue.",
)
NO_NOTICES = (
    "The PROM© score of 9 is low.",
    "The authors agree that the copyright of their article is transferred to the publishers.",
    "We used the scale © 2006. It is valid.",
    "It holds for (a) mice, (b) rats and (c) 1999 rabbits. All were fed.",
    "It was so. © 2021 Elsevier. CONCLUSION: The drug works.",
)


@pytest.mark.parametrize("notice", NOTICES)
def test_a_notice_of_copyright_at_the_end_is_no_text(notice: str) -> None:
    assert without_notice(f"It works.{notice}") == "It works."
    assert without_notice(f"It {'works ' * 200}well.{notice}") == f"It {'works ' * 200}well."
    assert without_notice(notice.strip()) == ""


@pytest.mark.parametrize("text", NO_NOTICES)
def test_what_only_resembles_a_notice_stays(text: str) -> None:
    assert without_notice(text) == text


def test_a_notice_is_looked_for_in_bounded_time() -> None:
    for word in ("licence ", "a. A ", "A. a ", "© 2021 A. A ", "copyright © "):
        text = f"© 2021 {word * 5_000}. End here"
        assert without_notice(text) == text


@pytest.mark.parametrize("text",
    ["", ".", "-", "[Not Available].", "Not available.", "N/A.", "No abstract available.", "[No abstract available]",
     "* *", "ABSTRACT NOT AVAILABLE", "There is no abstract available.", "No abstract.", "No title available.",
     "None."],
)  # fmt: skip
def test_placeholders_are_no_text(tmp_path: Path, text: str) -> None:
    assert says_nothing(text)
    path = written(tmp_path / "a.xml.gz", record(1, abstract=text), record(2, title=text))
    assert entries(Medline(), path) == [
        Dropped("without abstract", "pmid:1"),
        Document("pmid:2", "Text.", "PubMed Abstracts", None, None),
    ]


@pytest.mark.parametrize("text", ["Not available data were imputed.", "A.", "None of them.", "No abstract idea.", "7"])
def test_few_words_are_text(text: str) -> None:
    assert not says_nothing(text)


def test_named_entities_are_characters_and_unknown_ones_are_bad(tmp_path: Path) -> None:
    good = record(1, abstract="x &beta;<i>&thinsp;&nbsp;y</i> &half; &lt;", title="A&nbsp;B &alpha; &mdash;")
    first, second = entries(Medline(), written(tmp_path / "a.xml.gz", good, "\n", record(2, abstract="&bogus;")))
    assert isinstance(first, Document) and first.text == "A B α —\nx β y ½ <"
    assert isinstance(second, Bad) and second.place == "record at line 5"
    assert "a.xml.gz, line 5: the entity &bogus; is not defined by HTML" in second.problem


def test_books_are_read_and_other_records_counted(tmp_path: Path) -> None:
    book = (
        '<PubmedBookArticle><BookDocument><PMID Version="1">7</PMID><Book><BookTitle>Reviews</BookTitle><PubDate>'
        "<Year>1993</Year></PubDate><AuthorList><Author/></AuthorList></Book>{}<Language>eng</Language><Abstract>"
        "<AbstractText>It is rare.</AbstractText></Abstract></BookDocument><PubmedBookData/></PubmedBookArticle>"
    )
    chapter = book.format("<ArticleTitle>A syndrome</ArticleTitle>")
    path = written(
        tmp_path / "a.xml.gz",
        *("<Other><PMID>9</PMID></Other>", record(1), chapter, book.format("").replace(">7<", ">8<"), "<Other/>"),
        '<DeleteDocument><PMID Version="1">5</PMID></DeleteDocument>',
    )
    text = "PubMed Abstracts"
    assert Counter(entries(Medline(), path)) == Counter([
        Document("pmid:1", "Title.\nText.", text, None, None),
        Document("pmid:7", "A syndrome\nIt is rare.", text, None, "1993"),
        Document("pmid:8", "Reviews\nIt is rare.", text, None, "1993"),
        Dropped("deletions", "pmid:5"),
        *2 * [Dropped("records <Other>")],
    ])  # fmt: skip


def test_other_abstracts_are_read_by_their_language(tmp_path: Path) -> None:
    other = '<OtherAbstract Type="Publisher" Language="{}"><AbstractText>{}</AbstractText></OtherAbstract>'
    others = "".join(other.format(*one) for one in (("spa", "Texto."), ("fre", "Texte."), ("spa", "Not available.")))
    path = written(tmp_path / "a.xml.gz", record(1, others=others), record(2, abstract="", others=others))

    def texts(languages: str | None) -> list[str]:
        return [
            entry.text for entry in entries(Medline(other_abstracts=languages), path) if isinstance(entry, Document)
        ]

    assert texts(None) == ["Title.\nText."]
    assert texts("spa") == ["Title.\nText.\n\nTexto.", "Title.\nTexto."]
    assert texts("fre,spa") == ["Title.\nText.\n\nTexto.\n\nTexte.", "Title.\nTexto.\n\nTexte."]


def test_the_highest_version_counts_that_was_not_deleted(tmp_path: Path) -> None:
    deletions = "".join(
        f'<PMID Version="{version}">{pmid}</PMID>' for pmid, version in ((2, 2), (3, 1), (4, 2), (4, 1))
    )
    written(
        tmp_path / "1.xml.gz",
        *(record(pmid, f"Of version 2 of {pmid}.", version="2") for pmid in (1, 2, 3, 4, 5)),
        *(record(pmid, f"Of version 1 of {pmid}.") for pmid in (1, 2, 3, 4)),
        record(5, "No abstract available.", version="3"),
    )
    written(
        tmp_path / "2.xml.gz",
        record(1, "Of version 1 of 1, revised."),
        record(2, "Of version 1 of 2, revised."),
        f"<DeleteCitation>{deletions}</DeleteCitation>",
        *(record(pmid, f"Filler {pmid}.") for pmid in range(10, 40)),
    )
    manifest = build_corpus({"medline": (Medline(), [str(tmp_path)])}, tmp_path / "corpus", 0.5)
    texts = {d.id: d.text for split in SPLITS for d in corpus_format.read_documents(tmp_path / "corpus", split)}
    assert {id: text for id, text in texts.items() if "Filler" not in text} == {
        "pmid:1": "Title.\nOf version 2 of 1.",
        "pmid:2": "Title.\nOf version 1 of 2, revised.",
        "pmid:3": "Title.\nOf version 2 of 3.",
    }
    # 46 entries: 33 documents; three others of PMID 1, two of 2, one each of 3 and 5, and two of 4
    assert manifest["dropped"] == {"deletions": 4, "superseded": 8, "without abstract": 1}
    (bad,) = entries(Medline(), written(tmp_path / "3.xml.gz", record(6, version="x")))
    assert bad == Bad("line 4", "PMID 6 with the Version 'x'")


def test_no_word_is_glued_or_split_at_any_border() -> None:
    """Elements beside and inside each other, with and without white space at their borders."""
    markup = Markup(inline=INLINE)
    forms = (
        *("w<{0}>x</{0}>y<{1}>z</{1}>v", "w <{0}>x </{0}> <{1}> z</{1}> v", "w<{0}>x<{1}>y</{1}>z</{0}>v"),
        *("<{0}>x</{0}><{1}>y</{1}>", "<{0}><{1}>x</{1}></{0}>y"),
        *("1<{0}>2</{0}><{1}>3</{1}>4", "1<{0}>2<{1}>3</{1}></{0}>"),
    )  # fmt: skip
    for form, *names in product(forms, INLINE, INLINE):
        if "1<" in form and "b" in names:
            continue  # a volume in bold, and the page after it
        element = etree.fromstring(f"<AbstractText>{form.format(*names)}</AbstractText>")
        assert not faults(pieces(element, markup), text_of(element)), form.format(*names)


# Differences between text and XML in the second file of the sample, by rule. All other words are equal.
EXPLAINED = {
    None: Counter(notices=1572, headings=218, escaped=59),
    1_200: Counter(notices=205, headings=21, escaped=8),
}
MARKUP = Markup(inline=INLINE)


def rule_of(fault: Fault, element: Any, xml: str) -> str | None:
    """The rule that explains why a word differs from the XML."""
    last = xml[-300:]
    if fault.kind == "lost" and re.search(r"©|copyright|\(c\) 2", last) and fault.words[1:-1] in last:
        return "notices"
    if fault.kind == "split" and any(bold in fault.words for bold in bolds(element)):
        return "headings"
    return "escaped" if "&" in xml or "</p>" in xml else None


def with_formulas(part: Any) -> Any:
    """The element with each formula replaced by the output of `math_text`, which has its own tests."""
    changed = deepcopy(part)
    for formula in changed.iter(MATH):
        line, tail = math_text(formula), formula.tail
        formula.clear()
        formula.tag, formula.text, formula.tail = "i", line, tail
    return changed


def bolds(element: Any) -> list[str]:
    """First words of bold parts, and of the texts after them."""
    texts = [text for bold in element.iter("b") for text in ("".join(bold.itertext()), bold.tail or "")]
    return [text.split()[0].rstrip(":") for text in texts if text.strip(" :")]


@pytest.mark.parametrize("records", [1_200, pytest.param(None, id="all", marks=pytest.mark.chaos)])
def test_every_word_of_a_real_record_is_there_or_explained(records: int | None) -> None:
    (file,) = Medline().find(sample.paths(".xml.gz")[1:])
    explained, documents = Counter[str](), 0
    kind = KINDS["PubmedArticle"]
    with reading(file) as stream:
        for element in islice(medline.citations(stream, file.url), records):
            entry = Medline()._entry(element, kind) if element.tag in KINDS else None
            if isinstance(entry, Document):
                documents += 1
                parts = [*kind.titles(element), *kind.sections(element)]
                expected = [piece for part in parts for piece in [*pieces(with_formulas(part), MARKUP), BORDER]]
                xml = "".join("".join(part.itertext()) for part in parts)
                for fault in faults(expected, entry.text):
                    rule = rule_of(fault, element, xml)
                    assert rule, f"{entry.id}: {fault}"
                    explained[rule] += 1
    assert documents > (18_000 if records is None else 0.8 * records)
    assert explained == EXPLAINED[records]

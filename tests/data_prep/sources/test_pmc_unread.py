"""An article has the same text whether its unread parts are cut out before parsing or not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.sources import pmc_article, pmc_text, sample
from data_prep.sources.pmc_unread import UNREAD, parse_article, without_unread
from hunting import hunt
from mutations import Draw

# Contents of a part and its surroundings: everything that may hide a tag, or look like a tag.
PIECES = (
    "word", " ", "\n", "<p>one</p>", "<td/>", "<b>", "</b>", "/>", ">", "?>", "-->", "]]>", "&amp;", "&#8211;",
    "&nbsp;", "&unknown;", "&alpha;", "<!-- x -->", "<!-- <table> -->", "<!-- </table> -->", "<!--",
    "<![CDATA[<table>]]>", "<![CDATA[</table>]]>", "<![CDATA[a < b]]>", "<?x y?>", "<?x <table>?>", "<?x </table>?>",
    "<?x", "<table/>", "<table a='>'/>", '<table a="</p>">', "<table\n>", "<table>", "</table>", "</table >",
    "<ref-list>", "</ref-list>", "<ref-list/>", "<table-wrap-foot>", "</table-wrap-foot>", "<table-wrap>",
    "</table-wrap>", "<disp-formula>", "</disp-formula>", "<tex-math>$x$</tex-math>", "<xref ref-type='bibr'>",
    "</xref>", "<preformat>", "</preformat>", "<inline-formula>", "</inline-formula>", "<x:table>", "</x:table>",
    "<d xmlns='urn:other'>", "</d>", "<DOCTYPE>", "<mml:math><mml:mi>x</mml:mi></mml:math>",
)  # fmt: skip
WRAPPED = (
    "p", "table", "table-wrap", "ref-list", "disp-formula", "table-wrap-foot", "xref", "preformat", "code", "license",
    "inline-formula", "alternatives", "mml:math", "tex-math", "b",
)  # fmt: skip
PROLOGS = (
    "", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-8"?>\n<!-- <table> -->\n<!DOCTYPE article>',
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS//EN" "j.dtd">', "<!DOCTYPE article [<!ENTITY unknown 'x <table>'>]>",
    "<!DOCTYPE article [<!ENTITY unknown 'known'>]>",
)  # fmt: skip


def article(body: str, back: str = "", prolog: str = "", permissions: str = "") -> bytes:
    return (
        f'{prolog}<article xmlns:mml="http://www.w3.org/1998/Math/MathML" xmlns:x="urn:x"><front><article-meta>'
        f'<article-id pub-id-type="pmc">42</article-id><permissions>{permissions}</permissions></article-meta></front>'
        f"<body><p>First.</p>{body}<p>Last.</p></body><back>{back}</back></article>"
    ).encode()


def read(xml: bytes, whole: bool) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pmc_article, "parse_article", lambda xml, **_: parse_article(xml, whole))
        try:
            return repr(list(pmc_article.read_articles(io.BytesIO(xml), "a.nxml", "all")))
        except BadInput as error:
            return str(error)


def filling(draw: Draw, depth: int) -> str:
    """Pieces, and elements that contain pieces, so that most of it is valid XML."""
    text = ""
    for _ in range(draw(st.integers(0, 3))):
        if depth and draw(st.integers(0, 2)):
            name = draw(st.sampled_from(WRAPPED))
            text += f"<{name}>{filling(draw, depth - 1)}</{name}>"
        else:
            text += draw(st.sampled_from(PIECES))
    return text


def difference(draw: Draw) -> list[str]:
    xml = article(filling(draw, 3), filling(draw, 2), draw(st.sampled_from(PROLOGS)), filling(draw, 1))
    cut, uncut = read(xml, False), read(xml, True)
    return [xml.decode(), cut, uncut] if cut != uncut and "not XML" not in uncut else []


def test_generated_articles_are_the_same() -> None:
    hunt(difference, examples=200)


HIDDEN = (  # each makes text look like a part that is cut out
    "<table><!--</table>kept<table>--></table>",
    "<table>/><!--</table>kept<table>--></table>",
    "<table>/><?a </table>kept<table>?></table>",
    "<table><?a </table>kept<table>?></table>",
    "<table>?><?a </table>kept<table>?></table>",
    "<table><![CDATA[</table>]]>kept<table>]]></table>",
    "<!--<table>-->kept<table>1</table>",
    "<![CDATA[<table>kept</table>]]>",
    "<table/>kept<table>1</table>",
    "<table a='>'/>kept<table>1</table>",
    "<table a=\"'>'/\">1</table>kept<table>1</table>",
    "<table><tr><td><table>1</table>kept</td></tr></table>kept",
    "<table><tr><td><table/></td></tr></table>kept",
    "<table>1</table >kept<table>1</table>",
    "<table>1</table\n>kept",
    "<d xmlns='urn:other'><table>kept</table></d>",
    "<preformat>a<table>kept</table></preformat>",
    "<xref ref-type='bibr'>1<table>a word</table></xref>",
    "<inline-formula><table><tex-math>$x$</tex-math></table><mml:math><mml:mi>y</mml:mi></mml:math></inline-formula>",
    "<x:table>kept</x:table>",
    "<table>&unknown;</table>",
    "<table>&nbsp;</table>&beta;",
    "<ref-list><ref><table>1</table></ref><?supplied-pmid 7?></ref-list>kept",
)


@pytest.mark.parametrize("body", HIDDEN)
def test_what_looks_like_a_part_and_is_none(body: str) -> None:
    xml = article(f"<p>{body}</p>")
    assert read(xml, False) == read(xml, True)


@pytest.mark.parametrize("sign", [b"<!--", b"<![CDATA[", b"<?", b"<table>", b"<table><?", b"<table><!--"])
def test_what_never_ends_takes_no_square_of_time(sign: bytes) -> None:
    """Two megabytes of the sign; a time that grows with the square of the length would be hours."""
    xml = b"<article><body><p>" + sign * (2_000_000 // len(sign))
    assert without_unread(xml) == (xml, 0)


def test_damage_that_swallows_text_between_parts_is_seen() -> None:
    xml = article("<p><table><tr><td>1</td></tr></table>kept<table><tr><td>1</td></tr></table></p>")
    begin, end = xml.index(b"1</td>"), xml.rindex(b"1</td>")
    with pytest.raises(BadInput, match="not XML"):
        list(pmc_article.read_articles(io.BytesIO(xml[:begin] + xml[end + 8 :]), "a.nxml", "text"))


def test_articles_inside_others_are_read_as_before() -> None:
    inner = article("")
    xml = b"<pmc-articleset>" + inner + b"<table>" + inner.replace(b">42<", b">43<") + b"</table></pmc-articleset>"
    assert "PMC43" in read(xml, False) == read(xml, True)


def test_comments_and_instructions_do_not_keep_parts() -> None:
    xml = article("<!-- <table> --><p><?x <table>?><![CDATA[<table>]]><table>1<?y?></table></p>")
    assert without_unread(xml)[1] == 1
    assert read(xml, False) == read(xml, True)


def test_lines_keep_their_numbers() -> None:
    xml = article("\n<p><table>\n<tr>\n</tr>\n</table>\n&unknown;</p>", prolog="<!DOCTYPE article SYSTEM 'x'>")
    assert without_unread(xml)[1] == 1
    assert "line 6: the entity &unknown;" in read(xml, False) == read(xml, True)


def test_encodings_of_other_bytes_are_parsed_whole() -> None:
    text = article(
        "<p><table>\N{HIRAGANA LETTER A}</table>kept</p>", prolog='<?xml version="1.0" encoding="E"?>'
    ).decode()
    for encoding in ("iso-2022-jp", "utf-16", "shift_jis", "utf-8"):
        xml = text.replace('"E"', f'"{encoding}"').encode(encoding)
        assert read(xml, False) == read(xml, True) and "kept" in read(xml, False)
    # Between ~{ and ~}, two bytes are one character.
    xml = article("<p><table>~{</table>KK<table>x~}1</table>kept</p>", prolog='<?xml version="1.0" encoding="HZ"?>')
    assert read(xml, False) == read(xml, True) and "kept" in read(xml, False)


@pytest.mark.parametrize("path", sample.paths(".nxml"), ids=lambda path: Path(path).stem)
def test_real_articles_are_cut_and_the_same(path: str) -> None:
    xml = Path(path).read_bytes()
    shorter, count = without_unread(xml)
    root = parse_article(xml, whole=False)
    assert count and len(shorter) < 0.75 * len(xml)
    assert len(list(root.iter())) < len(list(parse_article(xml, whole=True).iter()))
    assert read(xml, False) == read(xml, True)


def test_what_is_cut_out_is_left_out_by_the_reader() -> None:
    assert set(UNREAD) < set(pmc_text.DROPPED)

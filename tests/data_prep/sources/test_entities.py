"""Named entities are replaced if they are defined, and otherwise refused with line and name."""

from __future__ import annotations

import unicodedata

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.bounds import ENTITY_CHARACTERS
from data_prep.common.errors import BadInput
from data_prep.sources.entities import DOCTYPE, GREEK, replace_entities, with_doctype


def replaced(content: str, declared: str = "") -> str:
    doctype = f'<!DOCTYPE x SYSTEM "far.dtd" [{declared}]>' if declared else ""
    xml = with_doctype(f'<?xml version="1.0"?>\n<!-- a - b -->\n{doctype}<x>\n{content}</x>'.encode())
    root = etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True))
    replace_entities(root, "a.xml")
    return "".join(root.itertext())[1:]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("A&nbsp;B &alpha;-cell &mdash; &lt;i&gt;", "A\u00a0B α-cell — <i>"),
        ("<b>&agr;&beta;</b>&OHgr;<i>x</i>&idiagr;&EEacgr;y&b.Delta;", "αβΩxΐΉyΔ"),
        ("&fflig;&thinsp;&le;&rarr;<i/>&Scaron;&emsp14;", "ﬀ\u2009≤→Š\u2005"),
        ("&own; and &nested;", "mine &amp; <yours and mine &amp; <yoursα\u2003!"),
    ],
)
def test_names_are_replaced(content: str, expected: str) -> None:
    declared = '<!ENTITY own "mine &#38;amp;amp; &lt;yours"><!ENTITY nested "&own;&agr;&emsp;!">'
    assert replaced(content, declared) == expected
    if "own" not in content:
        assert replaced(content) == expected


def test_greek_names_have_greek_letters() -> None:
    for name, letter in GREEK.items():
        letter_name = unicodedata.name(letter)
        assert letter_name.startswith("GREEK") and ("CAPITAL" in letter_name) == name[0].isupper(), name


@pytest.mark.parametrize(
    ("content", "declared", "message"),
    [
        ("a\n&nosuch; b", "", r"a\.xml, line \d: the entity &nosuch; is not defined by HTML"),
        ("&file;", '<!ENTITY file SYSTEM "file:///etc/passwd">', "&file; is a file"),
        ("&bold;", '<!ENTITY bold "<b>x</b>">', "&bold; is markup"),
        ("&outer;", '<!ENTITY outer "&inner;">', "&outer; is not defined"),
        (
            "y" * 1_000_000 + "&long;" * 2_000,
            f'<!ENTITY long "{"x" * 1_000}">',
            f"more than {ENTITY_CHARACTERS:,} characters",
        ),
    ],
)
def test_what_nobody_says_is_refused(content: str, declared: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replaced(content, declared)


def test_a_hundred_thousand_entities_are_replaced() -> None:
    """Replacing the entities one after the other would copy the text once for each of them."""
    assert replaced("&alpha;b" * 100_000) == "αb" * 100_000


@pytest.mark.parametrize("prolog", [b"", b"\xef\xbb\xbf", b"<?xml version='1.0'?>\n<?a b?>", b"<!-- <x> -->\n"])
def test_a_doctype_is_put_where_there_is_none(prolog: bytes) -> None:
    assert with_doctype(prolog + b"<x/>") == prolog + DOCTYPE + b"<x/>"
    for others in (b"<!DOCTYPE x><x/>", b"plain", b"", "<x/>".encode("utf-16"), b" " * 100_000):
        assert with_doctype(prolog + others) == prolog + others

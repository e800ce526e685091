"""Superscript and subscript numbers stay separate from their neighbours, and the check by words finds every error."""

from __future__ import annotations

import re
from itertools import product

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.sources.markup import DIGITS_AFTER, LOWERED, POWER, RAISED, SCRIPT_END, SIGNED_NUMBER, numbers_apart
from data_prep.sources.mathml import math_text
from words import Markup, faults, pieces

MARKUP = Markup(
    inline={"i", "sub", "sup", "xref"},
    lost={"xref": "marks of citations", "formula": "formulas"},
    moved={"fig"},
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("10<6> cells, 10<-3> M, 10<−8>M, 10< 6>", "10^6 cells, 10^-3 M, 10^−8M, 10^ 6"),
        ("<131>I, Ca<2+>, cm<2>, 5<a>, 2<nd>, <5>", "131I, Ca2+, cm2, 5a, 2nd, 5"),
        ("log[10]2, mc<2>7000, H[2]<18>O, CO[2]H, 5[]6", "log10 2, mc2 7000, H2^18O, CO2H, 56"),
        ("χ<2>[3] and x[1]<2>", "χ2 3 and x1^2"),
        ("10<<6>> and [2[3]]4", "10^6 and 23 4"),
        ("R<2>[365]", "R2 365"),
        ("no script", "no script"),
    ],
)
def test_numbers_that_are_raised_or_lowered_stay_apart(line: str, expected: str) -> None:
    signs = {"<": RAISED, "[": LOWERED, ">": SCRIPT_END, "]": SCRIPT_END}
    assert numbers_apart("".join(signs.get(sign, sign) for sign in line)) == expected


def test_the_patterns_say_what_their_plain_forms_say() -> None:
    """The plain forms begin with the character before the match, so they are tried at every character."""
    power = re.compile(rf"(?<=\d){SCRIPT_END}*{RAISED}+(?={SIGNED_NUMBER})")
    digits_after = re.compile(rf"(?<=\d){SCRIPT_END}+{LOWERED}*(?=\d)")
    for length in range(1, 6):
        for signs in product("1a-", *[f"1-{RAISED}{LOWERED}{SCRIPT_END}"] * (length - 1), "1a-"):
            line = "".join(signs)
            assert POWER.sub("^", line) == power.sub("^", line)
            assert DIGITS_AFTER.sub(" ", line) == digits_after.sub(" ", line)


@pytest.mark.parametrize(
    ("xml", "text", "expected"),
    [
        ("by<formula>k</formula>where <i>k</i> is", "by where k is", []),
        ("by<formula>k</formula>where <i>k</i> is", "by k where k is", []),
        ("by<formula>k</formula>where <i>k</i> is", "bywhere k is", ["glued: 'bywhere' for 'by where'"]),
        ("by<formula>k</formula>.", "by.", []),
        ("<b>50</b><b>Mass</b>", "50Mass", ["glued: '50Mass' for '50 Mass'"]),
        ("<i>E.</i> <i>coli</i>", "E.coli", ["glued: 'E.coli' for 'E. coli'"]),
        ("<i>h</i>er2", "h er2", ["split: 'h er2' for 'her2'"]),
        ("one <xref>[1-3]</xref>. Two", "one. Two", []),
        ("one <xref>[1-3]</xref>. Two", "one [1-3]. Two", []),
        ("one <xref>[1-3]</xref>. Two", "one [. Two", ["lost: 'one.'", "added: 'one'", "added: '[.'"]),
        ("Cells<xref>1</xref>and", "Cells and", []),
        ("Cells<xref>1</xref>and", "Cellsand", ["glued: 'Cellsand' for 'Cells and'"]),
        ("two of <xref>3</xref> words", "two words", ["lost: 'of'"]),
        ("two words", "two three words", ["added: 'three'"]),
        ("now<fig>The caption.</fig>and then", "now and then The caption.", []),
        ("now<fig>The caption.</fig>and then", "nowand then The caption.", ["glued: 'nowand' for 'now and'"]),
        ("now<fig>The caption.</fig>and then", "now and then Thecaption.", ["glued: 'Thecaption.' for 'The caption.'"]),
        ("one two <b>three</b>", "three one two", ["moved: 'three'"]),
        ("10<sup>6</sup> of log<sub>10</sub>2", "10^6 of log10 2", []),
        ("10<sup>6</sup> of", "106 of", ["lost: '10^6'", "added: '106'"]),
    ],
)
def test_the_oracle_sees_what_is_wrong(xml: str, text: str, expected: list[str]) -> None:
    reported = faults(pieces(etree.fromstring(f"<p>{xml}</p>"), MARKUP), text)
    assert [f"{fault.kind}: {fault.words}" for fault in reported] == expected
    assert all(fault.place.startswith(("line 1, p", "in '")) for fault in reported)


@pytest.mark.parametrize(
    ("mathml", "expected"),
    [
        ("<mi>k</mi>\n <mo>=</mo><mn>2</mn>", "k=2"),
        ("<msup><mn>10</mn><mrow><mo>−</mo><mn>6</mn></mrow></msup><mi>x</mi>", "10^−6x"),
        ("<mfrac><mn>1</mn><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow></mfrac>", "1/(a+b)"),
        ("<mi>sin</mi><mo>\u2061</mo><mi>x</mi><mo>\u2062</mo><mi>y</mi><mn>1</mn><mn>2</mn>", "sin xy1 2"),
        ("<msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt><mroot><mi>y</mi><mn>3</mn></mroot>", "√(x+1)√y^(1/3)"),
        ("<semantics><mi>x</mi><annotation>x_1</annotation></semantics><mtext>if  so</mtext>", "x if so"),
        ("<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup><mover><mi>y</mi><mo>¯</mo></mover>", "x_i^2y¯"),
        ("<mfenced open='['><mi>a</mi><mi>b</mi></mfenced>", "[a,b)"),
        (
            "<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr><mtd><mi>c</mi></mtd></mtr></mtable>",
            "a b c",
        ),
        ("", ""),
    ],
)
def test_mathml_is_a_line(mathml: str, expected: str) -> None:
    assert math_text(etree.fromstring(f'<math xmlns="http://www.w3.org/1998/Math/MathML">{mathml}</math>')) == expected

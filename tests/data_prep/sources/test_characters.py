"""Invisible characters are removed in any context, and visible characters are kept."""

from __future__ import annotations

import random
import sys
import unicodedata
from itertools import product
from pathlib import Path

import pytest

from data_prep.filtering import corpus_format, spool
from data_prep.filtering.build_corpus import build_corpus
from data_prep.sources import characters, document
from data_prep.sources.characters import RULES, cleaned, readings
from data_prep.sources.text import Text


@pytest.mark.parametrize(
    ("text", "expected", "rule"),
    [
        ("a\r\nb\rc\x0bd\x85e\u2028f", "a\nb\nc\nd\ne\nf", "line ends"),
        ("pa\x00ti\x08ent\x92s \x96 5", "patient’s – 5", "control characters"),
        ("\ufeffText", "Text", "byte order marks"),
        ("27 \u200b± \u200b11 and \u2060zero\u200bwidth\u200e", "27 ± 11 and zerowidth", "zero-width characters"),
        ("one \u200b \u2060 two\n\u200b three", "one two\nthree", "zero-width characters"),
        ("auf\u200clage, a\u200db", "auflage, ab", "zero-width characters"),
        (
            "co\xadoperate in respira\xad\ntory and myo\xad cytes",
            "cooperate in respiratory and myocytes",
            "soft hyphens",
        ),
        ("The end.\xad\n\nNext", "The end.\n\nNext", "soft hyphens"),
        ("5\u00a0mg, 98\u2009942, a\u3000b", "5 mg, 98 942, a b", "other spaces"),
        ("ﬁbre, aﬄuent, ﬀ, ﬆ", "fibre, affluent, ff, st", "ligatures"),
        ("respira-\ntory and cardio\u2010 \n  vascular", "respiratory and cardiovascular", "hyphens at line ends"),
        ("a long-\nterm one, as long-term", "a long-term one, as long-term", "hyphens at line ends"),
        ("IL-\n6, 2010-\n2012, Smith-\nJones", "IL-6, 2010-2012, Smith-Jones", "hyphens at line ends"),
        ("cafe\u0301, \u212b, \u2126", "café, Å, Ω", "composed characters (NFC)"),
    ],
)
def test_each_rule(text: str, expected: str, rule: str) -> None:
    assert cleaned(text) == (expected, {rule})
    assert cleaned(expected) == (expected, set())


@pytest.mark.parametrize(
    "text",
    [
        "Plain text, of two lines:\n- one\n- two - and three --\n",
        "pre-\nand postoperative", "risk -\nage", "a list-\n\nNext",
        "µg of β₂-agonist ≤ 0.05 ± 1 · “so” – ½ ﬃ"[:-2], "10⁶ cm²", "می\u200cخواهم", "👨\u200d👩 ☺\ufe0f", "दक्‍षिण",
    ],
)  # fmt: skip
def test_what_a_reader_sees_stays(text: str) -> None:
    assert cleaned(text) == (text, set())


def test_every_character_of_unicode_between_letters() -> None:
    """Letters, signs and numbers are never lost, and cleaning a text a second time changes nothing."""
    characters = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) != "Cs" and n != ord("|")]
    for start in range(0, len(characters), 4096):
        some = characters[start : start + 4096]
        text = cleaned("|".join(f"x{character}y" for character in some))[0]
        assert cleaned(text) == (text, set())
        for character, result in zip(some, text.split("|"), strict=True):
            category = unicodedata.category(character)
            if category[0] in "LNPSM" and character != "\u034f" and not "\ufb00" <= character <= "\ufb06":
                assert result == unicodedata.normalize("NFC", f"x{character}y"), character
            elif category in ("Zs", "Zl", "Zp"):
                assert result in ("x y", "x\ny"), character


def test_a_text_that_no_rule_is_asked_about_is_one_that_none_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "\r\x85\x92\xa0\xad\u200b\u200d\ufeff\ufb01\u0301"
    texts = ["".join(signs) for size in range(1, 6) for signs in product("ab-\u2010 \t\n"[:size], repeat=size)]
    texts += ["".join(signs) for signs in product("ab", "ab", "-\u2010", *2 * ["\n \t"], "b", "b")]
    texts += ["".join(signs) for signs in product("a-", f"{odd}é\n", odd, "a\n")]
    results = [cleaned(text) for text in texts]
    monkeypatch.setattr(characters, "_is_odd", lambda _: True)
    assert results == [cleaned(text) for text in texts]
    assert len({rule for _, used in results for rule in used}) == len(RULES)


def test_cuts_of_a_long_text_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    parts = [
        "respira-\ntory",
        "long-term",
        "long-\nterm",
        " ",
        "  ",
        "\n",
        "\u200b",
        "\u200d",
        "\xad",
        "\ufeff",
        "e\u0301",
        "a",
    ]
    texts = ["".join(draw.choices(parts, k=40)) for _ in range(200)]
    whole = [(cleaned(text), sorted(set(readings(text)))) for text in texts]
    for size in (1, 7, 30):
        monkeypatch.setattr(document, "PIECE", size)
        assert [cleaned(text) for text in texts] == [result for result, _ in whole]


def test_no_rule_takes_the_square_of_a_length() -> None:
    """A rule whose time grows with the square of the length would not end here."""
    n = 100_000
    texts = (
        *(" " * n + "\u200bx", "\xad" + " " * n + "A", "-" * n + "\n", " " * n + "-\nx", "a" * n + "-\nbc"),
        *("\u200d" * n, "\xad" * n, "a-\n" * (n // 3), "- " * n + "\n", "é\u200c" * n, "ab-" * n + "\nc"),
    )
    for text in texts:
        assert cleaned(cleaned(text)[0])[1] <= {"hyphens at line ends"}
        assert readings(text)


def test_the_manifest_counts_and_the_switch_keeps(tmp_path: Path) -> None:
    lines = [f'{{"text": "filler {n}"}}\n' for n in range(40)]
    lines += [
        '{"id": "a", "text": "hy\\u00adphen and zero\\u200bwidth"}\n',
        '{"id": "b", "text": "hyphen AND zerowidth"}\n',
    ]
    lines += [
        '{"id": "c", "text": "respira-\\ntory"}\n',
        '{"id": "d", "text": "Respiratory"}\n',
        '{"text": "\\u200b"}\n',
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    sources = {"text": (Text(), [str(tmp_path / "a.jsonl")])}
    manifest = build_corpus(sources, tmp_path / "clean", 0.5)
    assert manifest["characters"] == {"zero-width characters": 2, "soft hyphens": 1, "hyphens at line ends": 1}
    assert list(manifest["characters"]) == [rule for rule in RULES if rule in manifest["characters"]]
    assert manifest["dropped"] == {"without text": 1, "same text": 2}
    kept = build_corpus(sources, tmp_path / "kept", 0.5, keep_characters=True)
    assert kept["characters"] == {} and kept["dropped"] == {"same text": 2}
    texts = {d.text for split in corpus_format.SPLITS for d in corpus_format.read_documents(tmp_path / "kept", split)}
    assert "\u200b" in texts and {"hy\xadphen and zero\u200bwidth", "respira-\ntory"} & texts
    assert spool.same_text("a  B") == spool.same_text("A b")

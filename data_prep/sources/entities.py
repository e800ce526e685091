"""Entities by name in XML, `&nbsp;` and `&alpha;`: what HTML, ISO or the file itself calls so; others are refused.

The DTDs that say what they are lie elsewhere and are not fetched, and nothing outside the file is ever read.
"""

from __future__ import annotations

import html.entities
import re
from collections.abc import Iterator, Mapping

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.bounds import ENTITY_CHARACTERS
from data_prep.common.errors import BadInput

# Where the root begins in a file without a DOCTYPE: an entity that is declared nowhere is an error there, and can be
# looked up later where a DOCTYPE names a DTD that is not read.
NO_DOCTYPE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|<!--(?:[^-]|-[^-])*-->|<\?[^>]*\?>)*(?=<[A-Za-z_])")
DOCTYPE = b'<!DOCTYPE any SYSTEM "not-read">'
REFERENCE = re.compile(r"&(?:#(\d{1,7})|#x([0-9A-Fa-f]{1,6})|([^&;\s#]{1,100}));")

# HTML's names hold ISO 8879's and ISO 9573's but for these (JATS' DTD lists them): Greek for texts in Greek, with its
# accents, and bold Greek.
LATIN = "a b g d e z ee th i k l m n x o p r sf s t u ph kh ps oh"
LETTERS = dict(zip(LATIN.split(), "αβγδεζηθικλμνξοπρςστυφχψω", strict=True))
ACCENTED = dict(zip(("a", "e", "ee", "i", "o", "u", "oh"), "άέήίόύώ", strict=True))
GREEK = {
    **{f"{name}gr": letter for name, letter in LETTERS.items()},
    **{f"{name.upper()}gr": letter.upper() for name, letter in LETTERS.items()},
    **{f"{name}acgr": letter for name, letter in ACCENTED.items()},
    **{f"{name.upper()}acgr": letter.upper() for name, letter in ACCENTED.items()},
    **{"idigr": "ϊ", "Idigr": "Ϊ", "udigr": "ϋ", "Udigr": "Ϋ", "idiagr": "ΐ", "udiagr": "ΰ"},
}
OTHERS = {"b.thetas": "θ", "b.phis": "φ", "jnodot": "ȷ"}


def with_doctype(first: bytes) -> bytes:
    """The first bytes of an XML file, with a DOCTYPE where it has none; lines keep their numbers."""
    match = NO_DOCTYPE.match(first)
    return first[: match.end()] + DOCTYPE + first[match.end() :] if match else first


def replace_entities(root: etree._Element, name: str) -> None:
    """Put the text of every entity in its place in a tree that was parsed with `resolve_entities=False`.

    Args:
        root: root of the tree, or of a record in it.
        name: what messages call the file.

    Raises:
        BadInput: nobody says what an entity is, or it is a file, holds markup or itself, or is too long.
    """
    entities = list(root.iter(etree.Entity))
    if not entities:
        return
    texts = _Texts(root, name)
    for entity in entities:
        parent, before = entity.getparent(), entity.getprevious()
        if parent is None:  # taken out with the one before
            continue
        text = "".join(_taken_out(entity, texts))
        if before is None:
            parent.text = (parent.text or "") + text
        else:
            before.tail = (before.tail or "") + text


def _taken_out(entity: etree._Element | None, texts: _Texts) -> Iterator[str]:
    """The texts of an entity and of those that follow it, each with what stands after it; they leave the tree."""
    while entity is not None and entity.tag is etree.Entity:
        after = entity.getnext()
        yield texts.of(entity)
        yield entity.tail or ""
        entity.getparent().remove(entity)
        entity = after


class _Texts:
    def __init__(self, root: etree._Element, name: str):
        dtd = root.getroottree().docinfo.internalDTD
        self._declared: Mapping[str, str | None] = {e.name: e.content for e in dtd.iterentities()} if dtd else {}
        self._name = name
        self._left = ENTITY_CHARACTERS

    def of(self, entity: etree._Element) -> str:
        """Its text; raises as `replace_entities`."""
        where = f"{self._name}, line {entity.sourceline}: the entity &{entity.name};"
        return self._text(entity.name, where, ())

    def _text(self, entity: str, where: str, inside: tuple[str, ...]) -> str:
        self._left -= 1
        if entity in self._declared:
            content = self._declared[entity]
            if content is None or "<" in content:
                raise BadInput(f"{where} is {'a file' if content is None else 'markup'}; put its text in its place")
            if entity in inside or len(inside) > 8:
                raise BadInput(f"{where} holds itself, or others too deep; put its text in its place")
            text = REFERENCE.sub(lambda match: self._referred(match, where, (*inside, entity)), content)
        else:
            plain = html.entities.html5.get(f"{entity.removeprefix('b.')};")
            text = plain or GREEK.get(entity) or OTHERS.get(entity)
            if text is None:
                raise BadInput(
                    f"{where} is none of HTML's or ISO's, nor declared in the file; put its text in its place"
                )
        self._left -= len(text)
        if self._left < 0:
            raise BadInput(f"{where} makes the text longer by more than {ENTITY_CHARACTERS:,} characters; leave it out")
        return text

    def _referred(self, match: re.Match[str], where: str, inside: tuple[str, ...]) -> str:
        decimal, hexadecimal, entity = match.groups()
        if entity:
            return self._text(entity, where, inside)
        number = int(decimal) if decimal else int(hexadecimal, 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise BadInput(f"{where} holds {match[0]}, no character; put its text in its place")
        return chr(number)

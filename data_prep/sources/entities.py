"""Replace named entities in XML, such as `&nbsp;` and `&alpha;`. The names are those of HTML, of ISO and of the file.

Other names are refused. External DTDs, which also define entities, are not fetched, and nothing outside the file is
read.
"""

from __future__ import annotations

import html.entities
import re
from collections.abc import Iterator, Mapping

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

from data_prep.common.bounds import ENTITY_CHARACTERS
from data_prep.common.errors import BadInput

# Matches up to the root element of a file without a DOCTYPE. In such a file an undeclared entity is an error. With a
# DOCTYPE that names a DTD (which is not read), the parser keeps the entity, so that it can be looked up later.
NO_DOCTYPE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|<!--(?:[^-]|-[^-])*-->|<\?[^>]*\?>)*(?=<[A-Za-z_])")
DOCTYPE = b'<!DOCTYPE any SYSTEM "not-read">'
REFERENCE = re.compile(r"&(?:#(\d{1,7})|#x([0-9A-Fa-f]{1,6})|([^&;\s#]{1,100}));")

# HTML's names include those of ISO 8879 and ISO 9573 except these, which JATS' DTD lists: Greek letters for texts in
# Greek, with accents, and bold Greek letters.
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
    """Insert a DOCTYPE into the first bytes of an XML file if it has none; line numbers do not change."""
    match = NO_DOCTYPE.match(first)
    return first[: match.end()] + DOCTYPE + first[match.end() :] if match else first


def replace_entities(root: etree._Element, name: str) -> None:
    """Replace every entity by its text in a tree that was parsed with `resolve_entities=False`.

    Args:
        root: root of the tree, or of a record in it.
        name: name of the file, for messages.

    Raises:
        BadInput: an entity is not defined, stands for a file, contains markup or itself, or is too long.
    """
    entities = list(root.iter(etree.Entity))
    if not entities:
        return
    texts = _Texts(root, name)
    for entity in entities:
        parent, before = entity.getparent(), entity.getprevious()
        if parent is None:  # already removed together with the entity before it
            continue
        text = "".join(_taken_out(entity, texts))
        if before is None:
            parent.text = (parent.text or "") + text
        else:
            before.tail = (before.tail or "") + text


def _taken_out(entity: etree._Element | None, texts: _Texts) -> Iterator[str]:
    """Remove an entity, and the entities that directly follow it, from the tree; yield their texts and tails."""
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
        """The text of an entity; raises BadInput as `replace_entities` does."""
        where = f"{self._name}, line {entity.sourceline}: the entity &{entity.name};"
        return self._text(entity.name, where, ())

    def _text(self, entity: str, where: str, inside: tuple[str, ...]) -> str:
        self._left -= 1
        if entity in self._declared:
            content = self._declared[entity]
            if content is None or "<" in content:
                raise BadInput(f"{where} is {'a file' if content is None else 'markup'}; replace it by its text")
            if entity in inside or len(inside) > 8:
                raise BadInput(f"{where} contains itself, or is nested too deep; replace it by its text")
            text = REFERENCE.sub(lambda match: self._referred(match, where, (*inside, entity)), content)
        else:
            plain = html.entities.html5.get(f"{entity.removeprefix('b.')};")
            text = plain or GREEK.get(entity) or OTHERS.get(entity)
            if text is None:
                raise BadInput(f"{where} is not defined by HTML, by ISO or in the file; replace it by its text")
        self._left -= len(text)
        if self._left < 0:
            raise BadInput(f"{where} makes the text longer by more than {ENTITY_CHARACTERS:,} characters; remove it")
        return text

    def _referred(self, match: re.Match[str], where: str, inside: tuple[str, ...]) -> str:
        decimal, hexadecimal, entity = match.groups()
        if entity:
            return self._text(entity, where, inside)
        number = int(decimal) if decimal else int(hexadecimal, 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise BadInput(f"{where} contains {match[0]}, which is no character; replace it by its text")
        return chr(number)

"""A template with marks around what it fills in, so that a test sees each field of its page and knows all of them."""

from __future__ import annotations

import re
from pathlib import Path

FIELD = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
CONDITION = re.compile(r"\{%-?\s*if\s+(.*?)\s*-?%\}")
SHOWN = re.compile("⟦(\\d+)⟦(.*?)⟧⟧", re.DOTALL)


def fields_of(template: Path) -> list[str]:
    """What a template fills in or decides by, as it stands there; each once."""
    text = template.read_text(encoding="utf-8")
    return list(dict.fromkeys([*FIELD.findall(text), *(f"if {found}" for found in CONDITION.findall(text))]))


def write_marked(template: Path, out: Path) -> Path:
    """A copy of a template whose page says which part of it is which field."""
    text, fields = template.read_text(encoding="utf-8"), fields_of(template)
    conditions: list[str] = CONDITION.findall(text)
    text = FIELD.sub(lambda found: f"⟦{fields.index(found[1])}⟦{found[0]}⟧⟧", text)
    for condition in dict.fromkeys(conditions):
        mark = f"⟦{fields.index(f'if {condition}')}⟦{{{{ true if {condition} else false }}}}⟧⟧"
        text = re.sub(
            rf"(\{{%-?\s*if\s+{re.escape(condition)}\s*-?%\}})", lambda found, mark=mark: mark + found[1], text
        )
    out.write_text(text, encoding="utf-8")
    return out


def shown(template: Path, page: str) -> dict[str, list[str]]:
    """What the page of a marked template shows of each field, in the order in which it comes."""
    fields = fields_of(template)
    found: dict[str, list[str]] = {field: [] for field in fields}
    for number, value in SHOWN.findall(page):
        found[fields[int(number)]].append(value)
    return found

"""A template with marks around its fields, so that a test finds each field on the page."""

from __future__ import annotations

import re
from pathlib import Path

FIELD = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
CONDITION = re.compile(r"\{%-?\s*if\s+(.*?)\s*-?%\}")
SHOWN = re.compile("⟦(\\d+)⟦(.*?)⟧⟧", re.DOTALL)


def fields_of(template: Path) -> list[str]:
    """Fields and conditions of a template, as written there; each once."""
    text = template.read_text(encoding="utf-8")
    return list(dict.fromkeys([*FIELD.findall(text), *(f"if {condition}" for condition in CONDITION.findall(text))]))


def write_marked(template: Path, out: Path) -> Path:
    """Write a copy of a template whose page marks each part with the number of its field."""
    text, fields = template.read_text(encoding="utf-8"), fields_of(template)
    conditions: list[str] = CONDITION.findall(text)
    text = FIELD.sub(lambda match: f"⟦{fields.index(match[1])}⟦{match[0]}⟧⟧", text)
    for condition in dict.fromkeys(conditions):
        mark = f"⟦{fields.index(f'if {condition}')}⟦{{{{ true if {condition} else false }}}}⟧⟧"
        text = re.sub(
            rf"(\{{%-?\s*if\s+{re.escape(condition)}\s*-?%\}})", lambda match, mark=mark: mark + match[1], text
        )
    out.write_text(text, encoding="utf-8")
    return out


def shown(template: Path, page: str) -> dict[str, list[str]]:
    """The texts that a page of a marked template shows for each field, in order."""
    fields = fields_of(template)
    values: dict[str, list[str]] = {field: [] for field in fields}
    for number, value in SHOWN.findall(page):
        values[fields[int(number)]].append(value)
    return values

"""The index of docs/ names every page, and the picture of the data flow names every command."""

import re

from data_flow import PICTURE, READERS, WAYS, data_flow
from project import COMMANDS, ROOT

INDEX = ROOT / "docs/README.md"


def test_every_page_is_in_the_index():
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert named == {page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name}


def test_the_picture_is_current():
    assert PICTURE.read_text(encoding="utf-8") == data_flow(), "run: python tests/helpers/data_flow.py"


def test_every_command_is_in_the_picture():
    shown = {command for *_, command in WAYS if command} | set(", ".join(READERS.values()).split(", "))
    assert shown == {command.rpartition("/")[2] for command in COMMANDS}

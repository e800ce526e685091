"""The fenced blocks of README, CONTRIBUTING and docs: each with its place, its kind and its mark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from project import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Blocks of this page need the files that the page adds; a separate test runs them together in one copy.
RUN_BY = {"docs/extending.md": ROOT / "tests/test_extending.py"}
COMMANDS_OF = ("", "bash", "sh", "shell", "console")  # kinds of blocks to type
DATA_OF = ("diff", "json", "python", "text", "yaml")  # kinds of blocks to read
MARK = re.compile(r"^ *<!--\s*not run\b(.*?)-->", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"(?ms)^( *)(`{3,}|~{3,})[ ]*([^\n`]*)\n(.*?)^ *\2[`~]* *$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: path below the project's folder.
        line: line number of the opening fence, from 1.
        kind: word after the fence, such as `json`; empty for commands.
        text: content of the block.
        mark: text of the comment before the block after `not run`; None without a comment.
    """

    page: str
    line: int
    kind: str
    text: str
    mark: str | None

    @property
    def place(self) -> str:
        """Page and line, such as `docs/data.md:10`."""
        return f"{self.page}:{self.line}"

    @property
    def is_of_commands(self) -> bool:
        """Whether the block is typed into a shell."""
        return self.kind in COMMANDS_OF

    @property
    def commands(self) -> str:
        """The text without comments and redundant blanks; blocks with equal text do the same."""
        lines = (re.sub(r"(^|\s)#(?!SBATCH).*", "", line) for line in self.text.replace("\\\n", " ").splitlines())
        return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    yield from blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """The blocks in the text of a page."""
    end = 0
    for match in _FENCE.finditer(text):
        before = text[end : match.start()].rstrip()
        marks = list(MARK.finditer(before))
        mark = marks[-1][1] if marks and marks[-1].end() == len(before) else None
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[3].strip(), match[4], mark)
        end = match.end()

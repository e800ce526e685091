"""The fenced blocks of README, CONTRIBUTING and docs: each with its place, its kind and its mark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from project import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# A page whose blocks need what it adds to the project: one test runs them in one copy.
RUN_BY = {"docs/extending.md": ROOT / "tests/test_extending.py"}
COMMANDS_OF = ("", "bash", "sh", "shell", "console")  # kinds of blocks to type
DATA_OF = ("diff", "json", "python", "text", "yaml")  # kinds of blocks to read
MARK = re.compile(r"^ *<!--\s*not run\b(.*?)-->", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"(?ms)^( *)(`{3,}|~{3,})[ ]*([^\n`]*)\n(.*?)^ *\2[`~]* *$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: below the project's folder.
        line: of the page, counted from 1, that its fence stands in.
        kind: what stands behind the fence, such as `json`; empty for commands.
        text: what stands in it.
        mark: what the comment before it says between `not run` and its end; None without one.
    """

    page: str
    line: int
    kind: str
    text: str
    mark: str | None

    @property
    def place(self) -> str:
        """`docs/data.md:10`."""
        return f"{self.page}:{self.line}"

    @property
    def is_of_commands(self) -> bool:
        """Whether it is typed into a shell."""
        return self.kind in COMMANDS_OF

    @property
    def commands(self) -> str:
        """Its text without comments and without blanks that say nothing: blocks that are equal so do the same."""
        lines = (re.sub(r"(^|\s)#(?!SBATCH).*", "", line) for line in self.text.replace("\\\n", " ").splitlines())
        return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, from the first to the last."""
    yield from blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """The blocks of the text of a page."""
    end = 0
    for found in _FENCE.finditer(text):
        before = text[end : found.start()].rstrip()
        marks = list(MARK.finditer(before))
        mark = marks[-1][1] if marks and marks[-1].end() == len(before) else None
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[3].strip(), found[4], mark)
        end = found.end()

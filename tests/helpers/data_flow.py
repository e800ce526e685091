"""docs/data-flow.svg: the way from text to a released model, with the command of each step.

`python tests/helpers/data_flow.py` makes it.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.sax.saxutils import escape

from project import ROOT

PICTURE = ROOT / "docs/data-flow.svg"
COLUMN, ROW, WIDTH, HEIGHT = 250, 118, 150, 56  # distances between the centres of boxes, and sizes of boxes, in pixels
LEFT, TOP = 90, 50  # centre of the first box
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1c2733; text-anchor: middle }
    .small { font-size: 11.5px; fill: #5a6673 }
    .command { font: 12.5px ui-monospace, monospace; fill: #1f4e8c }
    rect { fill: #f4f6f9; stroke: #b9c3cf }
    rect.made { fill: #e6eef8; stroke: #1f4e8c }
    path { stroke: #5a6673; fill: none; stroke-width: 1.4 }
    marker path { fill: #5a6673; stroke: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e3e9f0 } .small { fill: #a3afbc } .command { fill: #8fbcf2 }
      rect { fill: #1b232d; stroke: #4a5663 } rect.made { fill: #17283d; stroke: #6ea3e0 }
      path { stroke: #a3afbc } marker path { fill: #a3afbc }
    }"""


class Box(NamedTuple):
    """A box of the picture: a folder or file, its contents, its column and row, and whether the project makes it."""

    name: str
    holds: str
    column: float
    row: float
    made: bool = True

    @property
    def x(self) -> float:
        """Centre of the box in pixels, from the left."""
        return LEFT + self.column * COLUMN

    @property
    def y(self) -> float:
        """Centre of the box in pixels, from the top."""
        return TOP + self.row * ROW


PUBLISHED = Box("published text", "PubMed, PMC, the Pile", 0, 0, made=False)
OWN = Box("your own text", "txt, JSON lines, Parquet", 1, 1, made=False)
FILES = Box("files", "checked downloads", 1, 0)
CORPUS = Box("corpus", "documents, card", 2, 0)
TOKENIZER = Box("tokenizer", "vocabulary, merges", 3, 0)
SHARDS = Box("token shards", "MDS, a hash a sample", 3, 1)
RUN = Box("run folder", "checkpoints, metrics", 3, 2)
MODEL = Box("model folder", "GPT-2, tokenizer, card", 2, 2)
TUNED = Box("fine-tuned model", "one a task and seed", 1, 2)
SCORES = Box("scores", "intervals, leaks", 0, 2)
# From, to, and the command; if two arrows lead to a box, only the first shows the command.
WAYS = (
    (PUBLISHED, FILES, "acquire.py"),
    (FILES, CORPUS, "corpus.py"),
    (OWN, CORPUS, ""),
    (CORPUS, TOKENIZER, "tokenizer.py"),
    (TOKENIZER, SHARDS, "shards.py"),
    (CORPUS, SHARDS, ""),
    (SHARDS, RUN, "train.py"),
    (RUN, MODEL, "export.py"),
    (MODEL, TUNED, "finetune.py"),
    (TUNED, SCORES, "evaluate.py"),
)
# Commands that read a box, beside those on its arrows.
READERS = {
    CORPUS: "look.py",
    SHARDS: "verify.py, plan.py, preflight.py",
    RUN: "report.py, ladder.py",
    MODEL: "generate.py, evaluate.py",
    TUNED: "sweep.py",
}


def data_flow() -> str:
    """The picture as SVG; its colours follow the reader's light or dark theme."""
    boxes = (PUBLISHED, OWN, FILES, CORPUS, TOKENIZER, SHARDS, RUN, MODEL, TUNED, SCORES)
    width, height = LEFT + 3 * COLUMN + LEFT + 30, TOP + 2 * ROW + HEIGHT + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "  <title>From text to a corpus, a tokenizer, token shards, a run, a model and its scores</title>",
        f"  <style>{STYLE}\n  </style>",
        '  <marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker>',
        *(_way(*way) for way in WAYS),
        *(_box(box) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    made = ' class="made"' if box.made else ""
    rect = (
        f'<rect{made} x="{box.x - WIDTH / 2:g}" y="{box.y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
    )
    lines = [rect, _text(box.x, box.y - 3, box.name), _text(box.x, box.y + 15, box.holds, "small")]
    if readers := READERS.get(box):
        lines.append(_text(box.x, box.y + HEIGHT / 2 + 16, readers, "command"))
    return "  " + "".join(lines)


def _way(start: Box, end: Box, command: str) -> str:
    if start.column == end.column:
        room = 26 if start in READERS else 4
        x1, y1, x2, y2 = start.x, start.y + HEIGHT / 2 + room, end.x, end.y - HEIGHT / 2 - 4
    else:
        side = 1 if end.column > start.column else -1
        x1, y1, x2, y2 = start.x + side * WIDTH / 2, start.y, end.x - side * (WIDTH / 2 + 4), end.y
    middle = (x1 + x2) / 2
    line = f'<path d="M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}" marker-end="url(#head)"/>'
    beside, below = (42, 4) if start.column == end.column else (0, -8)
    return "  " + line + (_text(middle + beside, (y1 + y2) / 2 + below, command, "command") if command else "")


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={style!r}" if style else ""}>{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(data_flow(), encoding="utf-8")

"""Count the words that are lost, glued, split or added when JATS articles become text, for our reader and two others.

    python -m venv data/pandoc && data/pandoc/bin/pip install pypandoc-binary==1.17
    python benchmarks/articles.py --pandoc data/pandoc

The articles are those of the sample. The expected words come from `tests/helpers/jats_words.py`, which shares no code
with any of the three readers. Tables and references are removed from the XML first, so that no reader is blamed for
text that ours omits. A reader may keep citation marks or not. pandoc writes HTML, in which it omits least, and the text
of the HTML is compared; title and abstract are not expected from pandoc, because it gives them only as metadata. For
pubmed_parser, the output of all its functions counts: title, abstract, paragraphs, section titles and figure labels;
each function parses the file again. The time is the CPU time for reading the whole files; pandoc runs in one process
per article. The readers take turns, and each ratio compares two readers in the same round. The table shows median and
quartiles.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

# The repository root must come before this folder on the path. tests/helpers holds the word counter of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests/helpers"))

from data_prep.common.errors import BadInput, run
from data_prep.sources import sample
from data_prep.sources.document import Document
from data_prep.sources.pmc_article import read_articles
from jats_words import article_pieces
from words import Markup, faults, pieces

KINDS = ("lost", "glued", "split", "added")
TAKEN_OUT = ("table", "table-wrap-foot", "ref-list")
HTML = Markup(inline=("a", "code", "em", "span", "strong", "sub", "sup", "u"))

Reader = Callable[[Path], str]


def ours(path: Path) -> str:
    """The text that our reader gives to a corpus."""
    (document,) = read_articles(io.BytesIO(path.read_bytes()), path.name, "text")
    assert isinstance(document, Document)
    return document.text


def with_pubmed_parser(path: Path) -> str:
    """The text that all functions of pubmed_parser give together."""
    import pubmed_parser  # pyright: ignore[reportMissingTypeStubs]

    whole = pubmed_parser.parse_pubmed_xml(str(path))
    paragraphs = pubmed_parser.parse_pubmed_paragraph(str(path), all_paragraph=True)
    texts = [whole["full_title"], whole["abstract"]]
    section = None
    for paragraph in paragraphs:
        if paragraph["section"] != section:
            section = paragraph["section"]
            texts.append(section)
        texts.append(paragraph["text"])
    for caption in pubmed_parser.parse_pubmed_caption(str(path)) or []:
        texts += [caption["fig_label"] or ""]  # the caption itself is among the paragraphs
    return " ".join(texts)


def with_pandoc(environment: Path) -> Reader:
    """pandoc's reader of JATS, which made the text of the Pile's articles."""
    programs = sorted(environment.glob("lib/python*/site-packages/pypandoc/files/pandoc"))
    if not programs:
        raise BadInput(f"{environment} holds no pandoc; install it as described at the top of benchmarks/articles.py")

    def read(path: Path) -> str:
        command = [programs[0], "--from", "jats", "--to", "html", "--wrap", "none", path]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return read


def text_of_html(html: str) -> str:
    """The text that a browser shows, with superscript numbers written as in our text."""
    root = etree.fromstring(f"<body>{html}</body>", etree.HTMLParser())
    return "".join(piece.text for piece in pieces(root, HTML))


def taken_out(path: Path, folder: Path, is_front_asked: bool) -> tuple[Path, etree._Element]:
    """Remove from an article the parts that are not compared; return it as a file and as the expected tree."""
    root = etree.parse(path, etree.XMLParser(remove_comments=True, remove_pis=True)).getroot()
    etree.strip_elements(root, *TAKEN_OUT, with_tail=False)
    (folder / path.name).write_bytes(etree.tostring(root.getroottree()))
    if not is_front_asked:
        meta = root.find("front/article-meta")
        for element in [*meta.iterfind("title-group"), *meta.iterfind("abstract")]:
            meta.remove(element)
    return folder / path.name, root


def compared(reader: Reader, signs: Callable[[str], str], is_front_asked: bool) -> Counter[str]:
    """Count the expected words and the faults of each kind, over all articles."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in sample.paths(".nxml"):
            path, root = taken_out(Path(name), Path(folder), is_front_asked)
            text = reader(path)
            parts = article_pieces(root)
            counts["words"] += len("".join(piece.text for piece in parts if piece.rule is None).split())
            for fault in faults(parts, signs(text)):
                counts[fault.kind] += 1
    return counts


def timed(readers: Mapping[str, Reader], rounds: int) -> dict[str, list[float]]:
    """The CPU seconds that each reader takes for all articles, per round."""
    paths = [Path(name) for name in sample.paths(".nxml")]
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in readers.items():
            start_s = _cpu_s()
            for path in paths:
                reader(path)
            seconds[name].append(_cpu_s() - start_s)
    return seconds


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pandoc",
        type=Path,
        help="virtual environment with pypandoc-binary; without it, only two readers are compared",
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of times that all articles are read (default 5)")
    args = parser.parse_args(argv)
    readers: dict[str, tuple[Reader, Callable[[str], str], bool]] = {
        "ours": (ours, str, True),
        "pubmed_parser": (with_pubmed_parser, str, True),
    }
    if args.pandoc:
        readers["pandoc"] = (with_pandoc(args.pandoc), text_of_html, False)
    print(f"| | words | {' | '.join(KINDS)} | CPU s | / ours |\n|---|---:|{'---:|' * len(KINDS)}---:|---:|")
    seconds = timed({name: reader for name, (reader, _, _) in readers.items()}, args.rounds)
    for name, (reader, signs, is_front_asked) in readers.items():
        counts = compared(reader, signs, is_front_asked)
        ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
        cells = [f"{counts[kind]:,}" for kind in ("words", *KINDS)] + [_spread(seconds[name], 3), _spread(ratios, 2)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run(main)

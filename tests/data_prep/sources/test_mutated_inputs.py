"""Whatever an input file contains, the corpus stage builds a corpus or says why it cannot."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hunting import hunt, hunt_on
from mutations import PACK, Draw, bomb, mutated, to_json
from oracle import problems

FILLER = b"".join(b'{"text": "text %d of the neuroase"}\n' % number for number in range(40))
CORPUS = ("data_prep/corpus.py", "--out", "out", "--val-fraction", "0.5", "--workers", "1")


def packed(name: str, content: bytes) -> bytes:
    pack, _ = PACK.get(name[name.rfind(".") :], (bytes, bytes))
    return pack(content)


def json_lines(*records: Any) -> bytes:
    return b"".join(to_json(record) + b"\n" for record in records)


def rows() -> list[dict[str, Any]]:
    return [
        {"text": f"row {n} about the cytoma", "id": f"own-{n}", "date": "2021-03-09", "license": "CC BY", "pmid": n}
        for n in range(1, 8)
    ]


def parquet() -> bytes:
    import datetime

    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {key: [row[key] for row in rows()] for key in ("text", "id", "license", "pmid")}
    columns["date"] = [datetime.datetime(2021, 3, 9)] * len(rows())
    columns["other"] = [[1, 2], None, [], [3], [4], [5], [6]]
    target = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), target, row_group_size=3)
    return target.getvalue()


def citations() -> bytes:
    article = (
        '<PubmedArticle><MedlineCitation><PMID Version="1">{n}</PMID><Article><Journal><JournalIssue><PubDate>'
        "<Year>2020</Year><Month>Mar</Month></PubDate></JournalIssue></Journal><ArticleTitle>On {n}.</ArticleTitle>"
        '<Abstract><AbstractText Label="AIM">Text of <i>{n}</i> &lt; 7 about the thrombovas.</AbstractText></Abstract>'
        "<AuthorList><Author><LastName>Orr</LastName></Author></AuthorList></Article></MedlineCitation>"
        "<PubmedData/></PubmedArticle>"
    )
    articles = "\n".join(article.format(n=n) for n in range(101, 105))
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE PubmedArticleSet SYSTEM "pubmed.dtd">\n<PubmedArticleSet>'
        f"{articles}<DeleteCitation><PMID>7</PMID></DeleteCitation></PubmedArticleSet>"
    ).encode()


def article(number: int) -> bytes:
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta><article-id pub-id-type="pmid">'
        f'{number}</article-id><article-id pub-id-type="pmc">{number}</article-id><title-group><article-title>On '
        'the cytoma</article-title></title-group><pub-date pub-type="epub"><year>2020</year><month>3</month>'
        '</pub-date><permissions><license xlink:href="http://creativecommons.org/licenses/by/4.0/"/>'
        "</permissions><abstract><p>Short.</p></abstract></article-meta></front><body><sec><label>1</label>"
        '<title>Aim</title><p>T <xref ref-type="bibr">1</xref> &lt; 7.<fig><caption><p>A figure.</p></caption></fig>'
        "</p></sec></body></article>"
    ).encode()


def metadata(number: int) -> dict[str, Any]:
    return {"pmcid": f"PMC{number}", "license_code": "CC BY", "is_retracted": False, "xml_url": "https://x/y?md5=0"}


def articles() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for number in (11, 12, 13):
            name = f"PMC{number}.1"
            files = {f"metadata/{name}.json": to_json(metadata(number)), f"{name}/{name}.xml": article(number)}
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def pile() -> bytes:
    return json_lines(*({"text": f"t {n}", "meta": {"pile_set_name": "PubMed Abstracts"}} for n in range(5)))


def files_of(content: Callable[[], bytes], *names: str) -> dict[str, Callable[[], bytes]]:
    return {name: lambda name=name: packed(name, content()) for name in names}


# Source -> its files, of which one gets a fault.
READERS: dict[str, tuple[str, dict[str, Callable[[], bytes]]]] = {
    "JSON lines": ("text", files_of(lambda: json_lines(*rows()), "a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.jsonl.xz")),
    "plain text": ("text", files_of(lambda: "Zehn µg of the cytoma.\r\n".encode(), "b.txt", "b.txt.zst", "b.txt.gz")),
    "Parquet": ("text", files_of(parquet, "c.parquet")),
    "citations": ("medline", files_of(citations, "pubmed26n0001.xml.gz")),
    "articles": (
        "pmc",
        files_of(lambda: article(9), "d.nxml")
        | {"PMC8.1/PMC8.1.xml": lambda: article(8), "metadata/PMC8.1.json": lambda: to_json(metadata(8))},
    ),
    "archives of articles": ("pmc", files_of(articles, "e.tar", "e.tar.zst", "e.tar.gz")),
    "the Pile": ("pile", files_of(pile, "00.jsonl.zst", "val.jsonl.zst")),
}


def command_for(source: str, names: Iterable[str], skip: bool) -> tuple[str, ...]:
    """The command that builds a corpus from the files of a source, and from filler texts, so that no split is empty."""
    arguments = ["--source", source, "--input", *sorted(name for name in names if "metadata" not in name)]
    arguments += ["filler.jsonl"] if source == "text" else ["--source", "text", "--input", "filler.jsonl"]
    return (*CORPUS, *arguments, *(("--on-error", "skip") if skip else ()))


def found_in(reader: str, folder: Path, file: str | None = None) -> Callable[[Draw], list[str]]:
    """Damage the given file of a reader, or a random one, and return the problems."""
    source, makers = READERS[reader]

    def find(draw: Draw) -> list[str]:
        files = {f"in/{name}": make() for name, make in makers.items()}
        chosen = f"in/{file}" if file else draw(st.sampled_from(sorted(files)))
        files[chosen] = mutated(draw, chosen, files[chosen])
        skip = draw(st.booleans())
        command = command_for(source, files, skip)
        codes = (0,) if skip else (0, 2)
        wrong = problems(command, files | {"filler.jsonl": FILLER}, folder / "run", codes)
        case = f"{chosen}, {len(files[chosen]):,} bytes, skip: {skip}: {files[chosen][:300]!r}"
        return [case, *wrong] if wrong else []

    return find


@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_in_an_input(reader: str, tmp_path: Path) -> None:
    hunt(found_in(reader, tmp_path), examples=12)


GROUPS = {
    "JSON lines": ("JSON lines", "the Pile"),
    "plain text": ("plain text",),
    "compressed": ("JSON lines", "plain text"),
    "Parquet": ("Parquet",),
    "XML": ("citations", "articles"),
    "tar": ("archives of articles",),
}


def forms_of(group: str) -> list[tuple[str, str]]:
    """Readers and files that share the ten minutes of a group; compressed lines and texts are a group of their own."""
    every = [(reader, file) for reader in GROUPS[group] for file in READERS[reader][1]]
    unpacked = ("a.jsonl", "b.txt")
    if group == "compressed":
        return [(reader, file) for reader, file in every if file not in unpacked]
    return [(reader, file) for reader, file in every if reader not in GROUPS["compressed"] or file in unpacked]


def test_no_form_is_left_out() -> None:
    forms = [form for group in GROUPS for form in forms_of(group)]
    assert sorted(forms) == sorted((reader, file) for reader, (_, files) in READERS.items() for file in files)


@pytest.mark.chaos
@pytest.mark.parametrize("group", GROUPS)
def test_whatever_is_in_an_input_for_ten_minutes(group: str, tmp_path: Path, outcome: Any) -> None:
    forms = {f"{reader}, {file}": found_in(reader, tmp_path, file) for reader, file in forms_of(group)}
    outcome(f"{group}: anything wrong in a file", hunt_on(forms), "nothing")


def window_of_2_gib() -> bytes:
    """A zstd frame of a few bytes that declares a window of 2 GiB; RFC 8878, section 3.1."""
    content = FILLER[:100]
    last_raw_block = (1 | len(content) << 3).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + last_raw_block + content


def table(column: Any, **options: Any) -> bytes:
    import pyarrow
    from pyarrow import parquet

    target = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": column}), target, **options)
    return target.getvalue()


def honest_rows() -> bytes:
    """Rows of 1.8 MB, all in one page, as pyarrow writes them."""
    words = random.Random(3).choices([f"w{n:x}" for n in range(5000)], k=330_000)
    return table([f"{n} {' '.join(words[n:])}" for n in range(150)])


def damaged_page() -> bytes:
    content = bytearray(table([f"row {n} {n * n:x}" for n in range(5000)], compression="zstd", use_dictionary=False))
    middle = len(content) // 3
    content[middle : middle + 64] = bytes(64)
    return bytes(content)


def far_times() -> bytes:
    """A time outside Python's range, in a column that is read."""
    import pyarrow
    from pyarrow import parquet

    target = io.BytesIO()
    dates = pyarrow.array([0, 2**62, 0], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"text": ["one", "two", "three"], "date": dates}), target)
    return target.getvalue()


def long_name() -> bytes:
    """A compressed archive whose first member has a name of 3 GiB."""
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    return bomb(b"a ", member.tobuf())


def sparse() -> bytes:
    """An archive whose header declares a member of 1.5 bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        member = tarfile.TarInfo("x.xml")
        member.pax_headers = {"GNU.sparse.size": "1.5"}
        archive.addfile(member)
    return target.getvalue()


def big_article(filling: bytes, count: int) -> Callable[[], bytes]:
    before, middle, after = article(5).partition(b"<p>T ")
    return lambda: before + middle + filling * count + after


# Faults found earlier: a file, its content, and whether it can be read (with --on-error skip, each can be skipped).
FOUND: dict[str, tuple[str, str, Callable[[], bytes], bool]] = {
    "a window of 2 GiB": ("text", "a.txt.zst", window_of_2_gib, False),
    "a damaged page": ("text", "a.parquet", damaged_page, False),
    "a time in the year 146,140,482": ("text", "a.parquet", far_times, False),
    "a size of 1.5 in an archive": ("pmc", "a.tar", sparse, False),
    "an article of 4 million tags": ("pmc", "a.nxml", big_article(b"<p/>", 4_000_000), False),
    "zstd of 1.5 GiB in 50 kB": ("text", "a.txt.zst", lambda: bomb(b"a "), False),
}
FOUND_AND_LONG: dict[str, tuple[str, str, Callable[[], bytes], bool]] = {
    "zstd of one line": ("text", "a.jsonl.zst", lambda: bomb(b"\0"), False),
    "zstd of line feeds": ("text", "a.jsonl.zst", lambda: bomb(b"\n"), False),
    "xz of 512 MiB in 80 kB": ("text", "a.jsonl.xz", lambda: lzma.compress(bytes(512 << 20), preset=0), False),
    "a line of 20 million lists": (
        "text",
        "a.jsonl.zst",
        lambda: packed(".zst", b'{"a":[' + b"[]," * 20_000_000),
        False,
    ),
    "a Parquet file of 4.3 GB in 150 kB": ("text", "a.parquet", lambda: table(["x" * (1 << 20)] * 4300), False),
    "a page of 1.5 GB in 50 kB": (
        "text",
        "a.parquet",
        lambda: table(["x" * (1 << 20)] * 1400, compression="zstd", use_dictionary=False),
        False,
    ),
    "rows of 1.8 MB": ("text", "a.parquet", honest_rows, True),
    "an article of 190 MB": ("pmc", "a.nxml", big_article(b"word " * 100 + b"<p/>", 380_000), False),
    "a citation without end": (
        "medline",
        "a.xml.gz",
        lambda: gzip.compress(b"<PubmedArticleSet><PubmedArticle>" + b"<a b='c'/>" * 12_000_000, 1),
        False,
    ),
    "a name of 3 GiB in an archive": ("pmc", "a.tar.zst", long_name, False),
}


@pytest.mark.parametrize("name", [*FOUND, *(pytest.param(name, marks=pytest.mark.chaos) for name in FOUND_AND_LONG)])
def test_what_was_found(name: str, tmp_path: Path) -> None:
    source, file, make, good = (FOUND | FOUND_AND_LONG)[name]
    files = {file: make(), "filler.jsonl": FILLER}
    assert not problems(command_for(source, [file], False), files, tmp_path / "stop", (0,) if good else (2,))
    if not good:
        assert not problems(command_for(source, [file], True), files, tmp_path / "skip", (0,))

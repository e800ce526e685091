"""The leak report finds PubMed numbers of every source, and runs of words by the rule of decontamination."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.manifest import MANIFEST, seal
from data_prep.common.pmid import parse_pmid, pmid_of_id
from data_prep.filtering.build_corpus import build_corpus
from data_prep.filtering.corpus_format import read_documents
from data_prep.filtering.decontamination import COMMON_DOCUMENTS, GRAM_WORDS
from data_prep.sources import sample
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document, Source
from data_prep.sources.medline import Medline
from data_prep.sources.pile import Pile
from data_prep.sources.pmc import Pmc
from data_prep.sources.registry import SOURCES
from data_prep.sources.sample import Sample
from data_prep.sources.text import Text
from data_prep.tasks.task_set import Question
from recipes.evaluation import contamination
from recipes.evaluation.contamination import find_leaks

Pmids = dict[str, int | None]  # prefix of a document's id
Made = tuple[Source, Sequence[str], Pmids]
N = 24
NO_PMID = ("", "PMC9", "٣٤", "123456789", "-4", "12.5")  # values in a PMID's place that are not PMIDs


def medline(folder: Path, draw: random.Random, n: int = N) -> Made:
    pmids = draw.sample(range(1, 3 * N), n)
    entries = "".join(
        f"<PubmedArticle><MedlineCitation><PMID>{pmid:0{draw.choice((1, 8))}}</PMID><Article><Abstract><AbstractText>"
        f"abstract {pmid}</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
        for pmid in pmids
    )
    path = folder / "pubmed26n0001.xml.gz"
    path.write_bytes(gzip.compress(f"<PubmedArticleSet>{entries}</PubmedArticleSet>".encode()))
    return Medline(), [str(path)], {f"pmid:{pmid}": pmid for pmid in pmids}


def pmc(folder: Path, draw: random.Random, n: int = N) -> Made:
    expected: Pmids = {}
    for number in range(1, n + 1):
        pmid = draw.choice((None, draw.randint(1, 3 * N)))
        pmid_text = draw.choice(NO_PMID) if pmid is None else str(pmid)
        (folder / f"{number}.nxml").write_text(
            f'<article><front><article-meta><article-id pub-id-type="pmc">{number}</article-id>'
            f'<article-id pub-id-type="pmid">{pmid_text}</article-id><title-group><article-title>article {number}'
            "</article-title></title-group></article-meta></front></article>",
            encoding="utf-8",
        )
        expected[f"pmcid:PMC{number}"] = pmid
    return Pmc(), [f"{folder}/*.nxml"], expected


def pile(folder: Path, draw: random.Random) -> Made:
    sets = [draw.choice((ABSTRACTS, ARTICLES)) for _ in range(N)]
    records = [{"text": f"text {n}", "meta": {"pile_set_name": name, "pmid": n}} for n, name in enumerate(sets)]
    (folder / "00.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Pile(), [str(folder / "00.jsonl")], {f"pile:00:{n}": None for n in range(1, N + 1)}


def text(folder: Path, draw: random.Random) -> Made:
    """Rows with other documents' PMIDs as numbers, a PMID as key, in the id, in both, or without an id."""
    expected: Pmids = {}
    records = []
    for row in range(1, N + 1):
        pmid = draw.randint(1, 3 * N)
        form = draw.choice(("row number", "key", "number and key", "id", "capitals", "both", "nothing"))
        record: dict[str, object] = {"text": f"text {row}"}
        if form in ("row number", "number and key"):
            record["id"] = draw.choice((row, str(row)))
        if form in ("id", "capitals", "both"):
            pmid = 100 + row  # ids are unique
            record["id"] = f"{'PMID' if form == 'capitals' else 'pmid'}:{pmid}"
        if form in ("key", "number and key", "both"):
            record["pmid"] = draw.choice((pmid, str(pmid)))
        records.append(record)
        expected[str(record.get("id", f"a.jsonl:{row}"))] = None if form in ("row number", "nothing") else pmid
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Text(), [str(folder / "a.jsonl")], expected


def both(folder: Path, draw: random.Random) -> Made:
    """The source `sample`, reading other files than those of its package."""
    _, (abstracts,), of_abstracts = medline(folder, draw, N // 2)
    _, _, of_articles = pmc(folder, draw, N // 2)
    files = {".xml.gz": [abstracts], ".nxml": sorted(map(str, folder.glob("*.nxml")))}
    pytest.MonkeyPatch().setattr(sample, "paths", files.__getitem__)
    articles = {pmid for pmid in of_articles.values() if pmid}
    return Sample(), [], {id_: pmid for id_, pmid in of_abstracts.items() if pmid not in articles} | of_articles


WRITERS: dict[str, Callable[[Path, random.Random], Made]] = {
    "sample": both, "medline": medline, "pmc": pmc, "pile": pile, "text": text,
}  # fmt: skip


def pmids_of(corpus: Path, *splits: str) -> Pmids:
    return {d.id: d.pmid for split in splits or ("train", "val") for d in read_documents(corpus, split)}


@pytest.fixture(autouse=True)
def real_sample():
    real = sample.paths
    yield
    sample.paths = real


@pytest.mark.parametrize("name", SOURCES)
def test_a_pubmed_number_is_one_from_a_source_to_the_leak_report(name: str, tmp_path: Path) -> None:
    """For generated documents of every source; a source without a writer fails here."""
    draw = random.Random(name)
    (tmp_path / "in").mkdir()
    source, patterns, expected = WRITERS[name](tmp_path / "in", draw)
    build_corpus({name: (source, patterns)}, tmp_path / "corpus", 0.3)
    assert pmids_of(tmp_path / "corpus") == expected

    asked = {f"q{pmid}": Question(f"q{pmid}", "Why?", ("a", "b"), 0, "", pmids=(str(pmid),)) for pmid in range(200)}
    leaks = find_leaks(asked, tmp_path / "corpus")
    there: dict[str, set[str]] = {}
    for id_, pmid in pmids_of(tmp_path / "corpus", "train").items():
        if pmid is not None:
            there.setdefault(f"q{pmid}", set()).add(id_)
    assert {question: set(leak["documents"]) for question, leak in leaks.pmids.items()} == there
    assert not leaks.by_words and leaks.by_pmid == there.keys()

    held = draw.sample(range(200), 100)
    lines = [draw.choice(("{}", "{}\tset", "pmid:{}", "PMID: {},set", '"{}",set')).format(pmid) for pmid in held]
    (tmp_path / "held.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    build_corpus({name: (source, patterns)}, tmp_path / "rest", 0.3, exclude_pmids=[str(tmp_path / "held.txt")])
    left = {id_: pmid for id_, pmid in expected.items() if pmid not in held}
    assert {id_: pmid for id_, pmid in pmids_of(tmp_path / "rest").items() if id_ in expected} == left

    # A corpus that is read again as text gives the same report.
    again = [str(tmp_path / "corpus/train-*"), str(tmp_path / "corpus/val-*")]
    build_corpus({"text": (Text(), again)}, tmp_path / "again", 0.3)
    assert pmids_of(tmp_path / "again") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(17, 17), ("17", 17), ("0017", 17), (True, None), (17.0, None), ("17.0", None), ("٣٤", None), ("", None),
     (" 17", None), ("123456789", None), (-1, None), (None, None), ("pmid:17", None)],
)  # fmt: skip
def test_what_is_a_pubmed_number(value: object, expected: int | None) -> None:
    assert parse_pmid(value) == expected
    assert pmid_of_id(f"pmid:{value}") == (expected if isinstance(value, (int, str)) else None)
    assert pmid_of_id(str(value)) == (17 if value == "pmid:17" else None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("10.1038/x\n5\n", "line 1: does not begin with a PubMed number but b'10.1038/x'"),
        ("pmid\n123456789\n", "line 2: does not begin"),
        ("pmid:x1\n5\n", "line 1: does not begin"),
        ("1\r2\r3\r", "line 1: lines end in CR only"),
        ("pmid,set\n", "holds no PubMed number"),
        ("5.5\n", "line 1: does not begin"),
    ],
)
def test_lists_of_numbers_that_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text(content, newline="")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(20)))
    with pytest.raises(BadInput, match=rf"held\.txt.*{says}"):
        build_corpus(
            {"text": (Text(), [str(tmp_path / "a.jsonl")])},
            tmp_path / "corpus",
            0.3,
            exclude_pmids=[str(tmp_path / "held.txt")],
        )


def words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices("abcdefghij", k=8)) for _ in range(count))


def test_a_common_phrase_is_no_leak_and_every_leak_says_what_and_where(
    tmp_path: Path, make_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is that of decontamination: a corpus that was decontaminated against a text contains no leak of it."""
    draw = random.Random(3)
    phrase, rare, leaked, short = (words(draw, n) for n in (GRAM_WORDS, GRAM_WORDS, 30, 8))
    texts = {f"phrase{n}": f"{words(draw, 20)} {phrase}." for n in range(COMMON_DOCUMENTS + 1)}
    texts |= {f"rare{n}": f"{words(draw, 20)} {rare}." for n in range(COMMON_DOCUMENTS)}
    texts |= {"leak": f"before {leaked.upper()}, after", "short": short}
    # One of 11 documents with a phrase is dropped because of another text: the phrase is in 10, and no longer common.
    edge = words(draw, GRAM_WORDS)
    texts |= {f"edge{n}": f"{edge} {words(draw, 20)}" for n in range(COMMON_DOCUMENTS)}
    texts |= {"edge and leak": f"{edge} {words(draw, 9)} {leaked}"}
    filler = {f"filler{n}": words(draw, 9) for n in range(40)}
    documents = [Document(id_, text, "notes", None, None) for id_, text in (texts | filler).items()]
    corpus = make_corpus(tmp_path / "corpus", documents, 0.1)
    asked = {"phrase": phrase, "rare": rare, "leaked": leaked, "short": short, "edge": edge, "seven": words(draw, 7)}
    questions = {name: Question(name, text, ("a", "b"), 0, "") for name, text in asked.items()}
    train = set(pmids_of(corpus, "train"))
    leaks = find_leaks(questions, corpus)
    where = {name: {id_ for id_ in train if id_.startswith(name)} for name in ("rare", "short")}
    where["leaked"] = train & {"leak", "edge and leak"}
    assert {name: set(leak["documents"]) for name, leak in leaks.words.items()} == {k: v for k, v in where.items() if v}
    assert leaks.words["leaked"]["words"] == " ".join(leaked.split()[:GRAM_WORDS])
    assert (leaks.too_short, leaks.common_runs) == ({"seven"}, 2), "phrase and edge are in 11 documents each"
    assert leaks.without_pmid == questions.keys() and leaks.documents == len(train)
    monkeypatch.setattr(contamination, "SMALL_BYTES", 0)  # in its own processes
    assert find_leaks(questions, corpus) == leaks

    (tmp_path / "eval.txt").write_text("\n\n".join(asked.values()))
    clean = make_corpus(tmp_path / "clean", documents, 0.1, decontaminate=[str(tmp_path / "eval.txt")])
    monkeypatch.undo()
    assert not find_leaks(questions, clean).any
    assert {id_ for id_ in texts if id_.startswith("phrase")} <= pmids_of(clean).keys()


def test_a_corpus_whose_documents_do_not_say_their_numbers_is_refused(
    tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    documents = [Document(f"pmcid:PMC{n}", f"text {n}", ARTICLES, None, None) for n in range(30)]
    corpus = make_corpus(tmp_path / "corpus", documents, 0.2)
    manifest = json.loads((corpus / MANIFEST).read_text())
    manifest["without_pmid"] = 10  # an older version did not keep the known numbers
    manifest["seal"] = seal(manifest)
    (corpus / MANIFEST).write_text(json.dumps(manifest))
    asked = {"q": Question("q", "Why?", ("a", "b"), 0, "", pmids=("5",))}
    with pytest.raises(BadInput, match=r"20 of 20 documents with a PubMed number do not record it, .* make it again"):
        find_leaks(asked, corpus)

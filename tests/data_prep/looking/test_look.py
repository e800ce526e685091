"""The page of a corpus shows documents as they are, what was removed from each, and what is not known about it."""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data_prep import look
from data_prep.common.errors import BadInput
from data_prep.common.lock import hold
from data_prep.common.manifest import read_manifest
from data_prep.filtering import corpus_format, spool
from data_prep.filtering.build_corpus import build_corpus
from data_prep.filtering.corpus_format import SPLITS
from data_prep.looking import corpus_parts
from data_prep.looking.corpus_parts import Corpus
from data_prep.looking.inputs_again import known_inputs
from data_prep.looking.sampling import one, sample
from data_prep.looking.survey import PERCENTILES, survey
from data_prep.sources import medline_text
from data_prep.sources import sample as bundled
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document
from data_prep.sources.medline import Medline
from data_prep.sources.pmc import Pmc
from data_prep.sources.text import Text
from last_line import next_command

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = (
    '<script>document.title="broken"</script><img src=x onerror=\'document.title="broken"\'> </div></details>&lt;b&gt; '
    '{{ 7 * 7 }} {% raw %} <!-- "quoted" \' \u202eturned\u202c a\u200bb\ttab\n\nnew </pre> line'
)
NOTICE = "© 2021 The Society. All rights reserved."
Built = tuple[Path, dict[str, Document]]


def citation(pmid: int) -> str:
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>Cells {pmid}.'
        f'</ArticleTitle><Abstract><AbstractText Label="AIM">Of 10<sup>6</sup> cells {pmid} &lt; grew. {NOTICE}'
        "</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A corpus of articles, citations and own texts in several parts, and its documents."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "pmc").mkdir()
    for path in bundled.paths(".nxml"):
        shutil.copy(path, folder / "pmc")
    (folder / "medline").mkdir()
    for number in range(3):
        records = "".join(map(citation, range(100 * number + 1, 100 * number + 60)))
        content = gzip.compress(f"<PubmedArticleSet>{records}</PubmedArticleSet>".encode())
        (folder / f"medline/pubmed21n000{number}.xml.gz").write_bytes(content)
    lines = [{"text": f"text of one's own {n}\nwith soft hy\xadphens", "id": f"own:{n}"} for n in range(40)]
    lines += [{"text": HOSTILE, "id": '<b>"&'}, {"text": "TEXT OF ONE'S OWN 0 WITH SOFT HYPHENS", "id": "copy"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "buckets_for", lambda _: 12)
        build_corpus(
            {
                "pmc": (Pmc(), [str(folder / "pmc")]),
                "medline": (Medline(), [str(folder / "medline")]),
                "text": (Text(set_name="<i>own</i>"), [str(folder / "own.jsonl")]),
            },
            folder / "corpus",
            0.2,
        )
    documents = {d.id: d for split in SPLITS for d in corpus_format.read_documents(folder / "corpus", split)}
    return folder / "corpus", documents


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """A copy of the corpus with its own inputs, which a test may change."""
    corpus, _ = built
    for name in ("pmc", "medline", "corpus"):
        shutil.copytree(corpus.with_name(name), tmp_path / name)
    shutil.copy(corpus.with_name("own.jsonl"), tmp_path)
    from data_prep.files import json_lines

    with json_lines.Writer(known_inputs(tmp_path / "corpus")) as writer:
        for _, record in json_lines.read(known_inputs(corpus)):
            writer.write({**record, "url": record["url"].replace(str(corpus.parent), str(tmp_path))})
    return tmp_path / "corpus"


def shown_on(path: Path) -> dict[str, dict[str, Any]]:
    """For each document on a page: its text, how often each rule removed something, and the notes.

    In the HTML of a text, every `<` is markup, because all others are escaped.
    """
    documents = {}
    for part in re.split('<details class="document"[^>]*>', path.read_text(encoding="utf-8"))[1:]:
        id, notes, text = re.fullmatch(
            r"<summary>(.*?)</summary>(.*?)<div class=.text.>(.*?)</div>.*", part, re.S
        ).groups()  # pyright: ignore[reportOptionalMemberAccess]
        removed = Counter(re.findall(r"<del [^>]*>(?:<br>)?<b>(.*?)</b>", text))
        removed += Counter(re.findall(r'<details class="cut"[^>]*><summary><b>(.*?)</b>', text))
        text = re.sub(r'<details class="cut".*?</details>', "", text, flags=re.S)
        text = re.sub(r"<del .*?</del>", "", text, flags=re.S)
        documents[plain(id)] = {
            "text": plain(re.sub(r"<b>.*?</b>|<s>¶</s>", "", text)),
            "removed": removed,
            "notes": plain(notes),
        }
    return documents


def plain(page: str) -> str:
    signs = re.sub(r"<u>U\+([0-9A-F]{4,6})</u>", lambda code: chr(int(code[1], 16)), page)
    return html.unescape(re.sub(r"<[^<>]*>", "", signs)).replace("␣", " ")


def test_the_page_shows_each_document_as_it_is_and_what_was_taken_out(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, documents = built
    out = tmp_path / "page.html"
    look.main([str(corpus), "--sample", "500", "--out", str(out)])
    shown = shown_on(out)
    assert shown.keys() == documents.keys(), "if 500 are asked for, all existing documents are shown, each once"
    for id, one_shown in shown.items():
        assert one_shown["text"] == documents[id].text, id
        if documents[id].source == ABSTRACTS:
            assert {"copyright notices": 1, "section labels": 1}.items() <= one_shown["removed"].items()
    assert sum(one_shown["removed"]["references"] for one_shown in shown.values()) == 6, "two articles have no list"
    assert shown["own:7"]["removed"] == {"soft hyphens": 1}
    output, count = capsys.readouterr().out, len(documents)
    assert f"{out}: {count} documents of {corpus}, {count} of them with their changes; open the page" in output
    assert next_command(output, tmp_path)[1] == "data_prep/tokenizer.py"


def test_the_text_of_a_hostile_document_is_text(
    built: Built, tmp_path: Path, visit: Callable[[str, int], Page]
) -> None:
    corpus, documents = built
    out = tmp_path / "page.html"
    look.main([str(corpus), "--sample", "100", "--source", "text", "--out", str(out)])
    assert shown_on(out)['<b>"&']["text"] == documents['<b>"&'].text
    for width in (390, 1200):
        page = visit(out.as_uri(), width)
        assert page.title() == "corpus: documents to read"
        assert page.locator("script, img, iframe, object, link").count() == 0
        assert "<script>document.title" in page.inner_text("body") and "{{ 7 * 7 }}" in page.inner_text("body")
        mark = page.locator(".text del").first
        assert mark.is_visible()
        page.get_by_label("show only the text").check()
        assert not mark.is_visible() and "{{ 7 * 7 }}" in page.inner_text("body")


def test_a_seed_is_a_page(built: Built, tmp_path: Path) -> None:
    corpus, _ = built
    pages = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        look.main([str(corpus), "--sample", "6", "--seed", seed, "--out", str(tmp_path / f"{name}.html")])
        pages.append(tmp_path / f"{name}.html")
    same, again, other = (path.read_bytes() for path in pages)
    assert same == again and shown_on(pages[0]).keys() != shown_on(pages[2]).keys()
    assert other != same


def test_a_sample_is_spread_over_the_sources_and_reads_few_parts(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, documents = built
    read: list[str] = []
    whole = corpus_parts.read_part
    monkeypatch.setattr(corpus_parts, "read_part", lambda path, sha256: read.append(path.name) or whole(path, sha256))
    sampled = sample(Corpus(corpus), 9, seed=3)
    sets = Counter(shown.document.source for shown in sampled)
    assert sets == {ARTICLES: 3, ABSTRACTS: 3, "<i>own</i>": 3}
    assert len({shown.document.id for shown in sampled}) == 9
    assert all(documents[shown.document.id] == shown.document and shown.changes for shown in sampled)
    read.clear()
    assert len(sample(Corpus(corpus), 1, seed=3)) == 1
    assert len(set(read)) <= 10 < len(list(corpus.glob("*-*.jsonl.zst"))), (
        "the part of the document, and beginnings of others"
    )


def test_every_document_is_found_in_its_part_and_no_other(built: Built) -> None:
    corpus, documents = built
    parts = Corpus(corpus)
    assert len(parts.parts["train"]) == 12
    assert {id: hit[1] for id in documents if (hit := parts.find(id))} == documents
    assert not any(parts.find(f"pmid:{number}") for number in range(1000, 1100))


@pytest.mark.parametrize(
    ("asked", "id"), [("PMC1790863", "pmcid:PMC1790863"), ("pmc3574550", "pmcid:PMC3574550"), ("130", "pmid:130"),
                      ("own:3", "own:3"), ('<b>"&', '<b>"&')]
)  # fmt: skip
def test_a_document_by_its_id(built: Built, asked: str, id: str) -> None:
    corpus, documents = built
    shown = one(Corpus(corpus), asked)
    assert shown.document == documents[id] and shown.changes is not None and not shown.problem
    assert shown.file in {path.name for path in corpus.parent.rglob("*") if path.is_file()}


def test_documents_that_a_rule_changed(built: Built) -> None:
    corpus, _ = built
    sampled = sample(Corpus(corpus), 50, seed=1, rule="citation marks")
    assert {shown.document.source for shown in sampled} == {ARTICLES} and 5 < len(sampled) < 9
    assert all(shown.changes and "citation marks" in shown.changes.rules() for shown in sampled)
    assert not sample(Corpus(corpus), 5, seed=1, rule="ligatures", source="text")
    with pytest.raises(BadInput, match=r"no document of .* that the rule 'ligatures' changed"):
        look.main([str(corpus), "--changed", "ligatures", "--source", "text"])


def altered(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda corpus: [p.write_bytes(change(p.read_bytes())) for p in (corpus.parent / "pmc").iterdir()]


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda corpus: known_inputs(corpus).unlink(), "corpus.inputs.jsonl.zst, which lists the paths"),
    "gone": (lambda corpus: shutil.rmtree(corpus.parent / "pmc"), "No such file"),
    "longer": (altered(lambda content: content + b"\n"), r"has [\d,]+ bytes, but had"),
    "in its metadata": (altered(lambda content: content.replace(b"</journal", b"</journaL")), "not XML"),
    "in its end": (altered(lambda content: content.replace(b"<ref id", b"<ref iD")), "has other content than when"),
    "in its text": (
        altered(lambda content: content.replace(b" the ", b" teh ")),
        "gives another text now|other content",
    ),
}


@pytest.mark.parametrize(("harm", "says"), HARMS.values(), ids=HARMS)
def test_where_an_input_is_not_what_it_was_the_text_stands_alone(
    copied: Path, harm: Callable[[Path], object], says: str, capsys: pytest.CaptureFixture[str], built: Built
) -> None:
    harm(copied)
    look.main([str(copied), "--source", "pmc", "--sample", "8"])
    page = copied.with_name("corpus-look.html")
    shown = shown_on(page)
    assert len(shown) == 8, "as many as asked for"
    alone = {id: one_shown for id, one_shown in shown.items() if "The changes are unknown" in one_shown["notes"]}
    assert alone and all(re.search(says, one_shown["notes"]) for one_shown in alone.values())
    for id, one_shown in alone.items():
        assert not one_shown["removed"] and one_shown["text"] == built[1][id].text
    out = capsys.readouterr().out
    assert (
        re.search(f"changes unknown: .*{says}", out) and f"{len(shown) - len(alone)} of them with their changes" in out
    )
    assert one(Corpus(copied), next(iter(alone))).problem


def test_where_rules_are_others_now_the_text_stands_alone(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs are unchanged, but another version of the rules reads them."""
    corpus, documents = built
    monkeypatch.setattr(medline_text, "numbers_apart", lambda line: line.replace("\x01", "").replace("\x03", ""))
    sampled = sample(Corpus(corpus), 4, seed=1, source="medline")
    assert len(sampled) == 4 and all(documents[shown.document.id] == shown.document for shown in sampled)
    for shown in (*sampled, one(Corpus(corpus), "130")):
        assert shown.changes is None and "another version of the rules" in shown.problem


def test_the_summary_is_of_the_corpus(built: Built, tmp_path: Path) -> None:
    corpus, documents = built
    looked = survey(Corpus(corpus), 1)
    assert 0 < looked.documents < len(documents)
    by_set = {
        name: [d for d in documents.values() if d.source == name] for name in {d.source for d in documents.values()}
    }
    for name, lengths in looked.sets.items():
        sizes = sorted(len(d.text) for d in by_set[name])
        assert set(lengths.characters) <= set(sizes) and len(lengths.words) == len(lengths.characters)
        low, *_, high = lengths.percentiles()["characters"]
        assert (low, high) == (min(lengths.characters), max(lengths.characters)) and len(PERCENTILES) == 6
    for kind, oddities in looked.oddities.items():
        values = [odd.value for odd in oddities]
        assert values == sorted(values, reverse=kind != "shortest")
        assert all(
            " ".join(documents[odd.id].text.split()).startswith(odd.excerpt.removesuffix(" …")) for odd in oddities
        )
    look.main([str(corpus), "--sample", "2", "--out", str(tmp_path / "page.html")])
    page = re.sub(r"<[^<>]*>", "|", (tmp_path / "page.html").read_text())
    manifest = read_manifest(corpus, "corpus", "")
    assert f"|{len(documents)} documents, " in page.replace("\n", "")
    for reason, count in manifest["dropped"].items():
        assert f"|{reason}||{count:,}|" in page
    for rule, count in manifest["characters"].items():
        assert f"|{rule}||{count:,}|" in page
    assert manifest["dropped"]["same text"] == 1 and manifest["characters"]["soft hyphens"] == 40


def test_what_cannot_be_looked_at_is_refused(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, _ = built
    for argv, says in (
        ([str(tmp_path)], "not a finished corpus folder"),
        ([str(corpus), "--source", "pile"], "--source pile: .* was made from medline, pmc, text"),
        ([str(corpus), "--id", "PMC7"], "holds no document 'PMC7' or 'pmcid:PMC7'"),
        ([str(corpus), "--id", "7", "--changed", "references"], "--changed cannot be used with --id"),
        ([str(corpus), "--changed", "no rule"], "must be one of citation marks, "),
    ):
        with pytest.raises(BadInput, match=says):
            look.main(argv)
    with hold(tmp_path / "page.html"), pytest.raises(BadInput, match="is writing"):
        look.main([str(corpus), "--out", str(tmp_path / "page.html")])
    assert not list(tmp_path.iterdir())
    # A command typed inside the corpus folder also writes the page beside the corpus.
    monkeypatch.chdir(corpus)
    assert look._beside(Path()) == corpus.with_name("corpus-look.html") == look._beside(corpus / "x/..")


def test_a_part_that_was_altered_is_refused(copied: Path) -> None:
    part = max(copied.glob("train-*.jsonl.zst"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(BadInput, match=part.name):
        look.main([str(copied), "--sample", "500"])

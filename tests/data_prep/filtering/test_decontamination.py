"""Decontamination finds evaluation texts in documents, in whatever form, and finds nothing else."""

from __future__ import annotations

import io
import json
import lzma
import random
import re
import textwrap
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import read_manifest
from data_prep.files import inputs
from data_prep.filtering import corpus_format, decontamination
from data_prep.filtering.build_corpus import CARD
from data_prep.filtering.decontamination import Grams, load
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document

MakeCorpus = Callable[..., Path]
Documents = list[Document]

SYLLABLES = ["car", "di", "o", "my", "neph", "ri", "tis", "gas", "tro", "en", "hep", "a", "lys", "ß", "é", "β"]


def words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=3)) for _ in range(count))


def punctuate(text: str) -> str:
    """The words with other commas, quotes and dashes between them."""
    signs = random.Random(5)
    return re.sub(" ", lambda _: signs.choice([" ", ", ", "; ", " – ", "-", "/", ' "', "\u00a0", " (", "…", "_"]), text)


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "re-wrapped": lambda text: textwrap.fill(text, 31),
    "re-wrapped with carriage returns": lambda text: textwrap.fill(text, 17).replace("\n", "\r\n   "),
    "upper case": str.upper,
    "title case": str.title,
    "other punctuation": punctuate,
    "soft hyphens": lambda text: re.sub(r"(\w\w)(?=\w)", "\\1\xad", text),
    "soft hyphens at line ends": lambda text: re.sub(r"(\w\w\w)(?=\w\w)", "\\1\xad\n", text),
    "zero-width characters": lambda text: re.sub(r"(\w)(?=\w)", "\\1\u200b", f"\ufeff{text}\u2060"),
    "words cut at line ends": lambda text: re.sub(r"(\w\w)(?=\w\w)", "\\1-\n", text),
    "words cut at line ends that were put together": lambda text: re.sub(r"(\w\w)(?=\w\w)", "\\1- ", text),
    "words cut at some line ends": lambda text: re.sub(r"(\w\w\w)(?=tis)", "\\1\u2010 \r\n  ", text),
    "decomposed letters": lambda text: unicodedata.normalize("NFD", text),
    "inside of other text": lambda text: f"{words(random.Random(8), 200)} {text}, {words(random.Random(9), 200)}",
    "its middle alone": lambda text: " ".join(text.split()[9:-9]),
}


def test_what_was_injected_is_found_in_every_form():
    """All 200 texts of 40 words are found in each form, without false alarms in 2,000 documents of the same words."""
    draw = random.Random(1)
    texts = [words(draw, 40) for _ in range(200)]
    grams = Grams(texts)
    assert (grams.texts, grams.too_short, len(grams)) == (200, 0, 200 * 28)
    recall = {name: sum(bool(grams.within(form(text))) for text in texts) / 200 for name, form in FORMS.items()}
    print(recall)
    assert recall == dict.fromkeys(FORMS, 1.0)
    for name, form in FORMS.items():  # and in the opposite direction
        grams_of_form = Grams(map(form, texts[:5]))
        assert all(map(grams_of_form.within, texts[:5])), name
    assert not any(grams.within(words(draw, 150)) for _ in range(2000))


def test_thirteen_words_are_overlap_and_twelve_are_not():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    grams = Grams([text, "Short ones, of eight words, count as a whole.", "Too short a text."])
    assert (len(grams), grams.too_short) == (3, 1)
    assert not grams.within(" ".join(text.split()[:12])) and not grams.within(" ".join(text.split()[2:]))
    assert len(grams.within(" ".join(text.split()[:13]))) == 1
    assert len(grams.within(text)) == 2
    assert len(grams.within("before: short ones of EIGHT words count as a whole; after")) == 1
    assert not grams.within("") and not grams.within("short ones of eight words count as a")


def test_evaluation_files_of_every_kind(tmp_path: Path):
    long = "this evaluation text has more than eight words in it, number {}"
    files = {
        "a.json": json.dumps({"17": {"question": long.format(1), "contexts": [long.format(2)], "year": 2020}}).encode(),
        "b.json": b"\n".join(json.dumps({"q": long.format(n)}).encode() for n in (3, 4)),
        "c.jsonl.xz": lzma.compress(json.dumps({"q": long.format(5)}).encode()),
        "d.csv": f'"{long.format(6)}",yes,{long.format(7).replace(",", "")}\n'.encode(),
        "e.txt": f"{long.format(8)}\n \n{textwrap.fill(long.format(9), 20)}\n".encode(),
        "f.jsonl": b"\xef\xbb\xbf" + json.dumps({"q": long.format(10)}).encode(),
        "g.csv": b"\xef\xbb\xbf" + f'"{long.format(11)}"\r\n'.encode(),
        "h.parquet": parquet_bytes({"id": [1, 2], "choices": [[long.format(12)], None]}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    grams = load(tuple(inputs.find([str(tmp_path)], decontamination.SUFFIXES)))
    assert all(grams.within(long.format(n)) for n in range(1, 13)) and not grams.within(long.format(13))
    assert len(grams) == 12
    assert {name: (file.texts, len(file.numbers)) for name, file in grams.files.items()} == {
        **{"a.json": (2, 2), "b.json": (2, 2), "c.jsonl.xz": (1, 1), "d.csv": (3, 2), "e.txt": (2, 2)},
        **{"f.jsonl": (1, 1), "g.csv": (1, 1), "h.parquet": (1, 1)},
    }
    for name, content, message in [
        ("x.json", b'{"a": "', "not|unexpected"),
        ("y.txt", b"few words", "no text of 8 words"),
        ("z.parquet", b"PAR1 no more", "damaged, or not a Parquet file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            load(tuple(inputs.find([str(tmp_path / name)], decontamination.SUFFIXES)))
        assert name in str(error.value)


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    target = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), target)
    return target.getvalue()


def build(
    make_corpus: MakeCorpus, folder: Path, documents: Documents, **arguments: object
) -> tuple[JsonDict, set[str]]:
    make_corpus(folder, documents, **arguments)
    left = {d.id for split in ("train", "val", "recent") for d in corpus_format.read_documents(folder, split)}
    return read_manifest(folder, "corpus", ""), left


def test_contaminated_documents_go_and_common_phrases_do_not_count(
    tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus
):
    draw = random.Random(2)
    leaked, phrase = words(draw, 30), words(draw, 13)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": leaked}) + "\n" + json.dumps({"q": phrase}) + "\n")
    (tmp_path / "half.txt").write_text(f"{' '.join(leaked.split()[15:])}\n\nToo short.")
    (tmp_path / "none.txt").write_text(words(draw, 20))
    extra = [
        *(Document(f"leak:{n}", f"{words(draw, 50)}\n{leaked.upper()}", ABSTRACTS, None, None) for n in range(10)),
        *(Document(f"phrase:{n}", f"{words(draw, 50)} {phrase}.", ABSTRACTS, None, None) for n in range(11)),
    ]
    extra.append(Document("leak:half", " ".join(leaked.split()[:14]), ABSTRACTS, None, None))
    evaluation = [str(tmp_path / name) for name in ("eval.jsonl", "half.txt", "none.txt")]
    manifest, left = build(make_corpus, tmp_path / "corpus", [*tiny_documents, *extra], decontaminate=evaluation)
    assert manifest["dropped"] == {"overlap with evaluation texts": 11}
    files = manifest["decontamination"].pop("files")
    assert manifest["decontamination"] == {"grams": 27, "texts": 5, "too_short": 1, "common_grams": 1}
    assert files == {
        "eval.jsonl": {"texts": 2, "too_short": 0, "documents": 11},
        "half.txt": {"texts": 2, "too_short": 1, "documents": 10},
        "none.txt": {"texts": 1, "too_short": 0, "documents": 0},
    }
    assert "| half.txt | 2 | 1 | 10 |\n" in (tmp_path / "corpus" / CARD).read_text()
    assert left == {d.id for d in [*tiny_documents, *extra] if not d.id.startswith("leak")}
    with pytest.raises(BadInput, match=r"arguments\.decontaminate: True -> False"):
        make_corpus(tmp_path / "corpus", tiny_documents)


def test_held_out_numbers_take_abstracts_and_articles(
    tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus
):
    extra = [
        Document("pmid:1", "An abstract.", ABSTRACTS, None, None, 1),
        Document("pmid:2", "Another abstract.", ABSTRACTS, None, None, 2),
        Document("pmcid:PMC2", "An article.", ARTICLES, None, None, 2),
        Document("pmid:3", "A third abstract.", ABSTRACTS, None, None, 3),
    ]
    (tmp_path / "pmids.tsv").write_text("pmid\tset\n1\tbioasq\n2\tncbi\n2,again\n\n99\n")
    pmids = [str(tmp_path / "pmids.tsv")]
    manifest, left = build(make_corpus, tmp_path / "corpus", [*tiny_documents, *extra], exclude_pmids=pmids)
    assert manifest["dropped"] == {"held out by PMID": 3}
    assert left == {d.id for d in tiny_documents} | {"pmid:3"}
    assert "\n30 documents have no PubMed number" in (tmp_path / "corpus" / CARD).read_text()
    (tmp_path / "pmids.tsv").write_text("1\nPMC7\n")
    with pytest.raises(BadInput, match=r"pmids\.tsv, line 2: does not begin with a PubMed number but b'PMC7'"):
        make_corpus(tmp_path / "other", tiny_documents, exclude_pmids=pmids)


def test_recent_documents_have_a_split_of_their_own(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    dates = {
        "2021-06-30": "stays",
        "2021-07-01": "recent",
        "2021-05": "stays",
        "2021-06": "stays",
        "2021-07": "recent",
        "2020": "stays",
        "2021": "goes",
        "2022": "recent",
        None: "stays",
    }
    extra = [Document(f"{date}", f"text of {date}", ABSTRACTS, None, date) for date in dates]
    again = Document("copy", "text of 2020", ABSTRACTS, None, "2023")  # a later copy of a text that train already has
    manifest, left = build(
        make_corpus, tmp_path / "corpus", [*tiny_documents, *extra, again], recent_after="2021-06-30"
    )
    recent = {d.id for d in corpus_format.read_documents(tmp_path / "corpus", "recent")}
    assert recent == {str(date) for date, where in dates.items() if where == "recent"}
    assert manifest["dropped"] == {"before or after --recent-after": 1, "same text": 1}
    assert "2021" not in left and "copy" not in left and {"2021-06", "None"} <= left
    for wrong in ("2021", "2021-13-01", "20210630"):
        with pytest.raises(BadInput, match=f"--recent-after = '{wrong}', but it must be a day"):
            make_corpus(tmp_path / "other", tiny_documents, recent_after=wrong)


def test_only_what_is_dated_after_a_day_is_kept(tmp_path: Path, make_corpus: MakeCorpus):
    """A date without a day may lie before the day, and so may a document without a date; both are left out."""
    dates = {
        "2021-06-30": False, "2021-07-01": True, "2021-06": False, "2021-07": True, "2020": False, "2021": False,
        "2022": True, None: False,
    }  # fmt: skip
    documents = [
        Document(f"{date}-{number}", f"text {number} of {date}", ABSTRACTS, None, date)
        for date in dates for number in range(20)
    ]  # fmt: skip
    manifest, left = build(make_corpus, tmp_path / "corpus", documents, dated_after="2021-06-30")
    assert left == {document.id for document in documents if dates[document.date]}
    reasons = {"without a date, so not known to be after --dated-after": 20, "not known to be after --dated-after": 80}
    assert manifest["dropped"] == reasons and manifest["arguments"]["dated_after"] == "2021-06-30"
    assert manifest["dates"]["first"] == "2021-07" and manifest["undated"] == 0
    card = (tmp_path / "corpus" / CARD).read_text()
    assert "All documents are dated after 2021-06-30" in card and all(
        f"| {why} | {n} |" in card for why, n in reasons.items()
    )
    make_corpus(tmp_path / "all", documents)
    assert "dated_after" not in read_manifest(tmp_path / "all", "corpus", "")["arguments"]
    with pytest.raises(BadInput, match=r"--dated-after = '2021', but it must be a day"):
        make_corpus(tmp_path / "other", documents, dated_after="2021")
    with pytest.raises(BadInput, match=r"--recent-after = 2021-06-30 leaves nothing to train on"):
        make_corpus(tmp_path / "other", documents, dated_after="2021-06-30", recent_after="2021-06-30")


def test_the_card_balances_and_states_nlms_terms(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    manifest, left = build(make_corpus, tmp_path / "corpus", [*tiny_documents, tiny_documents[0]])
    assert manifest["entries"] == len(left) + sum(manifest["dropped"].values()) == 331
    card = (tmp_path / "corpus" / CARD).read_text()
    for line in (
        "330 documents,",
        "| entries read | | 331 |\n| duplicates | 1 | 330 |\n",
        "| unknown | 300 |",
        "| CC BY | 30 |",
        "Courtesy of the U.S. National Library of Medicine",
        "does not reflect the most current/accurate data available from NLM",
    ):
        assert line in card
    own = make_corpus(tmp_path / "own", [Document(f"{n}", f"text {n}", "notes", None, None) for n in range(99)])
    assert "National Library" not in (own / CARD).read_text()

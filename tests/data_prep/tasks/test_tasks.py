"""Question sets are read as their projects publish them, and errors are reported with file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file
from data_prep.tasks.description import describe, repeated_texts
from data_prep.tasks.registry import READERS, formats, load
from data_prep.tasks.task_set import Question, Sentence, TaskSet, split_by_hash
from data_prep.tasks.token_classification import labels

Json = dict[str, Any]


def lines(path: Path, records: list[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def medqa(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        record = {
            "question": f"A {split} question?",
            "answer": "Tell the attending",
            "options": {"A": "Disclose", "B": "Tell the attending", "C": "Report", "D": "Refuse"},
            "meta_info": "step1",
            "answer_idx": "B",
            "metamap_phrases": ["question"],
        }
        path = folder / f"medqa/questions/US/4_options/phrases_no_exclude_{split}.jsonl"
        lines(path, [record, {**record, "question": "Another one?" + split}])


def medqa_endings(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        record = {"id": f"{split}-0", "sent1": f"A {split} question?", "sent2": "", "label": 3}
        lines(folder / f"medqa/{split}.json", [record | {f"ending{n}": f"option {n}" for n in range(4)}])


def medmcqa(folder: Path) -> None:
    for split in ("train", "dev"):
        record = {
            "question": "Which one?", "cop": 2, "opa": "no", "opb": "yes", "opc": "never", "opd": "all of the above",
            "id": f"{split}-1", "choice_type": "single",
        }  # fmt: skip
        lines(folder / f"medmcqa/{split}.json", [record, {**record, "id": f"{split}-2", "cop": 4}])


def pubmedqa(folder: Path) -> None:
    labels = ["yes", "no", "maybe", "yes", "no", "yes"]
    records = {
        str(100 + n): {"QUESTION": f"Does {n} work?", "CONTEXTS": ["Aim.", "Results."], "final_decision": label}
        for n, label in enumerate(labels)
    }
    (folder / "pubmedqa/pqal_fold0").mkdir(parents=True)
    truth = {id_: records[id_]["final_decision"] for id_ in ("100", "101", "102")}
    for name, content in (
        ("ori_pqal.json", records),
        ("test_ground_truth.json", truth),
        ("pqal_fold0/train_set.json", {id_: records[id_] for id_ in ("103", "104")}),
        ("pqal_fold0/dev_set.json", {"105": records["105"]}),
    ):
        (folder / "pubmedqa" / name).write_text(json.dumps(content))


def bioasq(folder: Path) -> None:
    def question(n: int, answer: str) -> Json:
        url = f"http://www.ncbi.nlm.nih.gov/pubmed/{n}"
        return {
            "id": f"q{n}", "body": f"Is {n} true?", "type": "yesno", "exact_answer": answer,
            "documents": [url], "snippets": [{"text": "It is.", "document": url}],
        }  # fmt: skip

    (folder / "bioasq").mkdir(parents=True)
    train = [question(n, "Yes" if n % 2 else "no") for n in range(40)] + [{"id": "f", "type": "factoid", "body": "?"}]
    (folder / "bioasq/training9b.json").write_text(json.dumps({"questions": train}))
    for batch in (1, 2):
        golden = {"questions": [question(100 + batch, "yes")]}
        (folder / f"bioasq/9B{batch}_golden.json").write_text(json.dumps(golden))


def mmlu(folder: Path) -> None:
    (folder / "mmlu/test").mkdir(parents=True)
    for subject in ("anatomy", "college_biology"):
        with (folder / f"mmlu/test/{subject}_test.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["Which, of\nthese?", "a", "b", "c", "d", "C"], ["And now?", *"wxyz", "A"]])


def sentence_lines(name: str) -> Callable[[Path], None]:
    """PubMedQA and BioASQ as written by BioMedLM's finetune/seqcls."""

    def write(folder: Path) -> None:
        for first, split in ((200, "train"), (300, "dev"), (400, "test")):
            records = [
                {"id": str(first + n), "sentence1": f"Does {n} work?", "sentence2": "Aim. Results.", "label": label}
                for n, label in enumerate(("yes", "no"))
            ]
            lines(folder / f"{name}/{split}.json", records)

    return write


def meqsum(folder: Path) -> None:
    records = [{"file": f"{n}.txt", "chq": f"Long {n}", "summary": f"Short {n}?"} for n in range(40)]
    lines(folder / "meqsum/meqsum.jsonl", records)


def pairs(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        lines(folder / f"mine/{split}.jsonl", [{"source": f"long {split}", "target": "short"}])


def diseases(folder: Path) -> None:
    """The format in which BioBERT's sets and MTL-Bioinformatics-2016 are published."""
    (folder / "diseases").mkdir(parents=True)
    for split in ("train", "devel", "test"):
        text = (
            "-DOCSTART-\tO\n\n"
            f"Clustering\tO\nof\tO\n{split}\tO\ncolorectal\tB-Disease\ncancer\tI-Disease\n.\tO\n\n"
            f"#\tO\n{split}\tO\n5-FU\tB-Chemical\n\n\n"
        )
        (folder / f"diseases/{split}.tsv").write_text(text)
    (folder / "diseases/train_dev.tsv").write_text("not read")


WRITERS: dict[str, Callable[[Path], None]] = {
    "medqa": medqa, "medmcqa": medmcqa, "pubmedqa": pubmedqa, "bioasq": bioasq, "mmlu": mmlu, "meqsum": meqsum,
    "mine": pairs, "diseases": diseases,
}  # fmt: skip


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], TaskSet]:
    def write_and_read(name: str) -> TaskSet:
        WRITERS[name](tmp_path)
        return load(name, tmp_path)

    return write_and_read


def test_every_set_of_the_table_is_described() -> None:
    described = formats()
    assert not [name for name in READERS if f"\n    {name} " not in described]


def test_medqa_in_both_forms(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("medqa")
    first = task.questions("test")[0]
    assert (first.question, first.options[first.answer]) == ("A test question?", "Tell the attending")
    assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 2, "dev": 2, "test": 2}
    name = "questions/US/4_options/phrases_no_exclude_dev.jsonl"
    assert task.files[name] == sha256_file(tmp_path / "medqa" / name)

    medqa_endings(tmp_path / "endings")
    question = load("medqa", tmp_path / "endings").questions("dev")[0]
    assert (question.id, question.question, question.answer) == ("dev-0", "A dev question?", 3)
    assert question.options[3] == "option 3"


def test_medmcqa_counts_from_one(read: Callable[[str], TaskSet]) -> None:
    task = read("medmcqa")
    assert [q.options[q.answer] for q in task.questions("dev")] == ["yes", "all of the above"]
    assert task.scored == "dev"


def test_pubmedqa_keeps_the_official_split(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("pubmedqa")
    assert [q.id for q in task.questions("test")] == ["100", "101", "102"]
    assert [q.options[q.answer] for q in task.questions("test")] == ["yes", "no", "maybe"]
    assert {q.options for split in task.splits for q in task.questions(split)} == {("yes", "no", "maybe")}
    question = task.questions("train")[0]
    assert question.context == "Aim. Results." and question.pmids == ("103",)

    folds = tmp_path / "pubmedqa/pqal_fold0"
    for name, ids, says in (
        ("train_set.json", ["103", "104", "101"], r"train_set\.json: 1 of the official test questions are in train"),
        ("train_set.json", ["103"], r"1 questions of ori_pqal.json are in no split, 104"),
        ("train_set.json", ["103", "104", "105"], r"105\): this id is also that of train"),
        ("train_set.json", ["103", "104", "7"], r"record 7 is missing"),
    ):
        (folds / name).write_text(json.dumps({id_: {} for id_ in ids}))
        with pytest.raises(BadInput, match=says):
            load("pubmedqa", tmp_path)


def test_pubmedqa_labels_must_agree(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    read("pubmedqa")
    truth = tmp_path / "pubmedqa/test_ground_truth.json"
    truth.write_text(truth.read_text().replace('"101": "no"', '"101": "yes"'))
    with pytest.raises(BadInput, match=r"record 101: final_decision is 'no', test_ground_truth\.json says 'yes'"):
        load("pubmedqa", tmp_path)


def test_bioasq_reads_yes_and_no(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("bioasq")
    train, dev = task.questions("train"), task.questions("dev")
    assert len(train) + len(dev) == 40 and 0 < len(dev) < 15
    assert train[0].options == ("yes", "no") and {q.answer for q in train} == {0, 1}
    assert [q.pmids for q in task.questions("test")] == [("101",), ("102",)]
    training = tmp_path / "bioasq/training9b.json"
    training.write_text(training.read_text().replace('"id": "q3"', '"id": "q101"'))
    with pytest.raises(BadInput, match=r"q101\): this id is also that of"):
        load("bioasq", tmp_path)


def test_mmlu_has_no_header(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("mmlu")
    assert [(q.subject, q.answer) for q in task.questions("test")] == [
        ("anatomy", 2), ("anatomy", 0), ("college_biology", 2), ("college_biology", 0),
    ]  # fmt: skip
    path = tmp_path / "mmlu/test/anatomy_test.csv"
    path.write_text("question,A,B,C,D,answer\n" + path.read_text())
    with pytest.raises(BadInput, match=r"anatomy_test\.csv, line 1: the answer is 'answer'"):
        load("mmlu", tmp_path)


def test_meqsum_from_both_files_is_split_alike(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("meqsum")
    assert sum(map(len, task.splits.values())) == 40 and len(task.pairs("train")) > 20
    book = Workbook()
    assert book.active is not None
    for row in [("File", "CHQ", "Summary"), *((f"{n}.txt", f"Long {n}", f"Short {n}?") for n in range(40))]:
        book.active.append(row)
    (tmp_path / "book/meqsum").mkdir(parents=True)
    book.save(tmp_path / "book/meqsum/MeQSum.xlsx")
    same = load("meqsum", tmp_path / "book")
    for split in task.splits:
        assert [(p.id, p.target) for p in same.pairs(split)] == [(p.id, p.target) for p in task.pairs(split)]
    (tmp_path / "book/meqsum/MeQSum.xlsx").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match="not a readable workbook"):
        load("meqsum", tmp_path / "book")


def test_any_pairs(read: Callable[[str], TaskSet]) -> None:
    assert read("mine").pairs("dev")[0].source == "long dev"


def test_tagged_words(read: Callable[[str], TaskSet], tmp_path: Path) -> None:
    task = read("diseases")
    assert task.kind == "tags" and list(task.files) == ["train.tsv", "devel.tsv", "test.tsv"]
    first, second = task.sentences("dev")
    assert first.words == ("Clustering", "of", "devel", "colorectal", "cancer", ".")
    assert first.tags == ("O", "O", "O", "B-Disease", "I-Disease", "O")
    assert (first.id, first.where) == ("dev-00000", f"{tmp_path}/diseases/devel.tsv, line 3")
    assert second.words == ("#", "devel", "5-FU") and second.where_of(2).endswith("devel.tsv, line 12")
    printed = describe(task)
    assert "train 2, dev 2, test 2" in printed
    assert "  test: 9 words, 2 entities: Chemical 1 (50.0%), Disease 1 (50.0%)" in printed
    assert labels(task.sentences("train")) == ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")


def test_labels_do_not_hang_on_the_order_of_the_file(read: Callable[[str], TaskSet]) -> None:
    sentences = read("diseases").sentences("train")
    assert labels(sentences) == labels(sentences[::-1])
    assert labels([Sentence("1", ("a", "b"), ("S", "O"), "f, line 1")]) == ("O", "B", "I", "E", "S")


@pytest.mark.parametrize(
    ("name", "text", "words", "tags"),
    [
        ("train.txt", "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n", ("EU", "rejects"), "B-ORG O"),
        ("train.conll", "# id = 1\n# text = a b\n#\tB\nb\tI\n", ("#", "b"), "B I"),
        ("train.iob", "###MEDLINE:95369245\n\nIL-2\tB-DNA\ngene\tI-DNA\n", ("IL-2", "gene"), "B-DNA I-DNA"),
        ("train.tsv", "a\tI-X\r\nb\tI-X\r\nc\tB-X\r\nd\tI-Y\r\n", tuple("abcd"), "B-X I-X B-X B-Y"),
        ("train.tsv", "in vivo\tO\na\u2028b\tS-X\nc\tB-X\nd\tE-X", ("in vivo", "a\u2028b", "c", "d"), "O S-X B-X E-X"),
        ("train.tsv", "a  O\nb \t U-X\n", ("a", "b"), "O U-X"),
        ("train.txt", "the DT\ngene NN\n", ("the", "gene"), "DT NN"),
    ],
    ids=["conll-2003", "comments", "jnlpba", "iob1", "iobes", "blanks", "parts-of-speech"],
)  # fmt: skip
def test_forms_of_tagged_words(
    name: str, text: str, words: tuple[str, ...], tags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.tasks.token_classification.LEAKED_SHARE", 1.0)
    (tmp_path / "own").mkdir()
    for split in ("train", "test"):
        (tmp_path / "own" / name.replace("train", split)).write_bytes(text.encode())
    task = load("own", tmp_path)
    (sentence,) = task.sentences("train")
    assert (sentence.words, sentence.tags) == (words, tuple(tags.split()))
    assert ("read as B (IOB1)" in task.note) == ("I-ORG" in text or "I-Y" in text)


def test_folders_of_tagged_words_that_are_refused(tmp_path: Path) -> None:
    diseases(tmp_path)
    folder = tmp_path / "diseases"
    for name, text, says in (
        ("dev.tsv", "a\tO\n", r"holds 2 files for dev: .*dev\.tsv, .*devel\.tsv; keep one"),
        ("test.jsonl", "{}", r"holds both test\.jsonl and test\.tsv; keep one"),
        ("test.tsv", "", r"test\.tsv: it holds no tagged word"),
        ("train.tsv", "-DOCSTART-\tO\n\n\n", r"train\.tsv: it holds no tagged word"),
        ("test.tsv", "a\tO\n\nb\tO\n", r"test\.tsv, line 1: test has no entity, every tag is O; are its tags withheld"),
        ("test.tsv", "a\nb\n", r"test\.tsv, line 1: 1 columns; a line is a word"),
        ("train.tsv", "a\tNN\nb\tVBZ\n", r"train\.tsv, line 1: the tag 'NN' belongs to no known scheme"),
    ):
        old = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(text)
        with pytest.raises(BadInput, match=says):
            load("diseases", tmp_path)
        (folder / name).write_bytes(old) if old is not None else (folder / name).unlink()
    (folder / "test.tsv").unlink()
    with pytest.raises(BadInput, match=r"holds neither test\.jsonl .* nor tagged words \(test\.tsv, "):
        load("diseases", tmp_path)


def test_a_test_split_that_is_in_train_is_refused(tmp_path: Path) -> None:
    diseases(tmp_path)
    train, test = tmp_path / "diseases/train.tsv", tmp_path / "diseases/test.tsv"
    train.write_text(train.read_text() + "\n" + test.read_text())
    says = (
        r"test\.tsv, line 3: 2 of 2 sentences of test that have entities are in train, too, the first at .*train.tsv, l"
    )
    with pytest.raises(BadInput, match=says):
        load("diseases", tmp_path)
    more = "".join(f"new{n}\tB-Disease\n\n" for n in range(18))
    test.write_text(test.read_text() + more)
    assert "2 of 20 sentences of test that have entities are in train, too" in load("diseases", tmp_path).note


def test_what_is_printed(read: Callable[[str], TaskSet]) -> None:
    printed = describe(read("pubmedqa"))
    assert "train 2, dev 1, test 3" in printed and "maybe 33.3%, no 33.3%, yes 33.3%" in printed
    assert "ori_pqal.json  sha256" in printed


def test_texts_in_two_splits_are_counted(read: Callable[[str], TaskSet]) -> None:
    assert repeated_texts(read("medmcqa")) == 1, "the same question under different ids"
    assert repeated_texts(read("medqa")) == 0


def test_a_split_by_hash_is_of_the_id_alone() -> None:
    shares = {"train": 0.8, "dev": 0.1, "test": 0.1}
    splits = [split_by_hash(f"{n}.txt", shares) for n in range(5000)]
    assert [splits.count(split) for split in shares] == pytest.approx([4000, 500, 500], rel=0.15)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "says"),
    [
        ("medmcqa", "train.json", '"cop": 2', '"cop": 0', "line 1: cop is 0, not 1 to 4"),
        ("medmcqa", "train.json", '"cop": 4', '"cop": 5', "line 2: cop is 5"),
        ("medmcqa", "train.json", '"opb": "yes"', '"opb": null', "line 1: opb is None"),
        ("medmcqa", "train.json", '"opb": "yes"', '"opb": " "', r"line 1 \(train-1\): option 2 is empty"),
        ("medmcqa", "train.json", '"opb": "yes", ', "", "line 1: opb is missing"),
        ("medmcqa", "train.json", "Which one?", "", r"line 1 \(train-1\): the question is empty"),
        ("medmcqa", "train.json", "train-2", "train-1", r"line 2 \(train-1\): this id is also that of train"),
        ("medmcqa", "train.json", "train-2", "dev-2", r"line 2 \(dev-2\): this id is also that of train"),
        ("medmcqa", "train.json", '{"question"', "{question", "line 1: not JSON"),
        ("medmcqa", "train.json", "Which", "Wh\udcffch", "line 1: not UTF-8"),
        ("medqa", "4_options/phrases_no_exclude_dev.jsonl", '"answer_idx": "B"', '"answer_idx": "E"', "line 1: answer"),
        ("medqa", "4_options/phrases_no_exclude_dev.jsonl", '"answer_idx": "B"', '"answer_idx": "C"', "option C is"),
        ("medqa", "4_options/phrases_no_exclude_dev.jsonl", '"D": "R', '"E": "R', "the options are A, B, C, E"),
        ("pubmedqa", "ori_pqal.json", '"maybe"', '"perhaps"', "record 102"),
        ("pubmedqa", "ori_pqal.json", '"Aim.", "Results."', '""', "record 103: CONTEXTS is empty"),
        ("bioasq", "9B2_golden.json", '"exact_answer": "yes"', '"exact_answer": "maybe"', "question 1: exact_answer"),
        ("mmlu", "anatomy_test.csv", "c,d,C", "c,C", "5 columns"),
        ("mmlu", "anatomy_test.csv", ",A", ",E", "line 3: the answer is 'E'"),
        ("meqsum", "meqsum.jsonl", "Short 7?", "", r"line 8 \(7\.txt\): its target is empty"),
        ("mine", "train.jsonl", '"long train"', "7", "line 1: source is 7"),
        ("mine", "train.jsonl", '{"source": "long train", "target": "short"}', "[1]", "line 1: not a JSON object"),
        ("mine", "train.jsonl", '{"source": "long train", "target": "short"}', "", "train split is empty"),
        ("diseases", "train.tsv", "of\tO", "of O", "line 4: 1 columns, but the first line has 2; a line is a word and"),
        ("diseases", "train.tsv", "of\tO", "of\tIN\tO", "line 4: 3 columns, but the first line has 2"),
        ("diseases", "train.tsv", "of\tO", "\tO", "line 4: its word is empty"),
        ("diseases", "train.tsv", "of\tO", "of\t\tO", "line 4: 3 columns"),
        ("diseases", "train.tsv", "colorectal\tB-Disease", "colorectal\tDisease", "line 6: the tag 'Disease' belongs"),
        ("diseases", "train.tsv", "colorectal\tB-", "colorectal\tM-", "line 6: the tag 'M-Disease' belongs to no"),
        ("diseases", "train.tsv", "colorectal\tB-Disease", "colorectal\tB", "line 6: the tag 'B' has no type, but '.-"),
        ("diseases", "train.tsv", "cancer\tI-", "cancer\tE-", "line 12: B-Chemical of '5-FU' is part of no entity"),
        ("diseases", "devel.tsv", "cancer\tI-", "cancer\tL-", r"L-Disease in .*devel\.tsv, line 7 shows .* BILOU"),
        ("diseases", "devel.tsv", "5-FU\tB-", "5-FU\tS-", r"S-Chemical in .*devel\.tsv, line 12 shows .* IOBES"),
        ("diseases", "test.tsv", "5-FU\tB-Chemical", "5-FU\tB-Drug", "line 12: train has no Drug"),
        ("diseases", "test.tsv", "5-FU", "5-F\udcff", "line 12: not UTF-8"),
    ],
)  # fmt: skip
def test_bad_records_are_refused(name: str, file: str, old: str, new: str, says: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = next(tmp_path.rglob(file))
    content = path.read_text()
    assert old in content
    path.write_bytes(content.replace(old, new).encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=says) as error:
        load(name, tmp_path)
    assert Path(file).name in str(error.value) or "train split" in str(error.value)


def test_missing_and_double_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="medqa does not exist"):
        load("medqa", tmp_path)
    medmcqa(tmp_path)
    (tmp_path / "medmcqa/copy").mkdir()
    (tmp_path / "medmcqa/copy/dev.json").write_text("")
    with pytest.raises(BadInput, match=r"holds dev\.json 2 times"):
        load("medmcqa", tmp_path)
    (tmp_path / "bioasq").mkdir()
    with pytest.raises(BadInput, match=r"holds no \*golden"):
        load("bioasq", tmp_path)


def test_biomedlms_own_lines_of_pubmedqa_and_bioasq(tmp_path: Path) -> None:
    for name, answers, pmids in (("pubmedqa", ("yes", "no", "maybe"), ("401",)), ("bioasq", ("yes", "no"), ())):
        sentence_lines(name)(tmp_path)
        task = load(name, tmp_path)
        assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 2, "dev": 2, "test": 2}
        question = task.questions("test")[1]
        assert (question.id, question.question, question.context) == ("401", "Does 1 work?", "Aim. Results.")
        assert (question.options, question.answer, question.pmids) == (answers, 1, pmids)
    path = tmp_path / "bioasq/dev.json"
    path.write_text(path.read_text().replace('"no"', '"maybe"'))
    with pytest.raises(BadInput, match=r"dev\.json, line 2: label is 'maybe', not one of yes, no"):
        load("bioasq", tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [(medqa, medqa_endings), (pubmedqa, sentence_lines("pubmedqa")), (bioasq, sentence_lines("bioasq"))],
)
def test_a_set_in_two_forms_is_refused(
    one: Callable[[Path], None], other: Callable[[Path], None], tmp_path: Path
) -> None:
    one(tmp_path)
    other(tmp_path)
    with pytest.raises(BadInput, match=r"holds the set in 2 formats: .*; keep one"):
        load(one.__name__, tmp_path)
    for path in list(tmp_path.rglob("train*")):  # its test file alone is enough
        path.unlink()
    with pytest.raises(BadInput, match=r"holds the set in 2 formats: .*; keep one"):
        load(one.__name__, tmp_path)


def test_equal_options_are_one_and_counted(tmp_path: Path) -> None:
    """Otherwise equal options tie, and the first is taken, whether it is right or not."""
    medmcqa(tmp_path)
    path = tmp_path / "medmcqa/dev.json"
    record = {"question": "Q?", "opa": "a", "opb": "b", "opc": "a ", "opd": "c"}
    lines(path, [{**record, "id": f"{n}", "cop": cop} for n, cop in enumerate((1, 2, 3, 4))])
    task = load("medmcqa", tmp_path)
    assert [(q.options, q.answer) for q in task.questions("dev")] == [(("a", "b", "c"), n) for n in (0, 1, 0, 2)]
    assert "questions that have an option more than once: 4 of dev; equal texts are one option" in describe(task)


OTHER = (None, True, 7, 1.5, [], ["x", None], {}, {"a": None})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every place in a JSON value."""
    paths = [path] if path else []
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            paths += places(value[key], (*path, key))
    return paths


def mutations(value: Any) -> list[tuple[str, Any]]:
    """Copies of a JSON value with one fault each: another type, a null, a missing key, one key or entry too many."""
    mutants = []
    for *path, last in places(value):
        for new in (*OTHER, "DELETED"):
            mutant = json.loads(json.dumps(value))
            parent = mutant
            for key in path:
                parent = parent[key]
            old = parent[last]
            if type(old) is type(new) and new != "DELETED":
                continue
            if new == "DELETED" and (isinstance(parent, list) or last == "D"):
                continue  # no reader can notice that one of several texts or options is missing
            if new == "DELETED":
                del parent[last]
            else:
                parent[last] = new
            mutants.append((f"{[*path, last]}: {new!r}", mutant))
    return mutants


def content(task: TaskSet) -> list[Any]:
    """The examples that were read, without ids, because a line may lack them."""
    return [
        (split, e.question, e.options, e.answer, e.context) if isinstance(e, Question) else (split, e.text)
        for split, examples in task.splits.items()
        for e in examples
    ]


@pytest.mark.parametrize(
    ("name", "write"),
    [*((name, write) for name, write in WRITERS.items() if name not in ("mmlu", "diseases", "mine")),
     ("mine", pairs), ("medqa", medqa_endings), ("pubmedqa", sentence_lines("pubmedqa")),
     ("bioasq", sentence_lines("bioasq"))],
)  # fmt: skip
def test_every_fault_of_type_is_read_the_same_or_refused_by_file_and_place(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    """One fault at a time, at every place in the JSON of the first record of each file."""
    write(tmp_path)
    honest = content(load(name, tmp_path))
    refused = 0
    for path in sorted(p for p in (tmp_path / name).rglob("*.json*")):
        text = path.read_text()
        is_lines = path.suffix == ".jsonl" or "\n" in text.strip() or not text.startswith(('{"1', '{"q'))
        first, _, rest = text.partition("\n") if is_lines else (text, "", "")
        record = json.loads(first)
        if "questions" in record:  # one file with many questions: only its first question is changed
            tail = record["questions"][1:]
            mutants = [(fault, m | {"questions": [*m["questions"], *tail]}) for fault, m in
                       mutations({**record, "questions": record["questions"][:1]})
                       if isinstance(m.get("questions"), list) and len(m["questions"]) == 1]  # fmt: skip
        else:
            mutants = mutations(record)
        for fault, mutant in mutants:
            path.write_text(f"{json.dumps(mutant)}\n{rest}" if is_lines else json.dumps(mutant))
            try:
                read = content(load(name, tmp_path))
            except BadInput as error:
                refused += 1
                assert path.name in str(error) or name in str(error), (fault, error)
                assert any(word in str(error) for word in ("line ", "record ", "question ", ".json")), (fault, error)
            else:
                assert read == honest, (path.name, fault)
        path.write_text(text)
    assert refused > 8


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "says"),
    [
        ("bioasq", "training9b.json", '"documents": ["http://www.ncbi.nlm.nih.gov/pubmed/3"]', '"documents": null',
         "question 4: documents is None, not a list"),
        ("bioasq", "training9b.json", '"snippets": [{"text": "It is.", "document": "http://www.ncbi.nlm.nih.gov/pubmed/3"}]',
         '"snippets": ["It is."]', "question 4: snippets, entry 1 is 'It is.', not an object"),
        ("bioasq", "training9b.json", '"snippets": [{"text": "It is.", "document": "http://www.ncbi.nlm.nih.gov/pubmed/3"}]',
         '"snippets": "It is."', "question 4: snippets is 'It is.', not a list"),
        ("pubmedqa", "ori_pqal.json", '"CONTEXTS": ["Aim.", "Results."]', '"CONTEXTS": ["Aim.", 7]',
         "record 10[0-5]: CONTEXTS, entry 2 is 7, not a text"),
        ("medmcqa", "dev.json", '"opa": "no"', '"opa": "no", "opa": "yes"', "line 1: .*key 'opa' occurs twice"),
        ("medmcqa", "dev.json", '"no"', '"\\ud800"', "line 1: not JSON that can be read"),
        ("medmcqa", "dev.json", '"no"', "[" * 100_000, "line 1: not JSON"),
        ("medmcqa", "dev.json", "}\n", "}\r", "line 1: it contains a CR without LF"),
        ("mmlu", "anatomy_test.csv", "\r\n", "\r", "line 2: it contains a CR without LF"),
        ("diseases", "train.tsv", "\n", "\r", "line 1: it contains a CR without LF"),
        ("mine", "train.jsonl", "}\n", "}\r", "line 1: it contains a CR without LF"),
    ],
)  # fmt: skip
def test_what_no_reader_takes(name: str, file: str, old: str, new: str, says: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = next(tmp_path.rglob(file))
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    with pytest.raises(BadInput, match=rf"{file}.*{says}"):
        load(name, tmp_path)


def test_nine_options_are_refused(tmp_path: Path) -> None:
    medqa_endings(tmp_path)
    path = tmp_path / "medqa/test.json"
    record = json.loads(path.read_text())
    for n, says in ((8, ""), (9, r"test\.json, line 1 \(test-0\): 9 options; a question has 2 to 8")):
        lines(path, [record | {f"ending{i}": f"option {i}" for i in range(n)} | {"label": n - 1}])
        if says:
            with pytest.raises(BadInput, match=says):
                load("medqa", tmp_path)
        else:
            assert "test: H 100.0%" in describe(load("medqa", tmp_path))


def test_a_split_that_is_absent_is_named(read: Callable[[str], TaskSet]) -> None:
    with pytest.raises(BadInput, match="mmlu has no train split here; it has test"):
        read("mmlu").questions("train")


def test_questions_are_plain_values() -> None:
    question = Question("1", "Why?", ("a", "b"), 0, "f, line 1", context="Because.")
    assert question.text == "Because.\nWhy?"

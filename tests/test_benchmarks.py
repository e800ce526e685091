"""The benchmarks measure what they claim, on tiny data and without other projects' tools."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import orjson
import pytest

from benchmarks import articles
from benchmarks import data_stages as benchmark
from data_prep.common.errors import BadInput
from data_prep.filtering import corpus_format
from data_prep.sources import medline
from data_prep.sources.document import Document
from data_prep.tokenizing import tokenizer_format
from project import ROOT

PUBMED = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>7</PMID><Article><Journal><JournalIssue><PubDate>
<Year>2020</Year></PubDate></JournalIssue></Journal><ArticleTitle>One <b>bold <i>deep</i></b> title.</ArticleTitle>
<Abstract>{}</Abstract><Language>eng</Language></Article><MedlineJournalInfo/></MedlineCitation><PubmedData/>
</PubmedArticle><DeleteCitation><PMID>3</PMID></DeleteCitation></PubmedArticleSet>"""


def pubmed_file(folder: Path, abstract: str) -> Path:
    path = folder / "pubmed.xml.gz"
    path.write_bytes(gzip.compress(PUBMED.format(abstract).encode()))
    return path


def test_time_and_memory_of_all_processes_are_seen():
    child = "import time; block = bytearray(150 << 20); time.sleep(0.6)"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sum(range(10**7)); print('end')"
    )
    run = benchmark.measured([sys.executable, "-c", parent], 1)
    assert run.largest_process_bytes > 150 << 20
    assert run.peak_bytes > run.largest_process_bytes + (5 << 20)
    assert run.wall_s > 0.6 and run.cpu_s > 0.1 and run.output == "end\n"
    both = run.then(benchmark.Run(1, 2, 3, 4, "last"))
    assert (both.wall_s, both.peak_bytes, both.output) == (run.wall_s + 1, run.peak_bytes, "last")


def test_a_process_has_the_cores_that_it_is_measured_on():
    assert (
        benchmark.measured([sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], 1).output == "1\n"
    )
    with pytest.raises(BadInput, match=r"the measurement needs 1000 cores"):
        benchmark.measured([sys.executable, "-c", ""], 1000)


def test_a_command_that_fails_is_named():
    with pytest.raises(BadInput, match=r"(?s)exit code 3: .*what is wrong"):
        benchmark.measured([sys.executable, "-c", "print('what is wrong'); raise SystemExit(3)"], 1)


def test_lost_characters_are_counted(tmp_path: Path):
    path = pubmed_file(tmp_path, '<AbstractText Label="AIMS">Of <b>one <i>inner</i></b> kind.</AbstractText>')
    kept, labels = benchmark.citations_kept(path)
    size = len("Onebolddeeptitle.Ofoneinnerkind.")
    assert (kept.documents, kept.expected, kept.ours, kept.ours_lossy) == (1, size, size, 0)
    assert (kept.theirs, kept.theirs_lossy) == (size - len("deepinner"), 1)
    # pubmed_parser leaves out the label if there is only one section.
    assert (labels.expected, labels.ours, labels.theirs, labels.theirs_lossy) == (1, 1, 0, 1)
    with patch.object(medline.Medline, "_section", lambda self, element: element.text):
        kept, labels = benchmark.citations_kept(path)
        assert labels.ours == 0 and kept.ours == len("Onebolddeeptitle.Of")


def test_what_is_said_twice_does_not_make_up_for_a_loss():
    kept = benchmark.Kept()
    kept.add(Counter("abcdef"), Counter("abcdef"), Counter("abcabc"))
    assert (kept.expected, kept.ours, kept.theirs, kept.ours_lossy, kept.theirs_lossy) == (6, 6, 3, 0, 1)


def test_words_of_real_articles_are_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    articles.main(["--rounds", "1"])
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines()[2:]}
    ours, theirs = ([int(cell.replace(",", "")) for cell in rows[name][:5]] for name in ("ours", "pubmed_parser"))
    assert ours[0] == theirs[0] > 30_000 and ours[1:] == [0] * 4 and theirs[1] > 100
    shown = articles.text_of_html("<p>a<sup>2</sup> <em>b</em>c</p><p>10<sup>6</sup></p>")
    assert shown.split() == ["a2", "bc", "10^6"]
    with pytest.raises(BadInput, match="holds no pandoc"):
        articles.with_pandoc(tmp_path)


def test_copies_of_a_text_differ_and_sizes_are_kept(tmp_path: Path):
    texts = list(benchmark.repeated(["a" * 10, "é" * 10], 100))
    assert texts[:2] == ["a" * 10, "é" * 10] and len(set(texts)) == len(texts)
    assert 100 <= sum(len(text.encode()) for text in texts) < 130
    with patch.object(benchmark, "PART_BYTES", 40):
        size_bytes = benchmark.write_texts(texts, tmp_path / "texts")
    files = sorted((tmp_path / "texts").iterdir())
    assert len(files) > 1
    assert [orjson.loads(line)["text"] for f in files for line in f.read_bytes().splitlines()] == texts
    assert size_bytes == sum(len(text.encode()) for text in texts)
    assert (tmp_path / "texts.bytes").read_text() == str(size_bytes)


def test_xml_is_timed_from_file_to_corpus(tmp_path: Path):
    citation = "<PubmedArticle>" + PUBMED.split("<PubmedArticle>")[1].split("</PubmedArticle>")[0] + "</PubmedArticle>"
    records = "".join(
        citation.replace("<PMID>7", f"<PMID>{n}").format(f"<AbstractText>Text {n}.</AbstractText>") for n in range(500)
    )
    path = tmp_path / "pubmed.xml.gz"
    path.write_bytes(gzip.compress(f"<PubmedArticleSet>{records}</PubmedArticleSet>".encode()))
    lines = benchmark.xml_speed([path], tmp_path / "work", 1).splitlines()
    assert len(lines) == 2 + 4 + 1  # the last row is all files together
    for line in lines[2:]:
        mine, theirs, ratio = (float(cell.replace(",", "")) for cell in line.strip("| ").split(" | ")[1:])
        assert mine > 0 and theirs > 0 and ratio > 0
    assert len(list(corpus_format.read_documents(tmp_path / "work/xml/corpus", "train"))) > 400
    assert len((tmp_path / "work/xml/records.jsonl").read_text().splitlines()) == 500


def test_ours_from_texts_to_the_bound(tmp_path: Path, tiny_documents: list[Document], tiny_tokenizer: Path):
    texts = [document.text for document in tiny_documents]
    with patch.object(benchmark, "SEQ_LEN", 64):
        benchmark.prepare_sizes(texts, tmp_path, 1, 300)
        benchmark.prepare_sizes(texts, tmp_path, 2, 300)  # files of an earlier call are removed
        speeds = benchmark.speeds(benchmark.our_tools(tiny_tokenizer)[:1], tmp_path, 1, (1,))
    (speed,) = speeds.values()
    encode = tokenizer_format.load_tokenizer(tiny_tokenizer).encode_batch_fast
    written = [orjson.loads(line)["text"] for line in (tmp_path / "full/texts/00000.jsonl").read_bytes().splitlines()]
    assert len(written) == 2 * len(texts)
    encoded = encode(written, add_special_tokens=False)
    assert speed.tokens == sum(len(encoding.ids) for encoding in encoded) + len(written)
    assert speed.disk_bytes > 0 and speed.full[0].peak_bytes > 30 << 20
    with patch.object(benchmark.Speed, "steady", lambda self, what: [2.0]):  # such a small difference is noise
        rows = benchmark.speed_table(speeds, tmp_path).splitlines()
        assert " | 1 | " in rows[2] and f"| {speed.tokens:,} |" in rows[2]
        affinity = os.sched_getaffinity(0)
        assert "The bottleneck is " in benchmark.bound(tmp_path, tiny_tokenizer, speeds)
        assert os.sched_getaffinity(0) == affinity


def test_a_tool_that_read_less_is_no_peer(tmp_path: Path):
    for name in ("tiny", "full"):
        (tmp_path / name).mkdir()
    script = "import json, sys; print(json.dumps({'tokens': int(sys.argv[1])}))"
    tools = [
        benchmark.Tool(f"t{n}", lambda f, o, c, n=n: [[sys.executable, "-c", script, str(n)]]) for n in (1000, 900)
    ]
    with pytest.raises(BadInput, match="t900 made 900 tokens but another tool made 1,000"):
        benchmark.speeds(tools, tmp_path, 1, (1,))


def test_the_estimate_follows_amdahl(tmp_path: Path):
    for name, size_bytes in (("tiny", 0), ("full", benchmark.PILE_BYTES / 3600)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "texts.bytes").write_text(f"{size_bytes:.0f}")
    speeds = {}
    for name in ("ours, shards.py, zstd", "ours, corpus.py and shards.py"):
        for cores, wall_s in ((1, 10.0), (2, 6.0)):  # 2 s serial, 8 s parallel
            run = benchmark.Run(wall_s=wall_s)
            speeds[name, cores] = benchmark.Speed(full=[run], tiny=[benchmark.Run()], corpus=[wall_s])
    row = benchmark.estimate(tmp_path, speeds).splitlines()[2]
    assert row == "| shards.py | 1.67 | 20% | 10.0 | 2.25 |"
    speeds["ours, shards.py, zstd", 2].full[0].wall_s = 11
    assert benchmark.estimate(tmp_path, speeds).splitlines()[2] == "| shards.py | 0.91 | unknown | 10.0 | unknown |"


def test_memory_of_both_stages(tmp_path: Path, tiny_documents: list[Document], tiny_tokenizer: Path):
    texts = [document.text for document in tiny_documents]
    with patch.object(benchmark, "SEQ_LEN", 64):
        (row,) = benchmark.flat(texts, tmp_path, tiny_tokenizer, [1], 1).splitlines()[2:]
    size_mb, *numbers = (float(cell.replace(",", "")) for cell in row.strip("| ").split(" | "))
    assert size_mb == 1 and len(numbers) == 6 and numbers[0] >= numbers[1] > 20
    assert not (tmp_path / "flat").exists()


ROW = r"^\| ([a-zA-Z :,]+) \| (\d \| [\d.]+ \| [\d.]+) \| [\d.]+ \| [\d.]+ \("  # name, ranks, GB, seconds


def printed(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tiny(shards: Path, tokenizer: Path) -> list[str]:
    return [
        f"data.shards={shards}", f"data.tokenizer={tokenizer}", "data.seq_len=64", "data.num_workers=0",
        "model.vocab_size=600", "model.n_positions=64", "model.n_embd=32", "model.n_layer=2",
    ]  # fmt: skip


@pytest.mark.chaos
def test_the_step_of_each_variant_is_a_row(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path):
    """The fast path has the losses of the faithful one; a run that fails becomes a row, and the others continue."""
    table = printed(
        "train_step.py", *tiny(tiny_shards, tiny_tokenizer), "--batches", "6", "--rounds", "1", "--engines", "bare",
        "--variants", "faithful", "all", "cudnn", "--plot", str(tmp_path / "losses.svg"),
    )  # fmt: skip
    rows = {cells[2]: cells for line in table.splitlines() if (cells := [cell.strip() for cell in line.split("|")])[2:]}
    assert list(rows) == ["variant", "---", "faithful", "all", "cudnn"]
    assert 0 < float(rows["all"][8]) < 1e-5 and rows["faithful"][8] == "0.0e+00"
    assert "failed: error: kernels.sdpa_backend = 'cudnn', which this device" in rows["cudnn"][4]
    assert "faithful" in (tmp_path / "losses.svg").read_text()


@pytest.mark.chaos
def test_loading_is_measured_on_made_shards():
    output = printed("loading.py", "--made-shards", "3", "--limit", "64", "--repeats", "1", "--workers", "0", "1")
    rates = re.findall(r"^\| (ours, verified|StreamingDataset) \| (raw|zstd) \| ([01]) \| ([\d,]+) \|", output, re.M)
    assert len(rates) == 8 and all(int(rate.replace(",", "")) > 0 for *_, rate in rates)
    shares = re.findall(r"^  (.*): ([\d.]+)%$", output, re.M)
    own = [float(share) for name, share in shares if "beside" not in name]
    assert len(own) >= 4 and sum(own) == pytest.approx(100, abs=0.5)
    assert "np.memmap" in output and "of 3 shards, ours" in output and "half-way" in output


@pytest.mark.chaos
@pytest.mark.parametrize(("ranks", "parts"), [(1, "one file"), (2, "2 parts")])
def test_saving_is_measured_beside_the_disk(
    tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path, ranks: int, parts: str
):
    """Each save has its parts and a plain file of the same size; the run is resumed, and exported."""
    options = ["--ranks", str(ranks), "--saves", "2", "--folder", str(tmp_path)]
    output = printed("checkpoint.py", *tiny(tiny_shards, tiny_tokenizer), *options)
    rows = {name: [float(cell) for cell in cells.split(" | ")] for name, cells in re.findall(ROW, output, re.M)}
    save, write, hashing, plain = (rows[name][2] for name in rows if "resume" not in name and "read" not in name)
    assert save >= write >= 0 and save >= hashing >= 0 and plain >= 0 and len(rows) == 7
    assert all(row[0] == ranks and row[1] == rows["save"][1] for row in rows.values())
    (export,) = re.findall(rf"^\| of {parts} \| (\d\.\d\d) \| [\d.]+ \| ([\d.]+) \|", output, re.M)
    assert float(export[1]) > float(export[0])  # libraries, at this size
    assert not list(tmp_path.iterdir())


@pytest.mark.chaos
def test_replay_is_compared_by_old_and_new_text(tmp_path: Path):
    output = printed("continuing.py", "--folder", str(tmp_path), "--batches", "30", "--seeds", "1", "--shares", "0.5")
    rows = re.findall(r"^\| ([a-z 0-9.,]+) \| ([\d.]+) \([\d.]+ to [\d.]+\) \| ([\d.]+) \(", output, re.M)
    assert [name for name, *_ in rows] == [
        "trained on the old text", "continued, no replay", "continued, replay 0.5", "new text from scratch",
    ]  # fmt: skip
    assert all(3 < float(loss) < 9 for _, *both in rows for loss in both)

"""Measure time, memory, disk and lost characters of data preparation, and compare with other tools on the same text.

    python benchmarks/data_stages.py --environments data/environments --make-environments --out docs/data_prep.md
    python benchmarks/data_stages.py --flat
    python benchmarks/data_stages.py --xml

Our commands and the other tools run as whole processes with their own command lines, pinned to one core and then to
two. In each round the tools run one after another, on copies of the installed sample. A run on a few documents gives
the time that a process needs before it works (imports take 16 s in one case); a rate is computed from the time of the
remaining text. A ratio compares two runs of the same round. Each tool has its own environment in the folder
`--environments`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import Run, machine, measured
from data_prep.common.errors import BadInput, run
from data_prep.common.manifest import read_manifest
from data_prep.files import inputs
from data_prep.filtering import corpus_format
from data_prep.sharding.build_shards import COMPRESSION
from data_prep.sharding.shard_format import SPLITS, STAGE
from data_prep.sources import sample
from data_prep.sources.document import Document, Dropped, Entry, fold
from data_prep.sources.medline import Medline
from data_prep.tokenizing.encoder import ENCODERS, Encoder

ROOT = Path(__file__).resolve().parents[1]
SEQ_LEN = 1024
EOS = "<|endoftext|>"
CORES = (1, 2)
TINY_DOCUMENTS = 1000
PART_BYTES = 16 << 20  # size of the JSON lines files, small enough that several processes have files to read
PACKED, BOTH = "ours, shards.py, zstd", "ours, corpus.py and shards.py"
SHARD_BYTES = 64 << 20
FLAT_MB = (40, 400, 4000)
PILE_BYTES = 117.6e9  # the Pile's two PubMed sets, one copy of each, on which BioMedLM was trained
CLUSTER_CORES = 32
PEERS = {
    "llm-foundry": ["llm-foundry==0.22.0"],
    "datatrove": ["datatrove==0.10.1", "tokenizers==0.23.3", "orjson"],
    "datasets": ["datasets==5.2.0", "transformers==5.24.0"],
}
# Parses one file, prints the CPU seconds of parsing, and then writes the texts that a corpus needs.
PUBMED_PARSER = """
import json, sys, time
import pubmed_parser
start = time.process_time()
records = list(pubmed_parser.parse_medline_xml(sys.argv[1]))
print(time.process_time() - start)
with open(sys.argv[2], "w") as file:
    for record in records:
        if record["abstract"]:
            file.write(json.dumps({"id": record["pmid"], "text": record["title"] + "\\n" + record["abstract"]}) + "\\n")
"""
OURS_PARSE = """
import sys, time
from data_prep.files import inputs
from data_prep.sources.medline import Medline
source = Medline()
start = time.process_time()
with inputs.reading(source.find([sys.argv[1]])[0]) as stream:
    for entry in source.read(source.find([sys.argv[1]])[0], stream):
        pass
print(time.process_time() - start)
"""

Rows = list[list[str]]


def ours(script: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of one of our commands."""
    return [sys.executable, ROOT / "data_prep" / script, *arguments]


OURS_ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


def table(header: Sequence[str], rows: Rows) -> str:
    """Format a Markdown table; the first column is left-aligned, the others hold numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median, with minimum and maximum if there are several values."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def versions(environments: Path | None) -> str:
    """The versions of our libraries, and of each other tool in its environment."""
    names = ("lxml", "orjson", "tokenizers", "zstandard", "mosaicml-streaming", "pubmed_parser")
    parts = ["ours with " + ", ".join(f"{name} {version(name)}" for name in names)]
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    if environments:
        for peer in PEERS:
            output = subprocess.check_output([_python(environments, peer), "-c", code, peer, "tokenizers"], text=True)
            parts.append("{} {} with tokenizers {}".format(peer, *output.split()))
    return "; ".join(parts)


# XML


def xml_speed(paths: Sequence[Path], work: Path, rounds: int) -> str:
    """Measure corpus.py, from XML to the written corpus, and pubmed_parser, on one core."""
    rows: Rows = []
    together_s: dict[str, list[float]] = {"ours": [0.0] * rounds, "theirs": [0.0] * rounds}
    for path in paths:
        out = work / "xml"
        stage: list[Run] = []
        parse: list[Run] = []
        theirs: list[Run] = []
        for _ in range(rounds):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            command = ours(
                "corpus.py", "--source", "medline", "--input", path, "--out", out / "corpus", "--workers", "1"
            )
            stage.append(measured(command, 1, OURS_ENVIRONMENT))
            theirs.append(measured([sys.executable, "-c", PUBMED_PARSER, path, out / "records.jsonl"], 1))
            parse.append(measured([sys.executable, "-c", OURS_PARSE, path], 1, OURS_ENVIRONMENT))
        for what, mine, other in (
            ("XML to a written corpus, whole process", [r.wall_s for r in stage], [r.wall_s for r in theirs]),
            ("the same, CPU", [r.cpu_s for r in stage], [r.cpu_s for r in theirs]),
            ("parsing alone, CPU", [float(r.output) for r in parse], [float(r.output) for r in theirs]),
        ):
            rows.append([f"{path.name}: {what}", *_compared(mine, other)])
        for name, runs in (("ours", stage), ("theirs", theirs)):
            together_s[name] = [s + run.cpu_s for s, run in zip(together_s[name], runs, strict=True)]
        peaks = [statistics.median(r.peak_bytes for r in runs) / 1e6 for runs in (stage, theirs)]
        rows.append(
            [f"{path.name}: peak memory, MB", *(f"{peak:,.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}"]
        )
    rows.append(["all files: XML to a written corpus, whole processes, CPU", *_compared(*together_s.values())])
    return table(["", "ours, s", "pubmed_parser, s", "pubmed_parser / ours"], rows)


def _compared(mine_s: Sequence[float], other_s: Sequence[float]) -> list[str]:
    ratios = [other / mine for mine, other in zip(mine_s, other_s, strict=True)]
    return [spread(mine_s), spread(other_s), spread(ratios)]


@dataclass
class Kept:
    """Counts of the signs or labels in an XML file that documents should contain, and of those that they do contain."""

    documents: int = 0
    expected: int = 0
    ours: int = 0
    theirs: int = 0
    ours_lossy: int = 0
    theirs_lossy: int = 0

    def add(self, expected: Counter[str], mine: Counter[str], other: Counter[str]) -> None:
        """Count one document. Signs that a parser adds or repeats do not offset signs that it lost."""
        size, kept, other_kept = expected.total(), (expected & mine).total(), (expected & other).total()
        self.documents += 1
        self.expected += size
        self.ours += kept
        self.theirs += other_kept
        self.ours_lossy += kept < size
        self.theirs_lossy += other_kept < size

    def row(self, name: str) -> list[str]:
        """The counts as a row of the table."""
        shares = [f"{kept:,} ({kept / max(1, self.expected):.4%})" for kept in (self.ours, self.theirs)]
        return [
            name,
            f"{self.documents:,}",
            f"{self.expected:,}",
            *shares,
            f"{self.ours_lossy:,}",
            f"{self.theirs_lossy:,}",
        ]


def citations_kept(path: Path) -> tuple[Kept, Kept]:
    """Count the signs (without white space) of title and abstract, and the section labels, in all citations of a file.

    Only citations that give documents are counted. Our labels need `--section-labels`; pubmed_parser puts labels on
    lines of their own.
    """
    import pubmed_parser  # pyright: ignore[reportMissingTypeStubs]

    plain, labelled = (_citations(path, Medline(section_labels=labels)) for labels in (False, True))
    records = [record for record in pubmed_parser.parse_medline_xml(str(path)) if not record["delete"]]
    signs, labels = Kept(), Kept()
    with gzip.open(path) as content:
        articles = etree.iterparse(content, tag="PubmedArticle")
        for (_, article), entry, with_labels, record in zip(articles, plain, labelled, records, strict=True):
            if isinstance(entry, Document) and isinstance(with_labels, Document):
                sections = article.findall("MedlineCitation/Article/Abstract/AbstractText")
                parts = [article.find("MedlineCitation/Article/ArticleTitle"), *sections]
                expected = "".join("".join(part.itertext()) for part in parts if part is not None)
                signs.add(_signs(expected), _signs(entry.text), _signs(record["title"] + record["abstract"]))
                names = Counter(fold(s.get("Label") or "") for s in sections if "".join(s.itertext()).strip())
                names = Counter({name: n for name, n in names.items() if name not in ("", "UNLABELLED")})
                ours = Counter({name: with_labels.text.count(f"{name}: ") for name in names})
                labels.add(names, ours, Counter(map(fold, record["abstract"].split("\n"))))
            article.clear()
    return signs, labels


def _citations(path: Path, source: Medline) -> list[Entry]:
    """The entries of a file, one per citation, in order; deletions are omitted."""
    (file,) = source.find([str(path)])
    with inputs.reading(file) as stream:
        return [e for e in source.read(file, stream) if not (isinstance(e, Dropped) and e.reason == "deletions")]


def kept_table(citation_files: Sequence[Path]) -> str:
    """Table of the signs and labels kept from the XML of citations; benchmarks/articles.py compares articles."""
    rows: Rows = []
    for path in citation_files:
        signs, labels = citations_kept(path)
        rows += [signs.row(f"{path.name}, signs but white space"), labels.row(f"{path.name}, labels of sections")]
    header = ["", "documents", "in the XML", "ours", "pubmed_parser", "ours loses in", "pubmed_parser loses in"]
    return table(header, rows)


def _signs(text: str) -> Counter[str]:
    return Counter("".join(text.split()))


# Text to tokens


def repeated(texts: Sequence[str], size_bytes: float) -> Iterator[str]:
    """Repeat the texts until they have `size_bytes`. Copies end in their number, so that they are not duplicates."""
    written = 0
    for copy in count():
        for text in texts:
            if written >= size_bytes:
                return
            text = f"{text} ({copy})" if copy else text
            written += len(text.encode())
            yield text


def write_texts(texts: Iterable[str], folder: Path) -> int:
    """Write `{"text": …}` lines in files of `PART_BYTES`; return the bytes of text, also written to `FOLDER.bytes`."""
    folder.mkdir(parents=True)
    file, size_bytes, part_end = None, 0, 0
    for text in texts:
        if file is None or size_bytes >= part_end:
            if file:
                file.close()
            file = (folder / f"{size_bytes // PART_BYTES:05}.jsonl").open("wb")
            part_end = (size_bytes // PART_BYTES + 1) * PART_BYTES
        file.write(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))
        size_bytes += len(text.encode())
    if file:
        file.close()
    folder.with_name(f"{folder.name}.bytes").write_text(str(size_bytes))
    return size_bytes


@dataclass
class Tool:
    """A tool that turns the texts into tokens.

    Attributes:
        name: name of the tool in the table.
        commands: function (folder with `texts` and a `corpus`, output folder, cores) -> command lines to run.
        environment: additional environment variables.
    """

    name: str
    commands: Any
    environment: dict[str, str] = field(default_factory=dict)


def our_tools(tokenizer: Path) -> list[Tool]:
    """shards.py with and without compression; and corpus.py and shards.py from the JSON lines that other tools read."""

    def pack(folder: Path, out: Path, cores: int, compression: str) -> list[str | Path]:
        return ours(
            "shards.py", "--corpus", folder, "--tokenizer", tokenizer, "--out", out / "shards",
            "--seq-len", str(SEQ_LEN), "--compression", compression, "--workers", str(cores),
        )  # fmt: skip

    def both(folder: Path, out: Path, cores: int) -> list[list[str | Path]]:
        return [corpus_command(folder / "texts", out / "corpus", cores), pack(out / "corpus", out, cores, "zstd")]

    return [
        Tool(PACKED, lambda f, o, c: [pack(f / "corpus", o, c, "zstd")], OURS_ENVIRONMENT),
        Tool("ours, shards.py, not packed", lambda f, o, c: [pack(f / "corpus", o, c, "none")], OURS_ENVIRONMENT),
        Tool(BOTH, both, OURS_ENVIRONMENT),
    ]


def peer_tools(environments: Path, tokenizer: Path) -> list[Tool]:
    """The other tools: llm-foundry's command line, datatrove's pipeline, and the two maps of run_clm.py.

    `llmfoundry data_prep convert_dataset_json` calls `llmfoundry.command_utils.convert_dataset_json_from_args`. It
    accepts a number of workers but ignores it.
    """

    def foundry(folder: Path, out: Path, cores: int) -> list[list[str | Path]]:
        script = environments / "llm-foundry/bin/llmfoundry"
        return [[
            script, "data_prep", "convert_dataset_json", "--path", folder / "texts", "--out-root", out / "shards",
            "--concat-tokens", str(SEQ_LEN), "--tokenizer", tokenizer, "--eos-text", EOS, "--compression", "zstd",
        ]]  # fmt: skip

    def trove(folder: Path, out: Path, cores: int) -> list[list[str | Path]]:
        script = ROOT / "benchmarks/peers/with_datatrove.py"
        return [[_python(environments, "datatrove"), script, folder / "texts", tokenizer, out, str(cores)]]

    def maps(folder: Path, out: Path, cores: int) -> list[list[str | Path]]:
        script = ROOT / "benchmarks/peers/with_datasets.py"
        arguments = [folder / "texts", tokenizer, out, str(SEQ_LEN), str(cores)]
        return [[_python(environments, "datasets"), script, *arguments]]

    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
    return [
        Tool("llm-foundry, convert_dataset_json", foundry, offline),
        Tool("datatrove, DocumentTokenizer", trove, offline),
        Tool("datasets.map as in run_clm", maps, offline),
    ]


def corpus_command(texts: Path, out: Path, workers: int, val_fraction: float = 0.05) -> list[str | Path]:
    """The command line of corpus.py on JSON lines."""
    arguments = ["--val-fraction", str(val_fraction), "--workers", str(workers)]
    return ours("corpus.py", "--source", "text", "--input", texts, "--out", out, *arguments)


@dataclass
class Speed:
    """Measurements of a tool; `full`, `tiny` and `corpus` have one entry per round."""

    full: list[Run] = field(default_factory=list)
    tiny: list[Run] = field(default_factory=list)
    corpus: list[float] = field(default_factory=list)  # wall seconds of the first command
    tokens: int = 0
    disk_bytes: int = 0
    cache_bytes: int = 0

    def steady(self, what: str) -> list[float]:
        """Seconds (`wall_s` or `cpu_s`) for the text beyond the tiny text, in each round."""
        return [getattr(full, what) - getattr(tiny, what) for full, tiny in zip(self.full, self.tiny, strict=True)]


def speeds(tools: Sequence[Tool], work: Path, rounds: int, cores: Sequence[int]) -> dict[tuple[str, int], Speed]:
    """Run every tool on `work/tiny` and `work/full`; in each round, the tools run one after another.

    Raises:
        BadInput: a tool failed, or read less text than another tool.
    """
    by_tool = {(tool.name, n): Speed() for n in cores for tool in tools}
    for _ in range(rounds):
        for n in cores:
            for tool in tools:
                speed = by_tool[tool.name, n]
                for name, runs in (("tiny", speed.tiny), ("full", speed.full)):
                    out = work / "out"
                    shutil.rmtree(out, ignore_errors=True)
                    out.mkdir()
                    environment = {**tool.environment, "HF_HOME": str(out / "cache")}
                    whole = Run()
                    for number, command in enumerate(tool.commands(work / name, out, n)):
                        whole = whole.then(measured(command, n, environment))
                        if number == 0 and name == "full":
                            speed.corpus.append(whole.wall_s)
                    runs.append(whole)
                    _say(f"{tool.name}, {n} cores, {name}: {whole.wall_s:.1f} s")
                    if name == "full":
                        speed.tokens = _tokens(out, whole.output)
                        speed.cache_bytes = folder_bytes(out / "cache")
                        kept = ("shards", "tokens", "dataset")
                        speed.disk_bytes = sum(folder_bytes(out / name) for name in kept)
    most = max(speed.tokens for speed in by_tool.values())
    for (name, _), speed in by_tool.items():
        # Other tools drop the last partial sample; run_clm drops one for each batch of 1,000 documents.
        if speed.tokens < 0.99 * most:
            raise BadInput(
                f"{name} made {speed.tokens:,} tokens but another tool made {most:,}: they did not read the same text"
            )
    shutil.rmtree(work / "out", ignore_errors=True)
    return by_tool


def speed_table(speeds: Mapping[tuple[str, int], Speed], work: Path) -> str:
    """Table of rates beyond the tiny text, memory and disk, with ratios to our first tool, computed per round."""
    full_bytes, tiny_bytes = (texts_bytes(work / name) for name in ("full", "tiny"))
    first = next(iter(speeds))[0]
    rows: Rows = []
    for (name, cores), speed in speeds.items():
        beyond_tokens = speed.tokens * (1 - tiny_bytes / full_bytes)
        steady_s, steady_cpu_s = speed.steady("wall_s"), speed.steady("cpu_s")
        base = speeds[first, cores]
        rows.append([
            name, str(cores),
            spread([beyond_tokens / 1e6 / s for s in steady_s]),
            spread([(full_bytes - tiny_bytes) / 1e6 / s for s in steady_s], 1),
            spread([theirs / mine for theirs, mine in zip(steady_s, base.steady("wall_s"), strict=True)]),
            spread([theirs / mine for theirs, mine in zip(steady_cpu_s, base.steady("cpu_s"), strict=True)]),
            f"{statistics.median(r.wall_s for r in speed.tiny):,.1f}",
            f"{max(r.peak_bytes for r in speed.full) / 1e6:,.0f}",
            f"{speed.disk_bytes / speed.tokens:.2f}", f"{speed.cache_bytes / 1e6:,.0f}", f"{speed.tokens:,}",
        ])  # fmt: skip
    header = [
        "", "cores", "Mtok/s", "MB/s of text", "time / ours", "CPU time / ours", "tiny run, s", "peak memory, MB",
        "bytes a token on disk", "left in caches, MB", "tokens",
    ]  # fmt: skip
    return table(header, rows) + f"\n\n`ours` in the ratios is {first}, on as many cores."


def texts_bytes(folder: Path) -> int:
    """The bytes of text in `tiny` or `full`."""
    return int((folder / "texts.bytes").read_text())


def folder_bytes(folder: Path) -> int:
    """The total size of all files in a folder; 0 if there are none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def our_tokens(folder: Path) -> int:
    """The number of tokens of a shards folder, dropped partial samples included."""
    counts = read_manifest(folder, STAGE, "make shards")["counts"].values()
    return sum(split["tokens"] + split["dropped_tokens"] for split in counts)


def _tokens(out: Path, output: str) -> int:
    """The number of tokens that a tool wrote, from its output folder (ours, llm-foundry) or its last line of output."""
    if (out / "shards/manifest.json").exists():
        return our_tokens(out / "shards")
    if (out / "shards/index.json").exists():
        index = json.loads((out / "shards/index.json").read_text())
        return SEQ_LEN * sum(shard["samples"] for shard in index["shards"])
    return json.loads(output.strip().splitlines()[-1])["tokens"]


def _python(environments: Path, peer: str) -> Path:
    return environments / peer / "bin/python"


def make_environments(folder: Path) -> None:
    """Make one environment per tool with venv and pip; llm-foundry's has 7 GB, mostly CUDA libraries of torch."""
    for peer, requirements in PEERS.items():
        if not (folder / peer / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder / peer], check=True)
            subprocess.run([_python(folder, peer), "-m", "pip", "install", "--quiet", *requirements], check=True)
            (folder / peer / "installed").touch()


# What bounds us


def bound(work: Path, tokenizer: Path, speeds: Mapping[tuple[str, int], Speed]) -> str:
    """Measure each part of shards.py alone, on one core in this process, and compare their sum with the whole command.

    Times are CPU times, which other work on the machine disturbs less; only writing to disk is wall time.
    """
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(affinity)[:1])
    try:
        parts, token_share = _parts(work, tokenizer)
    finally:
        os.sched_setaffinity(0, affinity)
    full_bytes = texts_bytes(work / "full")
    name, cores = next(iter(speeds))
    stage_s = (
        statistics.median(speeds[name, cores].steady("cpu_s")) * full_bytes / (full_bytes - texts_bytes(work / "tiny"))
    )
    total_s = sum(parts.values())
    alone = {**parts, "all of them": total_s, f"{name}, one core, without its start": stage_s}
    rows = [[what, f"{full_bytes / 1e6 / s:,.1f}", f"{s:.2f}"] for what, s in alone.items()]
    most = max(parts, key=lambda part: parts[part])
    return table(["alone, on one core", "MB/s of text", "s"], rows) + (
        f"\n\nThe bottleneck is {most}, with {parts[most] / total_s:.0%} of the sum of the parts. The command takes "
        f"{stage_s / total_s:.2f} times that sum, and {stage_s / parts[most]:.2f} times the time of {most} alone. "
        f"Each byte of text gives {token_share:.2f} bytes of tokens."
    )


def _parts(work: Path, tokenizer: Path) -> tuple[dict[str, float], float]:
    """Seconds of each part, and bytes of tokens per byte of text."""
    start_s = time.process_time()
    texts = [d.text for split in SPLITS for d in corpus_format.read_documents(work / "full/corpus", split)]
    parts = {"reading: JSON, zstd, SHA-256": time.process_time() - start_s}
    encoder = Encoder(tokenizer, ENCODERS[0])
    encoder.encode(texts[:1])
    start_s = time.process_time()
    groups = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
    ids = np.concatenate([encoder.encode(group).ids.astype(np.uint16) for group in groups])
    parts[f"encoding, {ENCODERS[0]}, each piece's bytes counted"] = time.process_time() - start_s
    content = ids.tobytes()
    level = int((COMPRESSION["zstd"] or "zstd:0").split(":")[1])
    start_s = time.process_time()
    for i in range(0, len(content), SHARD_BYTES):
        zstandard.ZstdCompressor(level=level).compress(content[i : i + SHARD_BYTES])
    parts[f"zstd {level}"] = time.process_time() - start_s
    start_s = time.perf_counter()
    with (work / "written").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    parts["writing tokens as they are, fsync"] = time.perf_counter() - start_s
    (work / "written").unlink()
    return parts, len(content) / sum(len(text.encode()) for text in texts)


def estimate(work: Path, speeds: Mapping[tuple[str, int], Speed]) -> str:
    """Estimate the time of the whole corpus on many cores from the times on one core and on two cores.

    Amdahl's law is fitted to both: T(n) = serial + parallel / n gives serial = 2 T(2) - T(1) and parallel = 2 (T(1) -
    T(2)).
    """
    full_bytes = texts_bytes(work / "full")
    beyond_bytes = full_bytes - texts_bytes(work / "tiny")
    stages = {
        "shards.py": ([statistics.median(speeds[PACKED, n].steady("wall_s")) for n in CORES], beyond_bytes),
        "corpus.py": ([statistics.median(speeds[BOTH, n].corpus) for n in CORES], full_bytes),
    }
    rows: Rows = []
    for name, ((one_s, two_s), size_bytes) in stages.items():
        serial_s, parallel_s = max(0.0, 2 * two_s - one_s), 2 * (one_s - two_s)
        one_h, many_h = (s * PILE_BYTES / size_bytes / 3600 for s in (one_s, serial_s + parallel_s / CLUSTER_CORES))
        cells = [f"{serial_s / one_s:.0%}", f"{one_h:.1f}", f"{many_h:.2f}"]
        if two_s >= one_s:  # other work used the second core, so there is no estimate
            cells = ["unknown", f"{one_h:.1f}", "unknown"]
        rows.append([name, f"{one_s / two_s:.2f}", *cells])
    header = ["", "one core / two", "serial share", "one core, hours", f"{CLUSTER_CORES} cores, hours"]
    return table(header, rows) + (
        f"\n\nFor {PILE_BYTES / 1e9:.1f} GB of text. Assumptions: time is proportional to the text, the serial share "
        f"from two cores also holds for {CLUSTER_CORES} such cores, and the disk is fast enough. Noise in the timings "
        "affects the serial share most."
    )


# Memory


def flat(texts: Sequence[str], work: Path, tokenizer: Path, sizes_mb: Sequence[float], workers: int) -> str:
    """Measure the peak memory of corpus.py and shards.py on growing amounts of text."""
    rows: Rows = []
    for size_mb in sizes_mb:
        folder = work / "flat"
        shutil.rmtree(folder, ignore_errors=True)
        size_bytes = write_texts(repeated(texts, size_mb * 1e6), folder / "texts")
        commands = {
            "corpus.py": corpus_command(folder / "texts", folder / "corpus", workers, 0.01),
            "shards.py": ours(
                "shards.py", "--corpus", folder / "corpus", "--tokenizer", tokenizer, "--out", folder / "shards",
                "--seq-len", str(SEQ_LEN), "--workers", str(workers),
            ),
        }  # fmt: skip
        row = [f"{size_bytes / 1e6:,.0f}"]
        for name, command in commands.items():
            run = measured(command, min(workers, len(os.sched_getaffinity(0))), OURS_ENVIRONMENT)
            _say(f"{name} on {size_mb:,} MB: {run.wall_s:.0f} s, {run.peak_bytes / 1e6:,.0f} MB")
            row += [f"{n / 1e6:,.0f}" for n in (run.peak_bytes, run.largest_process_bytes)] + [f"{run.wall_s:,.0f}"]
        rows.append(row)
        shutil.rmtree(folder)
    stages = [
        f"{name}, {what}" for name in ("corpus.py", "shards.py") for what in ("all MB", "largest process MB", "s")
    ]
    return table(["MB of text", *stages], rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(work: Path) -> tuple[list[str], Path]:
    """Make the texts of the sample and a tokenizer trained on them; existing folders are kept."""
    for command in (
        ours("corpus.py", "--source", "sample", "--out", work / "sample"),
        ours("tokenizer.py", "--corpus", work / "sample", "--out", work / "tokenizer"),
    ):
        measured(command, 1, OURS_ENVIRONMENT)
    return [
        d.text for split in corpus_format.SPLITS for d in corpus_format.read_documents(work / "sample", split)
    ], work / "tokenizer"


def prepare_sizes(texts: Sequence[str], work: Path, repeat: float, tiny_documents: int) -> None:
    """Make `tiny` and `full` again: the texts as JSON lines, and a corpus of them."""
    size_bytes = repeat * sum(len(text.encode()) for text in texts)
    for name, chosen in (("tiny", islice(texts, tiny_documents)), ("full", repeated(texts, size_bytes))):
        shutil.rmtree(work / name, ignore_errors=True)
        write_texts(chosen, work / name / "texts")
        command = corpus_command(work / name / "texts", work / name / "corpus", 1)
        measured(command, 1, OURS_ENVIRONMENT)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "data/benchmark", help="folder to write to (default data/benchmark)"
    )
    parser.add_argument(
        "--environments", type=Path, help="folder with the environments of the other tools; without it, only ours runs"
    )
    parser.add_argument(
        "--make-environments", action="store_true", help="first make the environments with venv and pip (8 GB)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each tool (default 3)")
    parser.add_argument("--repeat", type=float, default=4, help="number of copies of the sample (default 4)")
    parser.add_argument(
        "--flat",
        nargs="*",
        type=float,
        metavar="MB",
        help=f"measure only memory, on these amounts of text (default {FLAT_MB})",
    )
    parser.add_argument("--xml", action="store_true", help="measure only XML to a corpus, and pubmed_parser")
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    args = parser.parse_args(argv)
    work: Path = args.work.resolve()
    environments: Path | None = args.environments.resolve() if args.environments else None
    if args.make_environments:
        if environments is None:
            raise BadInput("--make-environments needs --environments, the folder to make them in")
        make_environments(environments)
    missing = [python for peer in PEERS if environments and not (python := _python(environments, peer)).exists()]
    if missing:
        raise BadInput(f"{missing[0]} does not exist; make it with --make-environments")
    sections = [f"## {date.today()}\n\n{machine()}; {versions(environments)}."]
    citation_files = [Path(path) for path in sample.paths(".xml.gz")]
    texts, tokenizer = ([], work) if args.xml else prepare(work)
    if args.xml:
        sections.append(f"### XML\n\n{xml_speed(citation_files, work, args.rounds)}")
    elif args.flat is not None:
        sections.append(f"### Memory\n\n{flat(texts, work, tokenizer, args.flat or FLAT_MB, 2)}")
    else:
        sections.append(f"### XML\n\n{xml_speed(citation_files, work, args.rounds)}")
        sections.append(f"### Characters kept\n\n{kept_table(citation_files)}")
        prepare_sizes(texts, work, args.repeat, TINY_DOCUMENTS)
        tools = our_tools(tokenizer) + (peer_tools(environments, tokenizer) if environments else [])
        by_tool = speeds(tools, work, args.rounds, CORES)
        sections.append(
            f"### Tokens\n\nThe sample {args.repeat:g} times, {args.rounds} rounds.\n\n{speed_table(by_tool, work)}"
        )
        sections.append(f"### What bounds us\n\n{bound(work, tokenizer, by_tool)}")
        sections.append(f"### The whole corpus\n\n{estimate(work, by_tool)}")
    text = "\n\n".join(sections) + "\n"
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


if __name__ == "__main__":
    run(main)

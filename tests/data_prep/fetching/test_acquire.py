"""acquire.py downloads from a site and an S3 store on this machine, which show the faults of public ones."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
import zstandard

from data_prep import acquire
from data_prep.common.errors import run
from data_prep.fetching import downloads, listed_files, pmc_bucket, pmc_packs
from data_prep.fetching import pubmed as pubmed_source
from data_prep.fetching.pile import PILE
from data_prep.filtering import corpus_format
from data_prep.filtering.build_corpus import build_corpus
from data_prep.filtering.corpus_format import SPLITS
from data_prep.sources.medline import Medline
from data_prep.sources.pile import Pile
from data_prep.sources.pmc import Pmc
from holder import Holder
from last_line import next_command
from patience import patience_s, start_s
from project import ROOT

RECORDS = 20  # records in a baseline file of these tests
HTML = b"<!DOCTYPE html><html><body>Down for maintenance</body></html>"
BUCKET = "pmc-oa-opendata"

Fault = str | bytes


class Site:
    """A file server that can answer with faults, and records path and range of each request.

    Attributes:
        files: path -> content.
        faults: path -> faults of its next requests; when they are used up, it serves the file. Bytes are sent as the
            body instead of the file.
        validator: how the server identifies a version of a file: `ETag`, `Last-Modified`, `weak` (ETag) or `none`.
        redirects: path -> target of the redirect.
        links: path -> the `Link` header.
        upstream: server that supplies files which this server does not have.
        drips: whether it sends single bytes, as long as this is true, after the first `drips_from` bytes of a file.
        endless: path -> bytes that it repeats forever.
        sent_bytes: path -> number of bytes sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Iterator[Fault]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.validator = "ETag"
        self.redirects: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.upstream: str | None = None
        self.drips = False
        self.drips_from = 1 << 19
        self.endless: dict[str, bytes] = {}
        self.hang_s = 0.0
        self.sent_bytes: Counter[str] = Counter()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                site.requests.append((self.path, self.headers.get("Range")))
                site.answer(self)

            do_HEAD = do_GET  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def fail(self, path: str, *faults: Fault, for_ever: bool = False) -> None:
        self.faults[path] = itertools.cycle(faults) if for_ever else iter(faults)

    def asked(self, ending: str = "") -> list[str]:
        """Paths requested since the last call; with `ending`, only those that end with it."""
        paths = [path for path, _ in self.requests if path.endswith(ending)]
        self.requests.clear()
        return paths

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        fault = next(self.faults.get(to.path, iter(())), None)
        if fault in ("close", "hang"):
            time.sleep(self.hang_s if fault == "hang" else 0)
            to.close_connection = True
            return
        if isinstance(fault, str) and (status := re.fullmatch(r"(\d+)(?: after (\d+))?", fault)):
            to.send_response(int(status[1]))
            to.send_header("Content-Length", "0")
            if status[2]:
                to.send_header("Retry-After", status[2])
            to.end_headers()
            return
        if to.path in self.redirects:
            to.send_response(302)
            to.send_header("Location", self.redirects[to.path])
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if to.path in self.endless:
            self.send_for_ever(to)
            return
        content = fault if isinstance(fault, bytes) else self.content(to.path)
        if content is None:
            to.send_error(404)
            return
        md5 = hashlib.md5(content).hexdigest()
        header, value = {
            "ETag": ("ETag", f'"{md5}"'),
            "weak": ("ETag", f'W/"{md5}"'),
            "Last-Modified": ("Last-Modified", f"Thu, 29 Jan 2026 14:48:{int(md5[:2], 16) % 60:02} GMT"),
        }.get(self.validator, ("Content-Type", "application/gzip"))
        start, ranged = 0, re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range", ""))
        if ranged and fault != "no range" and (to.headers.get("If-Range") == value or fault == "careless"):
            start = int(ranged[1])
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            to.send_response(200)
        body = content[start:]
        if fault == "little":
            body = body[: len(body) // 2]
        to.send_header(header, value)
        to.send_header("Content-Length", str(len(body)))
        if to.path in self.links:
            to.send_header("Link", self.links[to.path])
        to.end_headers()
        if to.command == "HEAD":
            return
        if fault == "short":
            body = body[: len(body) // 2]
            to.close_connection = True
        position = 0
        while position < len(body):
            drips = self.drips and position >= self.drips_from
            block = body[position : position + (1 if drips else 1 << 16)]
            try:
                to.wfile.write(block)
            except ConnectionError:
                return
            self.sent_bytes[to.path] += len(block)
            position += len(block)
            time.sleep(0.01 if drips else 0)

    def send_for_ever(self, to: BaseHTTPRequestHandler) -> None:
        """Send without a length until the client closes the connection."""
        to.send_response(200)
        to.end_headers()
        to.close_connection = True
        for block in endless(self.endless[to.path]):
            try:
                to.wfile.write(block)
            except ConnectionError:
                return
            self.sent_bytes[to.path] += len(block)

    def content(self, path: str) -> bytes | None:
        if path.endswith("/") and (names := sorted(p for p in self.files if p.startswith(path))):
            lines = "".join(
                f'<a href="{name}">{name}</a>     2026-01-29 14:{len(self.files[p]) % 60:02}  {len(self.files[p])}\n'
                for p in names
                if (name := p.removeprefix(path))
            )
            return f'<pre>Name  Last modified  Size  <a href="/pubmed/">Parent Directory</a>\n{lines}</pre>'.encode()
        if path not in self.files and self.upstream is not None:
            answer = requests.get(self.upstream + path, timeout=patience_s())
            assert answer.status_code in (200, 404)
            return answer.content if answer.ok else None
        return self.files.get(path)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "WAIT_S", 0.001)
    monkeypatch.setattr(listed_files, "BASELINE_RECORDS", RECORDS)
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def pubmed_xml(first_pmid: int, records: int, deleted: int = 0) -> bytes:
    """A citation file of some kilobytes, because its text compresses badly."""
    articles = "".join(
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>T {pmid}.'
        f"</ArticleTitle><Abstract><AbstractText>{hashlib.sha512(str(pmid).encode()).hexdigest()}</AbstractText>"
        "</Abstract></Article></MedlineCitation></PubmedArticle>"
        for pmid in range(first_pmid, first_pmid + records)
    )
    deletions = "".join(f'<PMID Version="1">{pmid}</PMID>' for pmid in range(1, deleted + 1))
    articles += f"<DeleteCitation>{deletions}</DeleteCitation>" if deleted else ""
    return f'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>{articles}</PubmedArticleSet>'.encode()


def put_pubmed(site: Site, folder: str, number: int, xml: bytes, year: int = 26) -> str:
    """Publish a file with its .md5, and return its path."""
    name, packed = f"pubmed{year}n{number:04}.xml.gz", gzip.compress(xml, mtime=0)
    path = f"/pubmed/{folder}/{name}"
    site.files[path] = packed
    site.files[f"{path}.md5"] = f"MD5({name})= {hashlib.md5(packed).hexdigest()}\n".encode()
    return path


@pytest.fixture
def pubmed(site: Site) -> Site:
    """Three baseline files, of which the last has fewer records, and an update file that deletes two of them."""
    for number, records in ((1, RECORDS), (2, RECORDS), (3, 7)):
        put_pubmed(site, "baseline", number, pubmed_xml(100 * number, records))
    put_pubmed(site, "updatefiles", 4, pubmed_xml(400, 3, deleted=2))
    return site


def acquired(*arguments: object) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as leaving:
        run(lambda: acquire.main([str(argument) for argument in arguments]))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def acquire_medline(site: Site, out: Path, *more: object) -> int:
    return acquired("medline", "--url", f"{site.url}/pubmed", "--out", out, *more)


NAME = "pubmed26n0002.xml.gz"
PATH = f"/pubmed/baseline/{NAME}"


def gz_names(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.xml.gz"))


def assert_all_but_one_then_all(site: Site, out: Path, capsys: pytest.CaptureFixture[str], *seen: str, code: int = 2):
    """A fault in one file does not stop the others; the next call downloads only the file that is missing."""
    assert acquire_medline(site, out, "--workers", 1) == code
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    for text in (NAME, *seen):
        assert text in error
    assert NAME not in gz_names(out) and not (out / f"{NAME}.md5").exists()
    others = set(gz_names(out))
    with (out / "acquired.csv").open(newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} == others
    site.faults.clear()
    site.asked()
    assert acquire_medline(site, out) == 0
    assert not {path.rpartition("/")[2] for path in site.asked(".gz")} & others
    assert_as_published(site, out)


def assert_as_published(site: Site, out: Path):
    published = {path.rpartition("/")[2]: content for path, content in site.files.items() if "/pubmed/" in path}
    fetched = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("acquired.")}
    assert fetched == published


def test_medline_is_fetched_once_and_read_by_the_corpus_stage(pubmed: Site, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    assert acquire_medline(pubmed, out) == 0
    output = capsys.readouterr().out
    assert "4 files fetched" in output
    assert next_command(output, tmp_path) == ["make", "shards", "SOURCE=medline", f"INPUT={out}"]
    assert_as_published(pubmed, out)
    with (out / "acquired.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = pubmed.files[PATH]
    assert rows[1] | {"fetched": "", "stamp": "", "version": ""} == {
        "name": NAME,
        "url": pubmed.url + PATH,
        "version": "",
        "bytes": str(len(content)),
        "stamp": "",
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content).hexdigest(),
        "etag": f'"{hashlib.md5(content).hexdigest()}"',
        "modified": "",
        "records": str(RECORDS),
        "group": "baseline 26",
        "fetched": "",
    }
    pubmed.asked()
    assert acquire_medline(pubmed, out) == 0
    assert pubmed.asked() == ["/pubmed/baseline/", "/pubmed/updatefiles/"]
    assert f"{out} is up to date, 4 files" in capsys.readouterr().out
    manifest = build_corpus({"medline": (Medline(), [str(out)])}, tmp_path / "corpus", 0.2)
    assert manifest["entries"] == 2 * RECORDS + 7 + 3 + 2
    assert sum(counts["documents"] for counts in manifest["counts"].values()) == 2 * RECORDS + 7 + 3


def test_baseline_updates_year_and_limit(pubmed: Site, tmp_path: Path, capsys: Any):
    put_pubmed(pubmed, "baseline", 1, pubmed_xml(1, RECORDS), year=25)
    assert acquire_medline(pubmed, tmp_path / "updates", "--updates") == 0
    assert gz_names(tmp_path / "updates") == ["pubmed26n0004.xml.gz"]
    assert acquire_medline(pubmed, tmp_path / "one", "--baseline", "--limit", 1) == 0
    assert gz_names(tmp_path / "one") == ["pubmed26n0001.xml.gz"]
    assert acquire_medline(pubmed, tmp_path / "old", "--baseline", "--year", 2025) == 0
    assert gz_names(tmp_path / "old") == ["pubmed25n0001.xml.gz"]
    capsys.readouterr()
    assert acquire_medline(pubmed, tmp_path / "old") == 2
    assert "pubmed25n0001.xml.gz and maybe more files of another year; the files pubmed26" in capsys.readouterr().err
    assert acquire_medline(pubmed, tmp_path / "none", "--year", 24) == 2
    assert "lists no files of the year 24, but of 25, 26" in capsys.readouterr().err
    assert acquire_medline(pubmed, tmp_path / "none", "--limit", 0) == 2


@pytest.mark.parametrize(
    "faults",
    [["503", "503"], ["429"], ["close", "close"], ["short", "short"], ["little"], [HTML], ["short", "no range"]],
)
def test_what_passes_is_tried_again(pubmed: Site, tmp_path: Path, faults: list[Fault]):
    pubmed.fail(PATH, *faults)
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    assert_as_published(pubmed, tmp_path / "files")
    assert len([path for path in pubmed.asked() if path == PATH]) == len(faults) + ("no range" not in faults)


def test_what_broke_off_goes_on_where_it_stopped(pubmed: Site, tmp_path: Path):
    pubmed.fail(PATH, "short", "short")
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    ranges = [asked for path, asked in pubmed.requests if path == PATH]
    half = len(pubmed.files[PATH]) // 2
    assert ranges[:2] == [None, f"bytes={half - 1}-"] and len(ranges) == 3
    assert pubmed.sent_bytes[PATH] == len(pubmed.files[PATH]) + 2  # the last byte is sent again at each of two resumes
    assert_as_published(pubmed, tmp_path / "files")


@pytest.mark.parametrize(("validator", "goes_on"), [("Last-Modified", True), ("weak", False), ("none", False)])
def test_a_file_goes_on_if_the_server_can_say_that_it_is_the_same(
    pubmed: Site, tmp_path: Path, validator: str, goes_on: bool
):
    pubmed.validator = validator
    pubmed.fail(PATH, "short")
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    asked = [asked for path, asked in pubmed.requests if path == PATH]
    assert len(asked) == 2 and (asked[1] is not None) == goes_on
    half = len(pubmed.files[PATH]) // 2
    assert pubmed.sent_bytes[PATH] == len(pubmed.files[PATH]) + (1 if goes_on else half)
    assert_as_published(pubmed, tmp_path / "files")


def test_a_server_that_does_not_heed_if_range(pubmed: Site, tmp_path: Path):
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(b"\x1f\x8b" + bytes(99))
    part.with_name(f"{NAME}.part.etag").write_text('"of another file"')
    pubmed.fail(PATH, "careless")
    assert acquire_medline(pubmed, tmp_path) == 0
    assert [asked for path, asked in pubmed.requests if path == PATH] == ["bytes=100-", None]
    # The mismatch was seen before the whole file was downloaded.
    assert [path for path, _ in pubmed.requests].count(f"{PATH}.md5") == 1
    assert_as_published(pubmed, tmp_path)


def test_a_part_that_is_complete_is_not_fetched_again(pubmed: Site, tmp_path: Path):
    content = pubmed.files[PATH]
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(content)
    part.with_name(f"{NAME}.part.etag").write_text(f'"{hashlib.md5(content).hexdigest()}"')
    assert acquire_medline(pubmed, tmp_path) == 0
    assert (PATH, f"bytes={len(content) - 1}-") in pubmed.requests and pubmed.sent_bytes[PATH] == 1
    assert_as_published(pubmed, tmp_path)
    part.write_bytes(content + b"x")  # longer than the file on the server, which answers 416
    part.with_name(f"{NAME}.part.etag").write_text(f'"{hashlib.md5(content).hexdigest()}"')
    (tmp_path / NAME).unlink()
    pubmed.fail(PATH, "416")
    assert acquire_medline(pubmed, tmp_path) == 0
    assert_as_published(pubmed, tmp_path)


def test_a_server_that_hangs(pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    timeout_s = start_s() / 20
    monkeypatch.setattr(downloads, "READ_TIMEOUT_S", timeout_s)
    pubmed.hang_s = 5 * timeout_s
    pubmed.fail(PATH, "hang")
    assert acquire_medline(pubmed, tmp_path / "passing") == 0
    pubmed.fail(PATH, "hang", for_ever=True)
    assert_all_but_one_then_all(pubmed, tmp_path / "files", capsys, "no answer in time, in 6 attempts", code=69)


def test_a_connection_that_breaks_often_brings_the_file_all_the_same(
    pubmed: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(downloads, "PROGRESS_BYTES", 50)
    breaks = downloads.ATTEMPTS + 2
    assert len(pubmed.files[PATH]) >> downloads.ATTEMPTS - 2 > 50  # each attempt brings half of the rest
    pubmed.fail(PATH, *["short"] * breaks)
    assert acquire_medline(pubmed, tmp_path) == 0
    assert_as_published(pubmed, tmp_path)


def test_the_server_says_how_long_to_wait(pubmed: Site, tmp_path: Path):
    pubmed.fail(PATH, "429 after 1")
    begin_s = time.monotonic()
    assert acquire_medline(pubmed, tmp_path) == 0
    assert time.monotonic() - begin_s > 1


def test_after_many_faults_it_stops(pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listed_files, "MAX_FAULTS", 2)
    for path in pubmed.files:
        pubmed.fail(path, "403", for_ever=True)
    assert acquire_medline(pubmed, tmp_path, "--workers", 1) == 2
    error = capsys.readouterr().err
    assert error.count("access denied (403 Forbidden)") == 2 and "stopped after so many faults" in error
    assert not [path for path in pubmed.asked() if "n0004" in path]


@pytest.mark.parametrize(
    ("faults", "code", "seen"),
    [
        (["503"], 69, "503 Service Unavailable, in 6 attempts in a row"),
        (["close"], 69, "the connection fails or breaks off"),
        ([HTML], 2, "it begins with b'<!DOCTYPE html>"),
        (["little"], 2, "its MD5 is "),
        (["404"], 2, "is not there (404 Not Found)"),
        (["403"], 2, "access denied (403 Forbidden)"),
        (["400"], 2, "the server answers 400 Bad Request"),
    ],
)
def test_what_does_not_pass_is_named(
    pubmed: Site, tmp_path: Path, capsys: Any, faults: list[Fault], code: int, seen: str
):
    pubmed.fail(PATH, *faults, for_ever=True)
    assert_all_but_one_then_all(pubmed, tmp_path / "files", capsys, seen, code=code)


def test_attempts_are_bounded(pubmed: Site, tmp_path: Path):
    pubmed.fail(PATH, "503", for_ever=True)
    acquire_medline(pubmed, tmp_path / "files")
    assert pubmed.asked().count(PATH) == downloads.ATTEMPTS
    pubmed.fail(PATH, HTML, for_ever=True)
    acquire_medline(pubmed, tmp_path / "files")
    assert pubmed.asked().count(PATH) == downloads.DOWNLOADS
    pubmed.fail(PATH, "404", for_ever=True)
    acquire_medline(pubmed, tmp_path / "files")
    assert pubmed.asked().count(PATH) == 1


def test_an_error_text_in_valid_gzip_with_its_own_md5(pubmed: Site, tmp_path: Path, capsys: Any):
    good = pubmed_xml(200, RECORDS)
    put_pubmed(pubmed, "baseline", 2, b"ORA-00942: table or view does not exist\n")
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert NAME in (error := capsys.readouterr().err) and "line 1: not XML (Start tag expected" in error
    put_pubmed(pubmed, "baseline", 2, b"<html><p>Error</p></html>")
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert "the root element <html>, not <PubmedArticleSet>" in capsys.readouterr().err
    put_pubmed(pubmed, "baseline", 2, b"<PubmedArticleSet/>")
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert f"{NAME} holds no citation and no deletion" in capsys.readouterr().err
    assert NAME not in gz_names(tmp_path / "files")
    put_pubmed(pubmed, "baseline", 2, good)
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    assert_as_published(pubmed, tmp_path / "files")


def test_a_wrong_md5(pubmed: Site, tmp_path: Path, capsys: Any):
    right = pubmed.files[f"{PATH}.md5"]
    for wrong, seen in (
        (b"MD5(x)= " + b"0" * 32, "its source says 0000"),
        (HTML, "its .md5 holds no hash, but '<!DOC"),
    ):
        pubmed.files[f"{PATH}.md5"] = wrong
        assert acquire_medline(pubmed, tmp_path / "files") == 2
        assert NAME in (error := capsys.readouterr().err) and seen in error
        assert NAME not in gz_names(tmp_path / "files")
    pubmed.files[f"{PATH}.md5"] = right
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    assert_as_published(pubmed, tmp_path / "files")


def test_too_few_records_beside_the_neighbours(pubmed: Site, tmp_path: Path, capsys: Any):
    put_pubmed(pubmed, "baseline", 2, pubmed_xml(200, RECORDS // 2 - 1))
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    error = capsys.readouterr().err
    assert f"{NAME} holds 9 records, and its neighbours 20 to 20" in error and f"--accept {NAME}" in error
    assert NAME not in gz_names(tmp_path / "files")
    pubmed.asked()
    assert acquire_medline(pubmed, tmp_path / "files", "--accept", NAME) == 0
    assert_as_published(pubmed, tmp_path / "files")


def test_the_last_file_is_no_measure_for_its_neighbours(pubmed: Site, tmp_path: Path):
    for number in (1, 2):
        pubmed.fail(f"/pubmed/baseline/pubmed26n000{number}.xml.gz", "403", for_ever=True)
    assert acquire_medline(pubmed, tmp_path) == 2
    assert gz_names(tmp_path) == ["pubmed26n0003.xml.gz", "pubmed26n0004.xml.gz"]
    pubmed.faults.clear()
    assert acquire_medline(pubmed, tmp_path) == 0
    assert_as_published(pubmed, tmp_path)


def test_a_hole_in_the_listing(pubmed: Site, tmp_path: Path, capsys: Any):
    del pubmed.files[PATH], pubmed.files[f"{PATH}.md5"]
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert f"{NAME} is not in NLM's listing, but its neighbours are" in capsys.readouterr().err
    assert len(gz_names(tmp_path / "files")) == 3
    assert acquire_medline(pubmed, tmp_path / "files", "--accept", NAME) == 0
    for path in [path for path in pubmed.files if "n0003" in path]:
        del pubmed.files[path]
    # A gap between the baseline and the updates.
    assert acquire_medline(pubmed, tmp_path / "files", "--accept", NAME) == 2
    assert "pubmed26n0003.xml.gz is not in NLM's listing" in capsys.readouterr().err
    assert acquire_medline(pubmed, tmp_path / "files", "--updates") == 0


def test_files_without_md5_are_said(pubmed: Site, tmp_path: Path, capsys: Any):
    del pubmed.files[f"{PATH}.md5"]
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    assert "1 files have no .md5 beside them" in capsys.readouterr().out
    assert_as_published(pubmed, tmp_path / "files")


def endless(content: bytes) -> Iterator[bytes]:
    """An endless response without a length."""
    return itertools.repeat(content * (65_536 // len(content)))


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        ("/pubmed/baseline/", (pubmed_source, "LISTING_BYTES")),
        (f"{PATH}.md5", (listed_files, "MD5_BYTES")),
        (PATH, (listed_files, "MIB")),
    ],
)
def test_what_never_ends_is_given_up(
    pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, path: str, bound: tuple[Any, str]
):
    """The limit is lowered to keep the test short; partial files are removed."""
    monkeypatch.setattr(*bound, 1 << 20)
    pubmed.endless[path] = b"0123456789abcdef"
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    errors = capsys.readouterr().err
    assert f"{pubmed.url}{path} has more than the" in errors and "see what the server answers" in errors
    assert pubmed.sent_bytes[path] < 32 << 20
    assert not list((tmp_path / "files").glob(f"{NAME}*"))


def test_a_file_that_says_that_it_is_too_long_is_not_fetched(pubmed: Site, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(listed_files, "MIB", 0)
    monkeypatch.setattr(listed_files, "LISTED_SHARE", 0.5)
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert not list((tmp_path / "files").glob("*.gz"))


def test_a_server_that_drips_is_given_up(pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(downloads, "RATE_WINDOW_S", 0.05)
    pubmed.drips_from = 0
    pubmed.drips = True
    try:
        assert acquire_medline(pubmed, tmp_path / "files") == 69
    finally:
        pubmed.drips = False
    assert re.search(r"only [\d,]+ bytes came in \d+ s, in 6 attempts in a row", capsys.readouterr().err)


def test_a_listing_with_a_number_that_none_has(pubmed: Site, tmp_path: Path, capsys: Any):
    put_pubmed(pubmed, "baseline", 99_999, pubmed_xml(1, RECORDS))
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert "ends with pubmed26n99999.xml.gz but lacks" in capsys.readouterr().err


def test_a_listing_that_is_none(pubmed: Site, tmp_path: Path, capsys: Any):
    for fault, code, seen in ((HTML, 2, "lists no PubMed files; it begins with b'<!DOCTYPE"), ("503", 69, "503")):
        pubmed.fail("/pubmed/baseline/", fault, for_ever=True)
        assert acquire_medline(pubmed, tmp_path / "files") == code
        assert "/pubmed/baseline/" in (error := capsys.readouterr().err) and seen in error
    assert not (tmp_path / "files").exists()


def test_nobody_answers(tmp_path: Path, site: Site, capsys: Any):
    url = site.url
    site.server.server_close()
    assert acquired("medline", "--url", f"{url}/pubmed", "--out", tmp_path / "files") == 69
    error = capsys.readouterr().err
    assert url in error and "Connection refused" in error and "0x" not in error
    assert acquired("medline", "--url", "ftp:/nowhere", "--out", tmp_path / "files") == 2
    assert "ftp:/nowhere" in capsys.readouterr().err


def test_revised_removed_and_altered_files(pubmed: Site, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    gone = put_pubmed(pubmed, "updatefiles", 5, pubmed_xml(500, 3))
    assert acquire_medline(pubmed, out) == 0
    put_pubmed(pubmed, "baseline", 2, pubmed_xml(200, RECORDS + 1))
    del pubmed.files[gone], pubmed.files[f"{gone}.md5"]
    (out / "pubmed26n0001.xml.gz").write_bytes(b"x")
    (out / "pubmed26n0003.xml.gz").touch()
    (out / "pubmed26n0004.xml.gz").unlink()
    pubmed.asked()
    capsys.readouterr()
    assert acquire_medline(pubmed, out) == 0
    output = capsys.readouterr().out
    assert f"{NAME} was revised at its source: 2026-01-29" in output
    assert "pubmed26n0005.xml.gz is no longer listed at its source; it stays" in output
    assert "pubmed26n0001.xml.gz was altered after it was fetched; it is fetched again" in output
    assert "pubmed26n0004.xml.gz was removed after it was fetched; it is fetched again" in output
    assert sorted(path[-11:] for path in pubmed.asked(".gz")) == ["0001.xml.gz", "0002.xml.gz", "0004.xml.gz"]
    for path, content in pubmed.files.items():
        assert (out / path.rpartition("/")[2]).read_bytes() == content
    assert acquire_medline(pubmed, out) == 0
    assert pubmed.asked() == ["/pubmed/baseline/", "/pubmed/updatefiles/"]


def test_files_that_came_another_way_are_checked_and_kept(pubmed: Site, tmp_path: Path):
    out = tmp_path / "files"
    out.mkdir()
    (out / NAME).write_bytes(pubmed.files[PATH])
    (out / "pubmed26n0001.xml.gz").write_bytes(b"half of it")
    assert acquire_medline(pubmed, out) == 0
    assert PATH not in pubmed.asked()
    assert_as_published(pubmed, out)


def test_dry_run_prints_files_and_bytes_and_writes_nothing(pubmed: Site, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    assert acquire_medline(pubmed, out, "--dry-run") == 0
    output = capsys.readouterr().out
    total = sum(len(content) for path, content in pubmed.files.items() if path.endswith(".gz"))
    assert pubmed.url + PATH in output and f"{len(pubmed.files[PATH]):,}" in output
    assert f"4 files, about {total:,} bytes to fetch; 0 are in" in output
    assert pubmed.asked() == ["/pubmed/baseline/", "/pubmed/updatefiles/"]
    assert not any(tmp_path.iterdir())
    assert acquire_medline(pubmed, out, "--limit", 2) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    (out / NAME).touch()
    assert acquire_medline(pubmed, out, "--dry-run") == 0
    assert "2 files, about" in (output := capsys.readouterr().out) and "; 2 are in" in output
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert {p: c for p, c in after.items() if p.name != NAME} == {p: c for p, c in before.items() if p.name != NAME}


def test_no_room(pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listed_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert "has room for 0.0 GB" in capsys.readouterr().err


def test_the_disk_becomes_full(pubmed: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(listed_files, "give_name", full)
        assert acquire_medline(pubmed, tmp_path / "files") == 2
    assert "no room left for" in capsys.readouterr().err and not gz_names(tmp_path / "files")
    assert acquire_medline(pubmed, tmp_path / "files") == 0
    assert_as_published(pubmed, tmp_path / "files")


def test_two_commands_in_one_folder(pubmed: Site, tmp_path: Path, capsys: Any):
    with Holder(tmp_path / "files") as holder:
        assert acquire_medline(pubmed, tmp_path / "files") == 2
        assert re.search(holder.says, capsys.readouterr().err)
        assert not (tmp_path / "files").exists()
        assert acquire_medline(pubmed, tmp_path / "files", "--dry-run") == 0, "which writes nothing"


@pytest.fixture
def big(site: Site) -> bytes:
    """One baseline file of some megabytes, for tests that interrupt its download."""
    body = "".join(
        f"<PubmedArticle><PMID>{number}</PMID><T>{os.urandom(50_000).hex()}</T></PubmedArticle>"
        for number in range(RECORDS)
    )
    path = put_pubmed(site, "baseline", 1, f"<PubmedArticleSet>{body}</PubmedArticleSet>".encode())
    return site.files[path]


def start(site: Site, out: Path) -> subprocess.Popen[str]:
    """Start the command in its own process, and wait until a part of the file is downloaded."""
    command = [sys.executable, ROOT / "data_prep" / "acquire.py", "medline", "--baseline"]
    process = subprocess.Popen(
        [*command, "--url", f"{site.url}/pubmed", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )
    part = out / "pubmed26n0001.xml.gz.part"
    deadline_s = time.monotonic() + patience_s()
    while not (part.is_file() and part.stat().st_size > 300_000):
        assert process.poll() is None and time.monotonic() < deadline_s, "the download does not begin"
        time.sleep(0.01)
    return process


def test_killed_it_goes_on(site: Site, big: bytes, tmp_path: Path):
    site.drips = True
    process = start(site, tmp_path)
    process.kill()
    process.wait()
    site.drips = False
    size_bytes = (tmp_path / "pubmed26n0001.xml.gz.part").stat().st_size
    assert not list(tmp_path.glob("*.gz"))
    site.requests.clear()
    assert acquire_medline(site, tmp_path, "--baseline", "--accept", "pubmed26n0001.xml.gz") == 0
    assert ("/pubmed/baseline/pubmed26n0001.xml.gz", f"bytes={size_bytes - 1}-") in site.requests
    assert (tmp_path / "pubmed26n0001.xml.gz").read_bytes() == big
    assert not list(tmp_path.glob("*.part*"))


def test_killed_and_changed_meanwhile_it_starts_over(site: Site, big: bytes, tmp_path: Path):
    site.drips = True
    process = start(site, tmp_path)
    process.kill()
    process.wait()
    site.drips = False
    path = put_pubmed(site, "baseline", 1, pubmed_xml(1, RECORDS))
    assert acquire_medline(site, tmp_path, "--baseline") == 0
    assert (tmp_path / "pubmed26n0001.xml.gz").read_bytes() == site.files[path] != big
    assert len([asked for p, asked in site.requests if p == path and asked]) == 1  # If-Range avoids a second request


def test_interrupted_it_ends_at_once(site: Site, big: bytes, tmp_path: Path):
    site.drips = True
    process = start(site, tmp_path)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=patience_s())
    site.drips = False
    assert process.returncode == 130 and "type the same command to resume" in error and "Traceback" not in error


def test_import_and_help_load_nothing_slow_and_reach_nothing():
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from data_prep import acquire\n"
        "slow = {'torch', 'composer', 'transformers', 'numpy', 'boto3', 'requests', 'fsspec'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "for command in ([], ['medline'], ['pmc'], ['pile']):\n"
        "    try: acquire.main([*command, '--help'])\n"
        "    except SystemExit as leaving: assert leaving.code == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("--year", "--updates", "--licenses", "--since", "--files", "--dry-run", "--limit"):
        assert text in done.stdout


# The Pile


PAGE = f"/api/datasets/{PILE}/tree/main?recursive=true"
SHARD = f"/datasets/{PILE}/resolve/main/train/01.jsonl.zst"


def pile_lines(start: int, count: int) -> bytes:
    sets = ("PubMed Abstracts", "PubMed Central", "Github")
    return zstandard.compress(
        b"".join(
            orjson.dumps({"text": f"Text {n}.", "meta": {"pile_set_name": sets[n % 3]}}) + b"\n"
            for n in range(start, start + count)
        )
    )


@pytest.fixture
def pile_files() -> dict[str, bytes]:
    files = {"train/00.jsonl.zst": pile_lines(0, 30), "train/01.jsonl.zst": pile_lines(30, 30)}
    return files | {"val.jsonl.zst": pile_lines(60, 9), "README.md": b"# The Pile"}


@pytest.fixture
def hub(site: Site, pile_files: dict[str, bytes]) -> Site:
    publish_pile(site, pile_files)
    return site


def publish_pile(site: Site, contents: dict[str, bytes]) -> None:
    """Publish files on a listing of two pages; each file is served from another address, as by a hub with a CDN."""
    entries = [{"type": "directory", "path": "train", "size": 0, "oid": "0"}]
    for path, content in contents.items():
        sha256 = hashlib.sha256(content).hexdigest()
        site.redirects[f"/datasets/{PILE}/resolve/main/{path}"] = f"{site.url}/cache/{sha256}?signed=yes"
        site.files[f"/cache/{sha256}?signed=yes"] = content
        lfs = {"oid": sha256, "size": len(content), "pointerSize": 130}
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        entries.append(entry | ({"lfs": lfs} if path.endswith(".zst") else {}))
    site.files[PAGE], site.files[f"{PAGE}&cursor=2"] = orjson.dumps(entries[:2]), orjson.dumps(entries[2:])
    site.links[PAGE] = f'<{site.url}{PAGE}&cursor=2>; rel="next"'


def acquire_pile(site: Site, out: Path, *more: object) -> int:
    return acquired("pile", "--url", site.url, "--out", out, *more)


def test_pile_is_fetched_once_and_read_by_the_corpus_stage(
    hub: Site, pile_files: dict[str, bytes], tmp_path: Path, capsys: Any
):
    out = tmp_path / "files"
    assert acquire_pile(hub, out, "--dry-run") == 0
    total = sum(len(content) for path, content in pile_files.items() if path.endswith(".zst"))
    assert f"3 files, {total:,} bytes to fetch" in capsys.readouterr().out and not out.exists()
    assert acquire_pile(hub, out, "--files", "val", "00") == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.zst")) == ["train/00.jsonl.zst", "val.jsonl.zst"]
    hub.asked()
    assert acquire_pile(hub, out) == 0
    assert hub.asked(".zst") == [SHARD]
    assert acquire_pile(hub, out) == 0
    assert hub.asked() == [PAGE, f"{PAGE}&cursor=2"]
    for path, content in pile_files.items():
        assert path == "README.md" or (out / path).read_bytes() == content
    with (out / "acquired.csv").open(newline="") as file:
        assert [row["records"] for row in csv.DictReader(file)] == ["30", "30", "9"]
    manifest = build_corpus({"pile": (Pile(), [str(out)])}, tmp_path / "corpus")
    assert {split: counts["documents"] for split, counts in manifest["counts"].items()} == {"train": 40, "val": 6}
    assert acquire_pile(hub, out, "--files", "30") == 2
    assert "--files 30" in (error := capsys.readouterr().err) and "00, 01, val" in error


def test_pile_revisions_and_removals(hub: Site, pile_files: dict[str, bytes], tmp_path: Path, capsys: Any):
    assert acquire_pile(hub, tmp_path) == 0
    del pile_files["val.jsonl.zst"]
    publish_pile(hub, pile_files | {"train/01.jsonl.zst": pile_lines(90, 30)})
    hub.asked()
    assert acquire_pile(hub, tmp_path) == 0
    assert hub.asked(".zst") == [SHARD]
    output = capsys.readouterr().out
    assert "train/01.jsonl.zst was revised at its source" in output and "val.jsonl.zst is no longer listed" in output


def test_pile_listings_that_are_none(hub: Site, tmp_path: Path, capsys: Any):
    hub.links.clear()
    for answer, seen in (
        (HTML, "is not the listing of a dataset; it begins with b'<!DOCTYPE"),
        (b'{"error": 1}', "is not the listing of a dataset"),
        (
            b'[{"path": "../x.jsonl.zst", "size": 1, "oid": "0"}, {"path": "/x.jsonl", "size": 1, "oid": "0"}]',
            "no files",
        ),
    ):
        hub.files[PAGE] = answer
        assert acquire_pile(hub, tmp_path) == 2
        assert seen in capsys.readouterr().err
    del hub.files[PAGE]
    assert acquire_pile(hub, tmp_path) == 2
    assert "is not there (404" in capsys.readouterr().err


def test_a_listing_that_leads_back_to_itself(hub: Site, tmp_path: Path, capsys: Any):
    path = f"/api/datasets/{PILE}/tree/main?recursive=true"
    hub.links[path] = f'<{hub.url}{path}>; rel="next"'
    assert acquire_pile(hub, tmp_path / "files") == 2
    assert "is page 2 of a listing that leads back to itself" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, -1, 1.5, 2**70])
@pytest.mark.parametrize("key", ["path", "size", "oid", "lfs"])
def test_a_listing_of_other_types(hub: Site, tmp_path: Path, capsys: Any, key: str, value: Any):
    path = f"/api/datasets/{PILE}/tree/main?recursive=true"
    entries = orjson.loads(hub.files[path])
    entries[0][key] = str(value) if value == 2**70 else value
    hub.files[path] = orjson.dumps(entries)
    assert acquire_pile(hub, tmp_path / "files", "--dry-run") in (0, 2)


def test_pile_goes_on_through_a_redirect(hub: Site, pile_files: dict[str, bytes], tmp_path: Path):
    content = pile_files["train/01.jsonl.zst"]
    cached = f"/cache/{hashlib.sha256(content).hexdigest()}?signed=yes"
    hub.fail(cached, "short", "503")
    assert acquire_pile(hub, tmp_path) == 0
    asked = [asked for path, asked in hub.requests if path == cached]
    assert asked == [None, *[f"bytes={len(content) // 2 - 1}-"] * 2]
    assert (tmp_path / "train" / "01.jsonl.zst").read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "code", "seen"),
    [
        (HTML, 2, "it begins with b'<!DOCTYPE html>"),
        ("little", 2, "bytes, its source lists"),
        (None, 2, "its SHA-256 is"),
        ("403", 2, "access denied (403 Forbidden)"),
        ("503", 69, "503"),
    ],
)
def test_pile_faults(
    hub: Site, pile_files: dict[str, bytes], tmp_path: Path, capsys: Any, fault: Fault | None, code: int, seen: str
):
    content = pile_files["train/01.jsonl.zst"]
    cached = f"/cache/{hashlib.sha256(content).hexdigest()}?signed=yes"
    hub.fail(cached, content[:-1] + bytes([content[-1] ^ 1]) if fault is None else fault, for_ever=True)
    assert acquire_pile(hub, tmp_path, "--workers", 1) == code
    error = capsys.readouterr().err
    assert "train/01.jsonl.zst" in error and seen in error and "signed" not in error
    assert not list(tmp_path.rglob("01.jsonl.zst"))
    hub.faults.clear()
    assert acquire_pile(hub, tmp_path) == 0
    assert (tmp_path / "train" / "01.jsonl.zst").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (zstandard.compress(b'{"text": "x"}\n'), "has no text at meta.pile_set_name; it begins with b'{\"text"),
        (zstandard.compress(HTML), "has no text at meta.pile_set_name; it begins with b'<!DOCTYPE"),
        (pile_lines(60, 900)[:-9], "val.jsonl.zst is cut off"),
    ],
)
def test_a_file_that_is_not_the_piles(
    hub: Site, pile_files: dict[str, bytes], tmp_path: Path, capsys: Any, content: bytes, seen: str
):
    publish_pile(hub, pile_files | {"val.jsonl.zst": content})
    assert acquire_pile(hub, tmp_path) == 2
    assert seen in capsys.readouterr().err
    assert len(list(tmp_path.rglob("*.zst"))) == 2


# PMC


def jats(pmcid: int, text: str = "Body") -> bytes:
    return (
        f'<article><front><article-meta><article-id pub-id-type="pmc">{pmcid}</article-id><title-group><article-title>'
        f"Title {pmcid}</article-title></title-group></article-meta></front><body><p>{text} of {pmcid}.</p></body>"
        "</article>"
    ).encode()


Put = Callable[..., None]


@pytest.fixture
def bucket(site: Site, s3: Any, store_url: str) -> Iterator[Site]:
    """The site in front of an S3 store that holds the bucket."""
    s3.create_bucket(Bucket=BUCKET)
    public = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [public]}))
    site.upstream = store_url
    yield site
    for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    s3.delete_bucket(Bucket=BUCKET)


def put_article(
    s3: Any, pmcid: int, license: str | None = "CC BY", version: int = 1, retracted: bool = False, text: str = "Body"
) -> None:
    name, xml = f"PMC{pmcid}.{version}", jats(pmcid, text)
    url = f"s3://{BUCKET}/{name}/{name}.xml?md5={hashlib.md5(xml).hexdigest()}"
    metadata = {"pmcid": f"PMC{pmcid}", "version": version, "license_code": license, "is_retracted": retracted}
    s3.put_object(Bucket=BUCKET, Key=f"{name}/{name}.xml", Body=xml)
    s3.put_object(Bucket=BUCKET, Key=f"metadata/{name}.json", Body=json.dumps(metadata | {"xml_url": url}).encode())


def put_inventory(s3: Any, date: str) -> None:
    """An inventory in the format of S3, in two files, with all metadata in the bucket."""
    rows: list[str] = []
    for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="metadata/")["Contents"]:
        modified = item["LastModified"].strftime("%Y-%m-%dT%H:%M:%S.000Z")
        rows.append(f'"{BUCKET}","{item["Key"]}","{modified}","{item["ETag"].strip(chr(34))}"\n')
    prefix, files = "inventory-reports/pmc-oa-opendata/metadata/", []
    for number in range(2):
        content = gzip.compress("".join(rows[number::2]).encode())
        key = f"{prefix}data/{date}-{number}.csv.gz"
        s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        files.append({"key": key, "size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()})
    manifest = {
        "sourceBucket": BUCKET,
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
        "files": files,
    }
    key = f"{prefix}{date}T01-00Z/manifest.json"
    s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(manifest).encode())
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}hive/dt={date}-01-00/symlink.txt", Body=b"")


@pytest.fixture
def articles(bucket: Site, s3: Any) -> Site:
    """Ten articles with several licences, one in two versions, one retracted, and their inventory."""
    for pmcid, license in enumerate(["CC BY"] * 5 + ["CC BY-NC", "CC BY-NC", "TDM", None], start=1):
        put_article(s3, pmcid, license)
    put_article(s3, 2, version=2, text="Second")
    put_article(s3, 10, retracted=True)
    put_inventory(s3, "2026-01-18")
    return bucket


def acquire_pmc(site: Site, out: Path, *more: object) -> int:
    return acquired("pmc", "--url", f"{site.url}/{BUCKET}", "--out", out, *more)


def corpus_of(out: Path, to: Path, licenses: str = "all") -> tuple[dict[str, str], dict[str, Any]]:
    """Documents of the corpus stage, id -> text, and its manifest."""
    manifest = build_corpus({"pmc": (Pmc(licenses), [str(out)])}, to, 0.5)
    return {d.id: d.text for split in SPLITS for d in corpus_format.read_documents(to, split)}, manifest


def test_pmc_is_fetched_once_and_read_by_the_corpus_stage(
    articles: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pmc_packs, "PACK_BYTES", 1500)  # a pack holds some articles
    out = tmp_path / "files"
    assert acquire_pmc(articles, out) == 0
    output = capsys.readouterr().out
    assert "10 articles in the inventory of 2026-01-18T01-00Z" in output
    for line in ("5 fetched, CC BY", "2 fetched, CC BY-NC", "1 fetched, TDM", "1 fetched, licence unknown"):
        assert line in output
    assert "1 retracted, CC BY" in output and not articles.asked("PMC10.1.xml")
    names = sorted(path.name for path in out.iterdir())
    assert names[:2] == ["acquired.csv", "acquired.sqlite"] and len(names) > 3
    assert all(name.startswith("pmc-0000") and name.endswith(".tar.zst") for name in names[2:])
    with (out / "acquired.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["pmcid"] for row in rows] == [str(pmcid) for pmcid in range(1, 10)]
    assert rows[1]["version"] == "2" and rows[1]["md5"] == hashlib.md5(jats(2, "Second")).hexdigest()
    assert acquire_pmc(articles, out) == 0
    asked = articles.asked()
    assert len(asked) == 2 and "list-type=2" in asked[0] and asked[1].endswith("2026-01-18T01-00Z/manifest.json")
    assert f"{out} is up to date" in capsys.readouterr().out
    texts, manifest = corpus_of(out, tmp_path / "corpus")
    assert texts.keys() == {f"pmcid:PMC{pmcid}" for pmcid in range(1, 10)}
    assert texts["pmcid:PMC2"] == "Title 2\n\nSecond of 2."
    assert manifest["licenses"] == {"CC BY": 5, "CC BY-NC": 2, "TDM": 1, "unknown": 1}
    _, manifest = corpus_of(out, tmp_path / "commercial", "commercial")
    assert manifest["licenses"] == {"CC BY": 5} and manifest["dropped"] == {"of other licences": 4}


def test_pmc_tiers_fetch_no_other_articles(articles: Site, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    assert acquire_pmc(articles, out, "--licenses", "commercial") == 0
    output = capsys.readouterr().out
    assert "5 fetched, CC BY" in output and "2 of another licence, CC BY-NC" in output
    assert sorted(articles.asked(".xml")) == sorted(
        f"/{BUCKET}/PMC{n}/PMC{n}.xml" for n in ("1.1", "2.2", "3.1", "4.1", "5.1")
    )
    # a wider choice of licences downloads only the articles that were left out
    assert acquire_pmc(articles, out, "--licenses", "noncommercial") == 0
    assert sorted(articles.asked(".xml")) == sorted(f"/{BUCKET}/PMC{n}/PMC{n}.xml" for n in ("6.1", "7.1"))
    texts, _ = corpus_of(out, tmp_path / "corpus")
    assert len(texts) == 7
    capsys.readouterr()
    assert acquire_pmc(articles, out, "--licenses", "commercial") == 0
    assert "2 articles of other licences are in" in capsys.readouterr().out
    assert acquire_pmc(articles, out, "--licenses", "free") == 2


def test_pmc_revisions_come_in_later_packs(articles: Site, s3: Any, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    assert acquire_pmc(articles, out, "--licenses", "commercial") == 0
    put_article(s3, 1, text="Revised body")
    put_article(s3, 3, version=2, text="New version")
    put_article(s3, 4, retracted=True)
    put_article(s3, 5, "CC BY-NC")
    put_article(s3, 11)
    for name in ("metadata/PMC2.1.json", "metadata/PMC2.2.json", "PMC2.2/PMC2.2.xml"):
        s3.delete_object(Bucket=BUCKET, Key=name)
    put_inventory(s3, "2026-01-19")
    articles.asked()
    capsys.readouterr()
    assert acquire_pmc(articles, out, "--licenses", "commercial") == 0
    assert sorted(path.rpartition("/")[2] for path in articles.asked(".xml")) == sorted(
        f"PMC{name}.xml" for name in ("1.1", "3.2", "4.1", "5.1", "11.1")
    )
    assert (
        "1 articles are no longer in the bucket and stay in" in (output := capsys.readouterr().out) and "PMC2" in output
    )
    texts, manifest = corpus_of(out, tmp_path / "corpus", "commercial")
    assert (
        texts["pmcid:PMC1"] == "Title 1\n\nRevised body of 1." and texts["pmcid:PMC3"] == "Title 3\n\nNew version of 3."
    )
    assert texts.keys() == {f"pmcid:PMC{pmcid}" for pmcid in (1, 2, 3, 11)}
    assert manifest["dropped"] == {"superseded": 4, "retracted": 1, "of other licences": 1}
    assert acquire_pmc(articles, out, "--licenses", "commercial") == 0
    assert len(articles.asked()) == 2


def test_pmc_dry_run_limit_and_since(articles: Site, s3: Any, tmp_path: Path, capsys: Any, monkeypatch: Any):
    out = tmp_path / "files"
    assert acquire_pmc(articles, out, "--licenses", "commercial", "--dry-run") == 0
    output = capsys.readouterr().out
    total = len(jats(1)) * 4 + len(jats(2, "Second"))
    assert f"{len(jats(1)):,}  {articles.url}/{BUCKET}/PMC1.1/PMC1.1.xml" in output
    assert (
        f"5 articles, {total:,} bytes to fetch" in output
        and "4 of another licence" in output
        and "1 retracted" in output
    )
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(pmc_bucket, "SAMPLE", 8)
        assert acquire_pmc(articles, out, "--dry-run") == 0
        assert re.search(
            r"of 10 articles about \d+ to fetch, about 0\.0 GB of XML, estimated from 8", capsys.readouterr().out
        )
    assert acquire_pmc(articles, out, "--limit", 3) == 0
    articles.asked()
    assert acquire_pmc(articles, out, "--limit", 3) == 0
    assert len(articles.asked()) == 2
    assert len(corpus_of(out, tmp_path / "corpus")[0]) == 3
    assert acquire_pmc(articles, tmp_path / "new", "--since", "2126-01-01") == 0
    assert not articles.asked(".xml")
    assert acquire_pmc(articles, tmp_path / "new", "--since", "2020-01-01") == 0
    assert len(articles.asked(".xml")) == 9
    assert acquire_pmc(articles, tmp_path / "new", "--since", "today") == 2


XML = f"/{BUCKET}/PMC3.1/PMC3.1.xml"
METADATA = f"/{BUCKET}/metadata/PMC3.1.json"


@pytest.mark.parametrize(
    ("path", "faults"),
    [(XML, ["503", "503"]), (XML, ["short"]), (XML, ["close"]), (XML, [HTML]), (METADATA, ["503"]), (METADATA, [HTML])],
)
def test_pmc_what_passes_is_tried_again(articles: Site, tmp_path: Path, path: str, faults: list[Fault]):
    articles.fail(path, *faults)
    assert acquire_pmc(articles, tmp_path / "files") == 0
    assert len(corpus_of(tmp_path / "files", tmp_path / "corpus")[0]) == 9


@pytest.mark.parametrize(
    ("path", "fault", "code", "seen"),
    [
        (XML, "503", 69, "503 Service Unavailable, in 6 attempts"),
        (XML, "403", 2, "access denied (403 Forbidden)"),
        (XML, HTML, 2, "its metadata say"),
        (XML, "little", 2, "the MD5 of PMC3.1.xml is"),
        (METADATA, HTML, 2, "metadata/PMC3.1.json are not this article's metadata, but b'<!DOCTYPE"),
        (METADATA, b'{"pmcid": "PMC4"}', 2, "are not this article's metadata"),
        (METADATA, b'{"pmcid": "PMC3", "license_code": ["CC BY"]}', 2, "the license_code ['CC BY'], not a text"),
        (METADATA, b'{"pmcid": "PMC3", "is_retracted": "no"}', 2, "is_retracted 'no', not true or false"),
    ],
)
def test_pmc_what_does_not_pass_is_named(
    articles: Site, tmp_path: Path, capsys: Any, path: str, fault: Fault, code: int, seen: str
):
    out = tmp_path / "files"
    articles.fail(path, fault, for_ever=True)
    assert acquire_pmc(articles, out, "--workers", 1) == code
    assert "PMC3.1" in (error := capsys.readouterr().err) and seen in error and "Traceback" not in error
    articles.faults.clear()
    had = set(articles.asked(".xml")) - {XML}
    assert acquire_pmc(articles, out) == 0
    assert not had & set(articles.asked(".xml"))
    assert len(corpus_of(out, tmp_path / "corpus")[0]) == 9


def test_pmc_after_many_faults_it_stops(articles: Site, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    for name, limit, shown in (("few", 100, 3), ("many", 3, 2)):
        monkeypatch.setattr(pmc_bucket, "MAX_FAULTS", limit)
        monkeypatch.setattr(pmc_bucket, "SHOWN_FAULTS", shown)
        for pmcid in range(3, 7):
            articles.fail(f"/{BUCKET}/PMC{pmcid}.1/PMC{pmcid}.1.xml", "403", for_ever=True)
        assert acquire_pmc(articles, tmp_path / name, "--workers", 1) == 2
        error = capsys.readouterr().err
        assert error.count("access denied (403 Forbidden)") == shown and "and 1 more" in error
        all_articles, failed, untried = (10, 4, 0) if name == "few" else (5, 3, 5)
        assert f"of {all_articles} articles {failed} could not be fetched, and {untried}" in error
        articles.faults.clear()
        assert acquire_pmc(articles, tmp_path / name) == 0
        assert len(corpus_of(tmp_path / name, tmp_path / f"{name}.corpus")[0]) == 9


def test_pmc_an_error_in_xml_with_its_own_md5(articles: Site, s3: Any, tmp_path: Path, capsys: Any):
    for number, body in enumerate((b"<Error><Code>InternalError</Code></Error>", b"Internal error"), start=19):
        metadata = json.loads(s3.get_object(Bucket=BUCKET, Key="metadata/PMC3.1.json")["Body"].read())
        metadata["xml_url"] = f"s3://x?md5={hashlib.md5(body).hexdigest()}"
        s3.put_object(Bucket=BUCKET, Key="PMC3.1/PMC3.1.xml", Body=body)
        s3.put_object(Bucket=BUCKET, Key="metadata/PMC3.1.json", Body=json.dumps(metadata).encode())
        put_inventory(s3, f"2026-01-{number}")
        assert acquire_pmc(articles, tmp_path / "files") == 2
        error = capsys.readouterr().err
        assert "PMC3.1" in error and ("the root element <Error>" in error or "is not XML" in error)
    texts, _ = corpus_of(tmp_path / "files", tmp_path / "corpus")
    assert len(texts) == 8 and "pmcid:PMC3" not in texts


def test_pmc_gone_since_the_inventory(articles: Site, s3: Any, tmp_path: Path, capsys: Any):
    s3.delete_object(Bucket=BUCKET, Key="PMC3.1/PMC3.1.xml")
    s3.delete_object(Bucket=BUCKET, Key="metadata/PMC4.1.json")
    assert acquire_pmc(articles, tmp_path / "files") == 0
    assert "2 gone, licence unknown" in capsys.readouterr().out
    assert len(corpus_of(tmp_path / "files", tmp_path / "corpus")[0]) == 7


def test_pmc_gone_after_it_was_fetched(articles: Site, s3: Any, tmp_path: Path, capsys: Any):
    out = tmp_path / "files"
    assert acquire_pmc(articles, out) == 0
    put_article(s3, 1, text="Revised body")
    put_inventory(s3, "2026-01-19")
    for key in ("metadata/PMC1.1.json", "PMC1.1/PMC1.1.xml"):
        s3.delete_object(Bucket=BUCKET, Key=key)
    assert acquire_pmc(articles, out) == 0  # the inventory lags behind the bucket
    put_inventory(s3, "2026-01-20")
    capsys.readouterr()
    assert acquire_pmc(articles, out) == 0
    assert f"1 articles are no longer in the bucket and stay in {out}: PMC1\n" in capsys.readouterr().out
    assert corpus_of(out, tmp_path / "corpus")[0]["pmcid:PMC1"] == "Title 1\n\nBody of 1."


def test_pmc_inventories_that_are_none(articles: Site, s3: Any, tmp_path: Path, capsys: Any):
    prefix = "inventory-reports/pmc-oa-opendata/metadata/"
    out = tmp_path / "files"

    def put(date: str, manifest: Any) -> None:
        body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}{date}T01-00Z/manifest.json", Body=body)

    s3.put_object(Bucket=BUCKET, Key=f"{prefix}2026-01-20T01-00Z/manifest.checksum", Body=b"soon")
    assert acquire_pmc(articles, out) == 0  # the newest inventory is incomplete, so the one before it is used
    assert "2026-01-18" in capsys.readouterr().out
    good = json.loads(s3.get_object(Bucket=BUCKET, Key=f"{prefix}2026-01-18T01-00Z/manifest.json")["Body"].read())
    few = gzip.compress(f'"{BUCKET}","metadata/PMC1.1.json","2026-01-01T00:00:00.000Z","x"\n'.encode())
    s3.put_object(Bucket=BUCKET, Key="few", Body=few)
    file = {"key": "few", "size": len(few), "MD5checksum": hashlib.md5(few).hexdigest()}
    for number, (manifest, seen) in enumerate(
        [
            (HTML, "manifest.json is not JSON; it begins with b'<!DOCTYPE"),
            (
                good | {"fileSchema": "Bucket, Key"},
                "does not describe CSV files with the columns Key, LastModifiedDate",
            ),
            (good | {"fileFormat": "ORC"}, "does not describe CSV files"),
            (good | {"files": [file]}, "lists 1 articles, the inventory before it 10"),
            (
                good | {"files": [file | {"MD5checksum": "0" * 32}]},
                "few failed its checks in 3 downloads: its MD5",
            ),
        ],
        start=21,
    ):
        put(f"2026-01-{number}", manifest)
        assert acquire_pmc(articles, out) == 2
        assert seen in capsys.readouterr().err
    articles.fail(f"/{BUCKET}/?list-type=2&delimiter=%2F&prefix={prefix.replace('/', '%2F')}", HTML)
    assert acquire_pmc(articles, tmp_path / "other") == 2
    assert "lists no inventory below" in capsys.readouterr().err
    put("2026-01-30", good)  # articles downloaded earlier are still known
    articles.asked()
    assert acquire_pmc(articles, out) == 0
    assert not articles.asked(".xml")


def test_pmc_packs_that_are_lost_or_altered(articles: Site, tmp_path: Path, capsys: Any, monkeypatch: Any):
    monkeypatch.setattr(pmc_packs, "PACK_BYTES", 1)  # a pack holds one article
    out = tmp_path / "files"
    assert acquire_pmc(articles, out, "--workers", 1) == 0
    packs = sorted(out.glob("pmc-*.tar.zst"))
    assert len(packs) == 9
    packs[0].unlink()
    packs[1].write_bytes(packs[1].read_bytes()[:-1])
    packs[2].touch()
    capsys.readouterr()
    articles.asked()
    assert acquire_pmc(articles, out) == 0
    output = capsys.readouterr().out
    assert f"{packs[0]} was removed" in output and f"{packs[1]} was altered" in output and str(packs[2]) not in output
    assert len(articles.asked(".xml")) == 2
    assert len(corpus_of(out, tmp_path / "corpus")[0]) == 9


@pytest.mark.parametrize("moment", ["written", "committed"])
def test_pmc_killed_before_a_pack_has_its_name(articles: Site, tmp_path: Path, monkeypatch: Any, moment: str):
    out = tmp_path / "files"

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pmc_packs, *(("sha256_file", kill) if moment == "written" else ("give_name", kill)))
        with pytest.raises(Killed):
            acquire.main(["pmc", "--url", f"{articles.url}/{BUCKET}", "--out", str(out)])
    assert not list(out.glob("*.tar.zst")) and list(out.glob("*.part"))
    assert acquire_pmc(articles, out) == 0
    assert not list(out.glob("*.part"))
    assert len(corpus_of(out, tmp_path / "corpus")[0]) == 9

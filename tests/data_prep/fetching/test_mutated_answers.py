"""Whatever a server sends, acquire.py downloads it, refuses it with a message, or reports that no server responds."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import strategies as st

from hunting import hunt, hunt_on
from mutations import Draw, mutated
from oracle import problems

Answers = dict[str, tuple[bytes, dict[str, str]]]  # path and query -> body and headers

CITATIONS = gzip.compress(
    b"<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID></MedlineCitation></PubmedArticle>"
    b"</PubmedArticleSet>",
    mtime=0,
)
PILE = zstandard.compress(b'{"text": "t", "meta": {"pile_set_name": "PubMed Abstracts"}}\n' * 3)
ARTICLE = b"<article><front/><body><p>Text.</p></body></article>"


def pubmed() -> Answers:
    listing = "".join(
        f'<a href="{name}">{name}</a> 2026-01-29 14:48  {size}\n'
        for name, size in (("pubmed26n0001.xml.gz", "1K"), ("pubmed26n0001.xml.gz.md5", "60"))
    )
    md5 = f"MD5(pubmed26n0001.xml.gz)= {hashlib.md5(CITATIONS).hexdigest()}\n"
    return {
        "/baseline/": (f"<pre>{listing}</pre>".encode(), {}),
        "/baseline/pubmed26n0001.xml.gz": (CITATIONS, {"ETag": '"a"'}),
        "/baseline/pubmed26n0001.xml.gz.md5": (md5.encode(), {}),
    }


def pile() -> Answers:
    lfs = {"oid": hashlib.sha256(PILE).hexdigest(), "size": len(PILE)}
    entry = {"type": "file", "path": "val.jsonl.zst", "size": len(PILE), "oid": "0", "lfs": lfs}
    return {
        "/api/datasets/monology/pile-uncopyrighted/tree/main?recursive=true": (
            json.dumps([entry]).encode(),
            {"Link": '<http://127.0.0.1:1/none>; rel="last"'},
        ),
        "/datasets/monology/pile-uncopyrighted/resolve/main/val.jsonl.zst": (PILE, {"ETag": '"b"'}),
    }


def pmc() -> Answers:
    above = "inventory-reports/pmc-oa-opendata/metadata/"
    rows = gzip.compress(b'"b","metadata/PMC1.1.json","2026-01-01T00:00:00Z","e"\n', mtime=0)
    manifest = {
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
        "files": [{"key": f"{above}data/a.csv.gz", "size": len(rows), "MD5checksum": hashlib.md5(rows).hexdigest()}],
    }
    listing = f"<R><CommonPrefixes><Prefix>{above}2026-01-18T01-00Z/</Prefix></CommonPrefixes></R>"
    described = {"pmcid": "PMC1", "license_code": "CC BY", "is_retracted": False, "xml_url": "s3://b/PMC1.xml"}
    return {
        f"/?list-type=2&delimiter=%2F&prefix={above.replace('/', '%2F')}": (listing.encode(), {}),
        f"/{above}2026-01-18T01-00Z/manifest.json": (json.dumps(manifest).encode(), {}),
        f"/{above}data/a.csv.gz": (rows, {}),
        "/metadata/PMC1.1.json": (json.dumps(described).encode(), {}),
        "/PMC1.1/PMC1.1.xml": (ARTICLE, {}),
    }


SOURCES: dict[str, tuple[Callable[[], Answers], list[str]]] = {
    "medline": (pubmed, ["medline", "--baseline", "--accept", "pubmed26n0001.xml.gz"]),
    "pile": (pile, ["pile"]),
    "pmc": (pmc, ["pmc", "--workers", "2"]),
}
NAMES = {"/baseline/": "a.html", "tree/main": "a.json", "?list-type": "a.xml", ".md5": "a.txt"}


class Server(ThreadingHTTPServer):
    """Sends the responses that were set last."""

    daemon_threads = True
    answers: Answers

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that have gone, because some examples provoke them."""


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        body, headers = self.server.answers.get(self.path, (b"", {"status": "404"}))
        headers = {"status": "200", "Content-Length": str(len(body)), **headers}
        self.send_response_only(int(headers.pop("status")))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


HEADERS = (
    *(("Content-Length", value) for value in ("0", "1", "9" * 18, "9" * 400, "-1", "x", "1.5")),
    *(("status", value) for value in ("206", "302", "304", "403", "404", "416", "429", "500", "999")),
    *(("Link", value) for value in ('<x>; rel="next"', "<" * 5000, '<http://[/>; rel="next"', '<>; rel="next"')),
    *(("Location", value) for value in ("/", "x" * 5000, "http://127.0.0.1:1/", "file:///etc/passwd")),
    *(("ETag", value) for value in ("", "W/", '"' + "0" * 32 + '"', "x" * 5000)),
    *(("Retry-After", value) for value in ("-1", "1e9", "x", "0")),
    *(("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked"), ("Content-Range", "bytes 9-/x")),
)


def command(source: str, server: Server) -> tuple[str, str]:
    arguments = [*SOURCES[source][1], "--out", "files", "--url", f"http://127.0.0.1:{server.server_port}"]
    return "-c", (
        "from data_prep import acquire\n"
        "from data_prep.common.errors import run\n"
        "from data_prep.fetching import downloads\n"
        "downloads.WAIT_S = downloads.MAX_WAIT_S = 0.001\n"
        f"run(lambda: acquire.main({arguments}))"
    )


def find_in(source: str, server: Server, folder: Path) -> Callable[[Draw], list[str]]:
    make, _ = SOURCES[source]

    def find(draw: Draw) -> list[str]:
        answers, chosen = make(), ""
        for _ in range(draw(st.integers(1, 2))):
            chosen = draw(st.sampled_from(sorted(answers)))
            body, headers = answers[chosen]
            if draw(st.integers(0, 2)):
                name = next((name for part, name in NAMES.items() if part in chosen), chosen)
                body = mutated(draw, name, body)
            else:
                header, value = draw(st.sampled_from(HEADERS))
                headers = {**headers, header: value}
            answers[chosen] = body, headers
        server.answers = answers
        wrong = problems(command(source, server), {"in": b""}, folder / "run", (0, 2, 69), finished="nothing")
        return [f"{chosen}: {answers[chosen][1]} {answers[chosen][0][:1000]!r}", *wrong] if wrong else []

    return find


@pytest.mark.parametrize("source", SOURCES)
def test_honest_answers_are_taken(source: str, server: Server, tmp_path: Path) -> None:
    server.answers = SOURCES[source][0]()
    assert not problems(command(source, server), {"in": b""}, tmp_path / "run", (0,), finished="nothing")


@pytest.mark.parametrize("source", SOURCES)
def test_whatever_a_server_answers(source: str, server: Server, tmp_path: Path) -> None:
    hunt(find_in(source, server, tmp_path), examples=12)


@pytest.mark.chaos
def test_whatever_a_server_answers_for_ten_minutes(server: Server, tmp_path: Path, outcome: Any) -> None:
    forms = {source: find_in(source, server, tmp_path) for source in SOURCES}
    outcome("anything in a server's answer", hunt_on(forms), "nothing")

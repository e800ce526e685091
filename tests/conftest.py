"""Fixtures for all rooms, such as a tiny corpus, tokenizer and shards that every test may read and none may change."""

from __future__ import annotations

import html
import http.client
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import pytest

import quick
from data_prep import corpus
from data_prep.common.location import Location
from data_prep.files import object_store
from data_prep.files.inputs import Input, Stream
from data_prep.filtering.build_corpus import build_corpus
from data_prep.sharding.build_shards import build_shards
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document, Entry, Source
from data_prep.tokenizing.training import build_tokenizer
from patience import patience_s, start_s

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TINY_VOCAB_SIZE = 600
TINY_SEQ_LEN = 64


Outcome = Callable[[str, str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-report", type=Path, help="run what is marked or says an outcome; write what was seen there, as HTML"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Measure a start before the workers make the machine busy; the workers find the result in their environment.

    In a run of `make quick` few tests need the measurement, so a worker measures it when a test asks for it.
    """
    if getattr(config.option, "numprocesses", None) and not config.pluginmanager.has_plugin(quick.BUDGET):
        start_s()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make chaos` runs only the tests that inject faults and the tests that take long."""
    if config.getoption("--fault-report"):
        items[:] = [i for i in items if i.get_closest_marker("chaos") or "outcome" in getattr(i, "fixturenames", ())]


@pytest.fixture
def outcome(record_property: Callable[[str, str], None]) -> Outcome:
    """`outcome(injected, seen, lost)` adds a line to the table that ends `make chaos`."""

    def record(injected: str, seen: str, lost: str) -> None:
        for name, value in (("injected", injected), ("seen", seen), ("lost", lost)):
            record_property(name, value)

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print which tests were left out and how to run them, the time of each file, and the table of injected faults.

    A test that failed before it recorded an outcome is listed in the table by its name.
    """
    say_what_was_left_out(terminalreporter)
    quick.remember(config, (report for reports in terminalreporter.stats.values() for report in reports))
    path: Path | None = config.getoption("--fault-report")
    if path is None:
        return
    rows = []
    for verdict in ("passed", "failed"):
        for report in terminalreporter.stats.get(verdict, []):
            facts = dict(report.user_properties)
            if report.when == "call" and (facts or verdict == "failed"):
                name = report.nodeid.split("::")[-1]
                rows.append((verdict, facts.get("injected", name), facts.get("seen", "–"), facts.get("lost", "–")))
    for row in rows:
        terminalreporter.write_line(" | ".join(row))
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "<!doctype html><meta charset=utf-8><title>Injected faults</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "td,th{text-align:left;vertical-align:top;padding:.3rem 1rem .3rem 0;border-bottom:1px solid #d8dee8}</style>"
        f"<h1>Injected faults</h1><table><tr><th>verdict<th>injected<th>seen<th>lost</tr>{cells}</table>",
        encoding="utf-8",
    )
    terminalreporter.write_line(f"{len(rows)} faults; {path}")


def say_what_was_left_out(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter[str]()
    for report in terminalreporter.stats.get("skipped", []):
        why = report.longrepr[2] if isinstance(report.longrepr, (tuple, list)) else str(report.longrepr)
        reasons[why.removeprefix("Skipped: ")] += 1
    left_out = [f"{count} skipped: {reason}" for reason, count in sorted(reasons.items())]
    expression = str(terminalreporter.config.option.markexpr)
    for marker, tests in {"chaos": "the long injections of faults", "nocuda": "the long runs without a GPU"}.items():
        if f"not {marker}" in expression.split(" and "):
            left_out.append(f"not asked for: {tests}, which make {marker} runs")
    if left_out:
        terminalreporter.section("left out")
        for line in left_out:
            terminalreporter.write_line(line)


def tiny_source(documents: list[Document]) -> Source:
    """Synthetic documents that take the place of a source."""

    @dataclass(frozen=True)
    class TinySource:
        newest_wins: ClassVar[bool] = False
        needs_input: ClassVar[bool] = False

        @property
        def sets(self) -> tuple[str, ...]:
            return (ABSTRACTS, ARTICLES)

        def find(self, patterns: Sequence[str]) -> list[Input]:
            return [Input("tiny", Location(os.devnull), 1, "")]

        def read(self, file: Input, stream: Stream) -> Iterator[Entry]:
            yield from documents

    return TinySource()


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """`make_corpus(out, documents, val_fraction)` builds a corpus as if from a source named `tiny`."""

    def make(out: Path, documents: list[Document], val_fraction: float = 0.1, **arguments: Any) -> Path:
        build_corpus({"tiny": (tiny_source(documents), [])}, out, val_fraction, **arguments)
        return out

    return make


@pytest.fixture(scope="session")
def folder_bytes() -> Callable[[Path], dict[str, bytes]]:
    """`folder_bytes(folder)` maps the name of every file below the folder to its content."""
    return lambda folder: {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="session")
def tiny_documents() -> list[Document]:
    """300 abstracts and 30 articles of a small vocabulary, with a few awkward texts among them."""
    draw = random.Random(17)
    syllables = ["ba", "cyt", "gen", "hep", "lip", "myo", "neu", "ro", "thro", "vas"]
    stems = ["".join(draw.choices(syllables, k=2)) for _ in range(60)]
    words = [stem + ending for stem in stems for ending in ("itis", "oma", "ase", "al")]

    def sentence() -> str:
        return " ".join([draw.choice(words).capitalize(), *draw.choices(words, k=draw.randint(4, 12))]) + "."

    awkward = ["before <|endoftext|> after", "β₂-agonist 5 µg 😀 ≤ 0.05", "tab\tand  two spaces", "x"]
    documents = []
    for number in range(330):
        article = number >= 300
        sentences = [sentence() for _ in range(draw.randint(20, 30) if article else draw.randint(3, 9))]
        text = awkward[number] if number < len(awkward) else f"{sentences[0]}\n{' '.join(sentences[1:])}"
        source, prefix = (ARTICLES, "pmcid:PMC") if article else (ABSTRACTS, "pmid:")
        documents.append(Document(f"{prefix}{1000 + number}", text, source, "CC BY" if article else None, "2021-03"))
    return documents


@pytest.fixture(scope="session")
def tiny_corpus(
    tmp_path_factory: pytest.TempPathFactory, tiny_documents: list[Document], make_corpus: Callable[..., Path]
) -> Path:
    return make_corpus(tmp_path_factory.mktemp("tiny") / "corpus", tiny_documents)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_corpus: Path) -> Path:
    out = tiny_corpus.with_name("tokenizer")
    build_tokenizer(tiny_corpus, out, TINY_VOCAB_SIZE)
    return out


@pytest.fixture(scope="session")
def tiny_shards(tiny_corpus: Path, tiny_tokenizer: Path) -> Path:
    out = tiny_corpus.with_name("shards")
    build_shards(tiny_corpus, tiny_tokenizer, out, seq_len=TINY_SEQ_LEN)
    return out


@pytest.fixture(scope="session")
def old_shards(tiny_documents: list[Document], tiny_tokenizer: Path, make_corpus: Callable[..., Path]) -> Path:
    """Shards of other texts, encoded with the tokenizer of `tiny_shards`, which a run mixes in."""
    old = [
        Document(f"pmid:{5000 + number}", " ".join(reversed(document.text.split())), ABSTRACTS, None, "2019")
        for number, document in enumerate(tiny_documents[4:104])
    ]
    out = tiny_tokenizer.with_name("old-shards")
    build_shards(make_corpus(tiny_tokenizer.with_name("old-corpus"), old), tiny_tokenizer, out, seq_len=TINY_SEQ_LEN)
    return out


@pytest.fixture
def kill_at_random_moments(
    tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> Callable[[list[str], Path], None]:
    """`kill_at_random_moments(command, straight)` sends 30 SIGKILLs at random moments to runs of `command OUT`.

    If a run finishes between the kills, its output must equal `straight` byte for byte, and a new output is begun. The
    moments lie within one and a half times the time that an undisturbed run takes on this machine.
    """

    def kill(command: list[str], straight: Path) -> None:
        draw, root = random.Random(5), str(Path(corpus.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root}
        begin_s = time.monotonic()
        subprocess.run([*command, str(tmp_path / "undisturbed")], env=environment, check=True, timeout=patience_s())
        whole_s = time.monotonic() - begin_s
        kills = finished = 0
        while kills < 30:
            out = tmp_path / f"finished{finished}"
            running = subprocess.Popen([*command, str(out)], env=environment)
            try:
                assert running.wait(draw.uniform(0.1, 1.5) * whole_s) == 0
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                kills += 1
            if out.exists():
                assert folder_bytes(out) == folder_bytes(straight)
                finished += 1
        assert finished > 0

    return kill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`small_disk(bytes, "rw")` mounts a file system of that size; a second call changes its size, or mode to "ro"."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size_bytes: int, mode: str = "rw") -> Path:
        options = f"size={size_bytes},{mode}" + (",remount" if folder.is_mount() else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system is mounted by root alone, so run as root ({done.stderr.strip()})")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """The URL of an S3 store on this machine."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *_: None)
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def s3(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An S3 client of that store; all clients of the test and its processes also use that store."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store_url, "S3_ENDPOINT_URL": store_url, "NO_PROXY": "127.0.0.1",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


SECRET = "do-not-print-this"  # must not occur in any message


class Proxy(ThreadingHTTPServer):
    """A proxy in front of the store; `break_it("503", "GET", "ba8", times=2)` answers such requests with that fault."""

    daemon_threads = True

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = store
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rules: list[list[Any]] = []
        self.held = threading.Event()  # lets a request hang
        self.release = threading.Event()
        self.requests: list[str] = []

    def break_it(self, fault: str, method: str = "", path: str = "", times: float = float("inf")) -> None:
        self.rules.append([fault, method, path, times])

    def fault(self, method: str, path: str) -> str:
        for rule in self.rules:
            kind, of_method, pattern, times = rule
            if method.startswith(of_method) and re.search(pattern, path) and times > 0:
                rule[3] -= 1
                return kind
        return ""

    def well_again(self) -> None:
        self.rules.clear()
        self.release.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that have gone, because some tests provoke them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(self) -> None:
        method = str(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(method, self.path)
        self.server.requests.append(f"{method} {self.path}")
        if fault == "hang":
            self.server.held.set()
            self.server.release.wait()
            self.close_connection = True
            return
        if fault in ("403", "503"):
            code = {"403": "AccessDenied", "503": "SlowDown"}[fault]
            text = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
            self.answer(int(fault), {"Content-Type": "application/xml"}, b"" if method == "HEAD" else text)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if fault == "cut upload":
            body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body))
        upstream = http.client.HTTPConnection(urlsplit(self.server.store).netloc, timeout=patience_s())
        upstream.request(method, self.path, body, headers)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        keep = {n: v for n, v in response.getheaders() if n.lower() not in ("connection", "transfer-encoding", "date")}
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.answer(response.status, keep, data, len(data) // 2 if fault == "drop" else len(data))

    def answer(self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(data))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:sent])
        self.close_connection = sent is not None and sent < len(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def proxy(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """All clients of the test and its processes use the store through the proxy, and soon stop waiting."""
    server = Proxy(store_url)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIA" + SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name, value in {"CONNECT_TIMEOUT_S": start_s() / 2, "READ_TIMEOUT_S": start_s() / 2, "ATTEMPTS": 2}.items():
        monkeypatch.setattr(object_store, name, value)
    yield server
    server.well_again()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless browser that reaches only this machine: the one of `make test`, or CHROMIUM=/path/to/it."""
    executable = Path(os.environ.get("CHROMIUM") or Path(sys.prefix) / "chromium/chromium")
    libraries, fonts = executable.parent / "al2023/lib", executable.parent / "fonts/fonts.conf"
    env: dict[str, str | float | bool] = dict(os.environ)
    if libraries.is_dir():
        env |= {"LD_LIBRARY_PATH": str(libraries), "FONTCONFIG_FILE": str(fonts)}
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=executable,
                env=env,
                args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
                timeout=1000 * patience_s(),
            )
        except Error as error:
            say = pytest.fail if os.environ.get("CI") else pytest.skip
            why = error.message.splitlines()[0]
            say(f"pages: make test brings Chromium, or say CHROMIUM=/path/to/it ({executable} does not run: {why})")
        yield browser
        browser.close()
        # An earlier run in this process may have left loader workers, which hold the pipe whose end the driver waits
        # for.
        for child in multiprocessing.active_children():
            child.kill()
            child.join()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[[str, int], Page]]:
    """`visit(url, width)` opens a page that may not contact other machines, report errors or exceed the window."""
    pages: list[Page] = []
    problems: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:")):
            problems.append(f"asks for {request.url}")

    def open_page(url: str, width: int) -> Page:
        page = chromium.new_page(viewport={"width": width, "height": 844})
        page.set_default_timeout(1000 * patience_s())
        page.on("request", asked)
        page.on("websocket", asked)
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(error.stack or error.message))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        if wide > window:
            problems.append(f"is {wide} px wide in a window of {window}")
        page.close()
    assert not problems

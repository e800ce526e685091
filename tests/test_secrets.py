"""A password, signature or key that a command is given is never printed, and is in no file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

import warm
from commands import main_of, options, parser_of
from data_prep import acquire, corpus, verify
from data_prep.common.command_line import FileToWrite, folder_to_make
from data_prep.common.errors import BadInput, run
from data_prep.common.location import Location
from data_prep.common.redaction import redacted, without_credentials
from data_prep.fetching import downloads
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input
from project import COMMANDS, ROOT
from recipes import report
from recipes.config.loading import load_config, load_recorded_config
from recipes.runs.reading import read_run
from recipes.runs.run_log import log_entry

PASSWORD, SIGNATURE, SESSION = "marked-pass%2Fword", "marked-signature", "marked-session"
QUERY = f"X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={SESSION}&part=7"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "marked/aws+secret", "AWS_SESSION_TOKEN": "marked-aws-session",
    "WANDB_API_KEY": "marked" + 34 * "a", "HF_TOKEN": "hf_marked-token", "AWS_ACCESS_KEY_ID": "marked-key-id",
}  # fmt: skip
MARK = b"marked"  # is in all of them


def url(site: str, path: str, query: str = QUERY) -> str:
    return f"http://someone:{PASSWORD}@{site}/{path}" + (f"?{query}" if query else "")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


class Site(ThreadingHTTPServer):
    """Serves a folder if the request has the password, and with `signed` the signature."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.signed = folder, False
        self.name = f"127.0.0.1:{self.server_port}"
        self.answered = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        expected = "Basic " + base64.b64encode(b"someone:marked-pass/word").decode()
        file = self.server.folder / path.lstrip("/")
        body, status = b"", 200
        if self.headers.get("Authorization") != expected or (self.server.signed and QUERY not in query):
            status = 403
        elif file.with_name(f"{file.name}.listing").is_file():
            body = file.with_name(f"{file.name}.listing").read_bytes()
        elif file.is_file():
            body, self.server.answered = file.read_bytes(), self.server.answered + 1
        else:
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Contents of the files of a folder, unpacked, and rows of databases, because a page of SQLite may split a text."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield str(path), str(path).encode() + data
        if path.suffix in (".zst", ".zstd"):
            yield f"{path}, unpacked", zstandard.ZstdDecompressor().decompressobj().decompress(data)
        elif data.startswith(b"\x1f\x8b"):
            yield f"{path}, unpacked", gzip.decompress(data)
        elif data.startswith(b"SQLite format"):
            with sqlite3.connect(path) as database:
                yield f"{path}, rows", "\n".join(database.iterdump()).encode()


def assert_none(folder: Path, *printed: str) -> None:
    for text in printed:
        assert MARK.decode() not in text, text
    leaks = [name for name, content in contents(folder) if MARK in content]
    assert not leaks, leaks


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`call(main, …)`: exit code and output of a command."""

    def made(main: Callable[[list[str]], object], *arguments: object) -> tuple[int, str]:
        hook, thread_hook = sys.excepthook, threading.excepthook
        with pytest.raises(SystemExit) as ended:
            run(lambda: main([str(part) for part in arguments]))
        sys.excepthook, threading.excepthook = hook, thread_hook
        code = ended.value.code
        assert isinstance(code, int)
        return code, "".join(capfd.readouterr())

    return made


# -- the type -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("https://token@h:8080/x", "https://***@h:8080/x"),
        ("https://u:p/w@h/x", "https://***@h/x"),
        ("https://u:p?w#@h/x", "https://***@h/x"),
        ("https://u:p'w@h/x", "https://***@h/x"),
        ("https://u:p@w@h/x", "https://***@h/x"),
        ("hf://datasets/a/b@main/x", "hf://datasets/a/b@main/x"),
        ("https://h:8080/a@b", "https://h:8080/a@b"),
        ("https://h/a@b?q=c@d", "https://h/a@b?q=c@d"),
        ("https://h/x?part=7&list-type=2", "https://h/x?part=7&list-type=2"),
        *(
            (f"https://h/x?a=1&{name}=s%2Fs&b=2#t", f"https://h/x?a=1&{name}=***&b=2#t")
            for name in (
                "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "x-amz-signature", "sig", "Signature",
                "token", "key", "access_token", "AWSAccessKeyId", "X-Goog-Signature", "api_key", "apikey", "password",
                "client_secret", "Key-Pair-Id", "Policy", "X%2DAmz%2DSignature", "auth", "refresh_token",
            )
        ),
        ("https://h/x#access_token=s", "https://h/x#access_token=***"),
        ("two: https://u:p@h/x and (s3://a:b@c)", "two: https://***@h/x and (s3://***@c)"),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_url(text: str, shown: str) -> None:
    assert without_credentials(text) == redacted(text) == shown
    assert without_credentials(shown) == shown, "hiding twice equals hiding once"


def test_what_is_no_url() -> None:
    assert without_credentials("/data/a@b?key=1") == "/data/a@b?key=1", "a path"
    assert (
        redacted("Max retries exceeded with url: /x?sig=s&n=1 (") == "Max retries exceeded with url: /x?sig=***&n=1 ("
    )


def test_a_location_gives_nothing_away_unasked() -> None:
    typed = url("h", "a/b.jsonl.zst")
    location = Location(typed)
    forms = [
        f"{location}", repr(location), location + "/x", json.dumps({"url": location}), f"{location:>99}",
        "".join([location]), str(BadInput(location)), location.encode().decode(), repr({location: 1}),
        Input("x", location, 1, "").__repr__(), str(Path(location)), location.upper().lower(),
    ]  # fmt: skip
    assert not [form for form in forms if MARK.decode() in form]
    for same in (location, Location(location), pickle.loads(pickle.dumps(location))):
        assert same.typed == typed and f"{same}" == f"{location}"
    assert (location / "c").typed == url("h", "a/b.jsonl.zst/c"), "the query after the secret stays"
    assert location.changed(lambda path: f"{path}.md5").typed == url("h", "a/b.jsonl.zst.md5")
    assert Location("s3://bucket/a?b").changed(lambda path: f"{path}/c").typed == "s3://bucket/a?b/c"
    assert location == Location(url("h", "a/b.jsonl.zst").replace("marked", "other")), (
        "another password, but the same file"
    )


@pytest.mark.usefixtures("environment")
def test_what_libraries_raise_and_log(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception and a warning, each with a secret, in a process of their own."""
    code = (
        "import logging, os, sys, threading\n"
        f"sys.path[0] = {str(ROOT)!r}\n"
        "from data_prep.common.errors import run\n"
        "def fail(*_):\n"
        f"    logging.getLogger('library').warning('retrying %s', {url('h', 'x')!r})\n"
        "    thread = threading.Thread(target=lambda: 1 / len(os.environ['NOTHING' + os.environ['HF_TOKEN']]))\n"
        "    thread.start()\n"
        "    thread.join()\n"
        f"    raise RuntimeError({url('h', 'x')!r}, os.environ['AWS_SECRET_ACCESS_KEY'])\n"
        "run(fail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "retrying http://***@h/x?X-Amz-Signature=***" in done.stderr
    assert "RuntimeError" in done.stderr and "KeyError" in done.stderr
    # Python quotes the source line, which contains the URL here; only the message comes from a library.
    assert MARK.decode() not in "".join(line for line in done.stderr.splitlines() if "raise " not in line)


# -- every command ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_argument_holds_it_a_refusal_does_not(
    command: str, tmp_path: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option and argument of each command in turn is a URL with secrets; the others name missing files."""
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    for before, action in options(parser_of(command)):
        given = [*before]
        for place, other in options(parser_of(command)):
            if place != before or not (other.required or other is action or other.dest == "url"):
                continue
            value = url("127.0.0.1:1", "x") if other is action or other.dest == "url" else "nowhere"
            if other.dest == "gpu":
                value = value if other is action else "h100"
            elif other.dest == "source" and other is not action:
                value = "text"
            elif other.type is folder_to_make and other is not action:
                value = str(tmp_path / "out")
            elif isinstance(other.type, FileToWrite) and other is action:
                value += other.type.endings[0]
            if other.dest == "overrides":
                value = f"data.remote={value}"
            given += [other.option_strings[0], value] if other.option_strings else [value]
        code, printed = call(main_of(command), *given)
        assert code in (0, 2, 69) and printed, given
        assert MARK.decode() not in printed, given
    shutil.rmtree(tmp_path / "http:", ignore_errors=True)  # a path, if the option takes one


# -- commands that do what they are for ----------------------------------------------------------------------------


@pytest.mark.usefixtures("environment")
def test_a_corpus_of_inputs_behind_a_password(site: Site, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    lines = [json.dumps({"text": f"text {n}", "id": str(n)}) for n in range(200)]
    (site.folder / "x.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    (site.folder / "bad.jsonl").write_text("\n".join([*lines, "no JSON"]))
    site.signed = True
    common = ["--source", "text", "--val-fraction", "0.1", "--workers", "1", "--out"]
    code, printed = call(corpus.main, *common, "c", "--input", url(site.name, "x.jsonl.zst"))
    assert code == 0 and site.answered, printed
    listed = [record for _, record in json_lines.read(tmp_path / "c/inputs.jsonl.zst")]
    assert [record["name"] for record in listed] == ["x.jsonl.zst"]
    code, more = call(corpus.main, *common, "c", "--input", url(site.name, "x.jsonl.zst"))
    assert code == 0 and "is up to date" in more
    skip, stop = (
        call(corpus.main, *common, name, "--on-error", name, "--input", url(site.name, "bad.jsonl"))
        for name in ("skip", "stop")
    )
    assert skip[0] == 0 and stop[0] == 2 and f"http://***@{site.name}/bad.jsonl" in stop[1]
    missing = call(corpus.main, *common, "m", "--input", url(site.name, "nothing.jsonl"))
    refused = call(corpus.main, *common, "r", "--input", url(site.name, "x.jsonl.zst").replace("word@", "other@"))
    assert missing[0] == refused[0] == 2
    shutil.rmtree(site.folder)
    assert_none(tmp_path, printed, more, skip[1], stop[1], missing[1], refused[1])


def known_of(folder: Path) -> Path:
    return folder / "c.inputs.jsonl.zst"


def test_hashes_that_an_earlier_version_kept_with_a_password(tmp_path: Path) -> None:
    old = {"url": url("h", "x"), "bytes": 5, "stamp": "s", "sha256": "ab"}
    with json_lines.Writer(known_of(tmp_path)) as writer:
        writer.write(old)
    file = Input("x", Location(url("h", "x").replace("marked", "newer")), 5, "s")
    hashes = list(inputs.sha256_of([file], known_of(tmp_path)))
    assert hashes == [(file, "ab")], "known by the hidden form, and not downloaded"
    inputs.remember(known_of(tmp_path), hashes)
    assert_none(tmp_path)


@pytest.mark.usefixtures("environment")
def test_files_that_are_acquired(site: Site, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    line = json.dumps({"text": "x", "meta": {"pile_set_name": "PubMed Central"}}).encode() + b"\n"
    pile = site.folder / "datasets/a/b/resolve/main"
    pile.mkdir(parents=True)
    (pile / "val.jsonl.zst").write_bytes(packed := zstandard.compress(line))
    listing = [
        {"path": "val.jsonl.zst", "size": len(packed), "oid": "1", "lfs": {"oid": hashlib.sha256(packed).hexdigest()}}
    ]
    (site.folder / "api/datasets/a/b/tree").mkdir(parents=True)
    (site.folder / "api/datasets/a/b/tree/main.listing").write_text(json.dumps(listing))
    xml = b"<PubmedArticleSet><PubmedArticle><MedlineCitation/></PubmedArticle></PubmedArticleSet>"
    (site.folder / "baseline").mkdir()
    (site.folder / "baseline/pubmed26n0001.xml.gz").write_bytes(article := gzip.compress(xml))
    md5 = hashlib.md5(article).hexdigest()
    (site.folder / "baseline/pubmed26n0001.xml.gz.md5").write_text(f"MD5(pubmed26n0001.xml.gz)= {md5}\n")
    names = ["pubmed26n0001.xml.gz", "pubmed26n0001.xml.gz.md5"]
    (site.folder / "baseline.listing").write_text("".join(f'<a href="{name}">{name}</a>\n' for name in names))
    base, answers = url(site.name, "", query=""), []
    for arguments in (["pile", "--repository", "a/b"], ["medline", "--baseline"]):
        command = [*arguments, "--url", base, "--out", arguments[0]]
        code, printed = call(acquire.main, *command, "--dry-run")
        assert code == 0 and f"http://***@{site.name}/" in printed, printed
        answers += [printed, call(acquire.main, *command)]
        assert answers[-1][0] == 0, answers[-1]
        with sqlite3.connect(tmp_path / arguments[0] / "acquired.sqlite") as database:  # as an earlier version did
            database.execute("UPDATE files SET url = ?, version = 'other'", (url(site.name, "old"),))
        answers += [call(acquire.main, *command, "--dry-run"), call(acquire.main, *command)]
        assert answers[-1][0] == 0, "old files are read, and requests use the secrets typed today"
        answers.append(call(acquire.main, *[part.replace("someone", "nobody") for part in command[:-1]], "other"))
        assert answers[-1][0] == 2
    answers.append(call(acquire.main, "pmc", "--url", base, "--out", "pmc"))
    assert answers[-1][0] == 2
    shutil.rmtree(site.folder)
    assert_none(tmp_path, *map(str, answers))


@pytest.mark.usefixtures("environment")
def test_shards_that_are_repaired(
    site: Site, tiny_shards: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]
) -> None:
    shutil.copytree(tiny_shards, site.folder / "shards")
    shutil.copytree(tiny_shards, tmp_path / "shards")
    site.signed = True
    for name in ("manifest.json", "val/index.json"):
        (tmp_path / "shards" / name).write_text("damaged")
    code, printed = call(verify.main, "--shards", "shards", "--repair", "--remote", url(site.name, "shards"))
    assert code == 0 and "2 files replaced" in printed and f"replaced it from http://***@{site.name}/shards" in printed
    (tmp_path / "shards/val/index.json").write_text("damaged")
    (site.folder / "shards/val/index.json").write_text("damaged, too")
    code, failed = call(verify.main, "--shards", "shards", "--repair", "--remote", url(site.name, "shards"))
    assert code == 2 and "was altered too" in failed
    assert_none(tmp_path, printed, failed)


# -- runs -----------------------------------------------------------------------------------------------------------

REMOTE = f"https://someone:{PASSWORD}@127.0.0.1:1/shards?sig={SIGNATURE}"


@pytest.mark.usefixtures("environment")
def test_a_run_its_report_and_its_model(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """With W&B, whose files contain the command line of a run, and TensorBoard."""
    overrides = [
        f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "run_dir=run", f"data.remote={REMOTE}",
        "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64",
        "model.n_layer=2", "max_duration=4ba", "scheduler.t_warmup=1ba", "eval_interval=4ba", "save_interval=4ba",
        "loggers.wandb={mode: offline}", "loggers.tensorboard={}",
    ]  # fmt: skip
    train = [sys.executable, ROOT / "recipes/train.py", ROOT / "yamls/smoke-cpu.yaml", *overrides]
    elsewhere = [*train, f"data.shards={tmp_path / 'nowhere'}", "run_dir=other"]
    longer = [*train, "max_duration=6ba", "resume.allow=[schedule.batches]"]
    commands = {
        "dry run": ([*train, "--dry-run"], 0),
        "run": (train, 0),
        "resumed": (longer, 0),
        "report": ([sys.executable, ROOT / "recipes/report.py", "run"], 0),
        "export": ([sys.executable, ROOT / "recipes/export.py", "--checkpoint", "run", "--out", "model"], 0),
        "nothing there": (elsewhere, 2),
    }
    for name, (command, code) in commands.items():
        done = warm.run(command, tmp_path)
        assert done.returncode == code, f"{name}: {done.stdout}{done.stderr}"
        assert_none(tmp_path, done.stdout, done.stderr)
        if name == "dry run":
            assert "remote: https://***@127.0.0.1:1/shards?sig=***" in done.stdout
    assert list(tmp_path.glob("run/wandb/offline-run*/*.wandb")) and list(tmp_path.glob("run/tensorboard/**/*"))
    assert "data.remote=https://***@127.0.0.1:1/shards?sig=***" in (tmp_path / "run/run.json").read_text()
    assert load_recorded_config(tmp_path / "run/config.yaml").data.remote == without_credentials(REMOTE)


def test_a_report_of_a_run_that_an_earlier_version_wrote(tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    """Record and configuration contain the command as it was typed."""
    run_folder = shutil.copytree(ROOT / "tests/data/before_rooms/run", tmp_path / "run")
    record = json.loads((run_folder / "run.json").read_text())
    record["starts"][-1]["command"] += [f"data.remote={REMOTE}"]
    (run_folder / "run.json").write_text(json.dumps(record))
    config = (run_folder / "config.yaml").read_text()
    assert "remote: null" in config
    (run_folder / "config.yaml").write_text(config.replace("remote: null", f"remote: {REMOTE}"))
    code, printed = call(report.main, run_folder, "--out", tmp_path / "page.html")
    assert code == 0, printed
    page = (tmp_path / "page.html").read_text()
    assert MARK.decode() not in page + printed + log_entry(read_run(run_folder)) and "https://***@127.0.0.1:1" in page


INTERPOLATIONS = [
    "${oc.env:WANDB_API_KEY}", "${oc.env:NOTHING,default}", "a-${oc.env:HF_TOKEN}", "${oc.decode:${oc.env:HF_TOKEN}}",
    "${ oc.env:HF_TOKEN}", "${${seed}.env:HF_TOKEN}", "${oc.${precision}:HF_TOKEN}", "${run_name}${oc.env:HF_TOKEN}",
    "${oc.select:oc}", "${oc.create:{}}", "\\\\${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN", "${}",
]  # fmt: skip


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("value", INTERPOLATIONS)
@pytest.mark.parametrize("key", ["run_name", "run_dir", "model.n_embd", "loggers.wandb.tags", "callbacks", "seed"])
def test_a_configuration_reads_nothing_from_the_environment(key: str, value: str, tmp_path: Path) -> None:
    """In a YAML, in its base, and in an override; refused with the key and the way out."""
    within: Any = [value] if key.endswith("tags") else value
    for name in reversed(key.split(".")):
        within = {name: within}
    base = {"base": str(ROOT / "yamls/smoke-cpu.yaml")}
    (tmp_path / "foreign.yaml").write_text(json.dumps({**base, **within}))
    (tmp_path / "mine.yaml").write_text(json.dumps({"base": "foreign.yaml"}))
    override = f"{key}=[{json.dumps(value)}]" if key.endswith("tags") else f"{key}={value}"
    for yaml, overrides in (("foreign.yaml", []), ("mine.yaml", []), (ROOT / "yamls/smoke-cpu.yaml", [override])):
        with pytest.raises(BadInput, match=rf"{key}.*(it cannot read the environment|section)") as refused:
            load_config(tmp_path / yaml, overrides)
        assert MARK.decode() not in str(refused.value)


def test_another_key_is_still_filled_in(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"base: {ROOT}/yamls/smoke-cpu.yaml\nrun_name: mine\nrun_dir: /scratch/${{run_name}}/${{model.n_layer}}\n"
        "device_train_microbatch_size: ${global_train_batch_size}\ndata: {seq_len: '${..model.n_positions}'}\n"
    )
    cfg = load_config(tmp_path / "mine.yaml", ["model.n_layer=3"])
    assert cfg.run_dir == "/scratch/mine/3" and cfg.data.seq_len == cfg.model.n_positions

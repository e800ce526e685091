"""Generated text: in pieces, in a terminal, in a pipe and on a page."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pexpect
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_prep.common.errors import BadInput
from patience import patience_s
from project import ROOT
from recipes import generate
from recipes.finetuning.pairs import START, Pairs
from recipes.generation import samples
from recipes.generation.sampling import NOTICE, PROMPTS, SETTINGS, Continuation, load_model, printable
from recipes.generation.web_guard import MAX_BODY_BYTES, PATHS

if TYPE_CHECKING:
    from playwright.sync_api import Page

GREEDY: dict[str, Any] = {s.name: s.default for s in SETTINGS} | {"temperature": 0, "max_new_tokens": 12}
LONG = {**GREEDY, "max_new_tokens": 1000}
READY = "\x1b[?2004h"  # the prompt asks the terminal to mark pasted text
# Print to stderr each address outside this machine that Python looks up or connects to, then generate.
WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = host[0] if isinstance(host, tuple) else host
        if host not in ("127.0.0.1", "::1", "localhost", None):
            print("OUTSIDE", event, host, file=sys.stderr, flush=True)
sys.addaudithook(watch)
from data_prep.common.errors import run
from recipes import generate
run(generate.main)
"""


def make_model(tokenizer: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=3, n_head=2, initializer_range=0.3,
        bos_token_id=eos, eos_token_id=eos,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight[eos] = 0  # greedy text continues to the end of the context
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(AutoTokenizer.from_pretrained(tiny_tokenizer), tmp_path_factory.mktemp("generate") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder, "cpu")


def command(*arguments: object) -> list[str]:
    return ["-c", WATCHED, *map(str, arguments), "--device", "cpu"]


def greedy(folder: Path, *more: str) -> list[str]:
    return command("--model", folder, "--temperature", 0, "--max-new-tokens", 12, *more)


def written_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("continuation")]


def test_pieces_are_the_whole_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    inputs = tokenizer("Cytase is", return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=200, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    continuation = Continuation(model, tokenizer, "Cytase is", {**GREEDY, "max_new_tokens": 200})
    pieces = list(continuation)
    assert len(pieces) > 10 and all(pieces)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert continuation.tokens == 200 and not continuation.stopped


def test_a_seed_draws_one_text(loaded: tuple[Any, Any]) -> None:
    draw = {**GREEDY, "temperature": 1.0}
    texts = [samples.generate(*loaded, "Cytase", {**draw, "seed": seed})["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_leaving_ends_the_writing(loaded: tuple[Any, Any]) -> None:
    counts = []
    for leaves in (True, False):
        calls: list[None] = []
        hook = loaded[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        for _ in Continuation(*loaded, "Cytase", LONG):
            if leaves:
                break
        hook.remove()
        counts.append(len(calls))
        assert not written_threads()
    assert 0 < counts[0] < counts[1] / 3


def test_a_failure_of_the_model_is_not_a_silence(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded[0], "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(Continuation(*loaded, "Cytase", GREEDY))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("top_p", "2", r"top-p = 2\.0, but it must be a number from 0\.01 to 1"),
     ("seed", "1.5", "'1.5', but it must be a whole number"), ("temperature", "nan", "from 0.01 to 10, or 0"),
     ("temperature", "hot", "'hot', but it must be a number"), ("temperature", 1e-9, "from 0.01 to 10"),
     ("top_k", None, "a whole number")],
)  # fmt: skip
def test_bad_settings_are_refused(name: str, value: object, says: str) -> None:
    (setting,) = (s for s in SETTINGS if s.name == name)
    with pytest.raises(BadInput, match=says):
        setting.read(value)


def test_text_cannot_command_the_terminal() -> None:
    assert printable("5\u2009µg\n\t\x1b[2Jé\x9b") == "5\u2009µg\n\t�[2Jé�"


def test_a_model_of_pairs_writes_the_target(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    Pairs().add_tokens(tokenizer)
    folder = make_model(tokenizer, tmp_path / "model")
    (folder / "task.json").write_text(json.dumps({"task": "meqsum", "kind": "pairs", "labels": [], "seq_len": 60}))
    model, tokenizer = load_model(folder, "cpu")
    sample = samples.generate(model, tokenizer, "Cytase is", LONG)
    read = [*AutoTokenizer.from_pretrained(folder)("Cytase is")["input_ids"], tokenizer.convert_tokens_to_ids(START)]
    ids = model.generate(torch.tensor([read]), do_sample=False, max_new_tokens=60 - len(read))[0, len(read) :]
    assert sample["text"] == tokenizer.decode(ids, skip_special_tokens=True) and sample["tokens"] == 60 - len(read)
    with pytest.raises(BadInput, match="context holds 60"):
        samples.generate(model, tokenizer, "batoma " * 60, GREEDY)
    (folder / "task.json").write_text(json.dumps({"task": "medqa", "kind": "choice", "labels": [], "seq_len": 60}))
    with pytest.raises(BadInput, match=r"medqa \(choice\).*no text.*evaluate\.py"):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--interactive", "--out", "x.json"], "--out"), (["--model", "b"], "given 2 times"),
     (["--interactive", "--seed", "-1"], "--seed: '-1' must be a whole number"),
     (["--device", "gpu"], "--device: 'gpu' must be cpu, cuda, or one of several such as cuda:1"),
     (["--prompt", "caf\udce9"], "is not valid UTF-8"), (["--prompt", ""], "the prompt is empty")],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        generate.main(["--model", "a", *arguments])


def test_without_gradio_the_page_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BadInput, match=r"the page needs gradio: make \.venv/development"):
        generate.main(["--model", str(folder), "--web"])


def test_a_pipe_is_read_line_by_line(
    folder: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "Cytase is\n/temperature hot\n/again\n\n/nothing\n/top-k 7\ncaf\udce9\nbatoma  β\n"  # an é in Latin-1
    sent = io.BytesIO(lines.encode(errors="surrogateescape"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(sent, encoding="utf-8"))
    arguments = ["--temperature", "0", "--max-new-tokens", "12", "--device", "cpu"]
    generate.main(["--model", str(folder), "--interactive", *arguments])
    written = capsys.readouterr()
    texts = {
        prompt: printable(samples.generate(*loaded, prompt, GREEDY)["text"]) for prompt in ("Cytase is", "batoma  β")
    }
    first, second = (f"[{prompt}]{text} …\n\n" for prompt, text in texts.items())
    assert written.out == f"{first}{first}top-k is 7\n{second}"
    errors = [line for line in written.err.splitlines() if line.startswith("error")]
    assert errors == [
        "error: temperature = 'hot', but it must be a number from 0.01 to 10, or 0",
        "error: /nothing is not a command; /help lists them",
        r"error: the prompt 'caf\udce9' is not text: '\udce9' is not valid UTF-8",
    ]
    assert NOTICE in written.err


def test_a_dialogue_in_a_terminal(folder: Path, loaded: tuple[Any, Any]) -> None:
    def text_of(prompt: str) -> str:
        return printable(samples.generate(*loaded, prompt, GREEDY)["text"]).replace("\n", "\r\n") + " …\r\n"

    terminal = pexpect.spawn(
        sys.executable, greedy(folder, "--interactive"), cwd=str(ROOT), encoding="utf-8", timeout=patience_s(),
        use_poll=True, dimensions=(50, 200), env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )  # fmt: skip
    seen = terminal.logfile_read = io.StringIO()
    terminal.expect_exact(NOTICE)
    terminal.expect_exact("/help lists the commands")
    terminal.expect_exact(READY)
    terminal.send("Cytase is\r")
    terminal.expect_exact(text_of("Cytase is"))

    terminal.send("\x1b[200~Cytase is\nbatoma\x1b[201~\r")  # pasted text, as marked by terminals
    terminal.expect_exact(text_of("Cytase is\nbatoma"))

    terminal.send("/top-p 2\r")
    terminal.expect_exact("error: top-p = 2.0, but it must be a number from 0.01 to 1")
    terminal.send("/max-new-tokens 1000\r")
    terminal.expect_exact("max-new-tokens is 1000")
    terminal.send("\x1b[A" * 3 + "\r")  # the paste, three lines back in the history
    terminal.expect_exact(printable(next(iter(Continuation(*loaded, "Cytase is\nbatoma", LONG)))).strip())
    terminal.sendintr()
    terminal.expect_exact("[stopped]")
    assert len(terminal.before or "") < 2000, "of some 6000 characters"

    terminal.expect_exact(READY)
    terminal.send("away with this")
    terminal.sendintr()
    terminal.send("/max-new-tokens 12\r")
    terminal.expect_exact("max-new-tokens is 12")
    terminal.send("batoma\r")
    terminal.expect_exact(text_of("batoma"))
    terminal.expect_exact(READY)
    terminal.sendeof()
    assert terminal.read() is not None and terminal.wait() == 0
    assert not any(word in seen.getvalue() for word in ("Traceback", "OUTSIDE"))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and process of the page of two models, started with proxy variables; it may contact no other machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    other = folder.with_name("other")
    if not other.exists():
        other.symlink_to(folder)
    proxy = "http://127.0.0.9:9"  # an address that counts as OUTSIDE
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, *greedy(folder, "--model", str(other), "--web", "--port", str(port))],
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **proxies},
        )  # fmt: skip
    try:
        until = time.monotonic() + patience_s()
        while "Ctrl-C ends it" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server.pid
        server.send_signal(signal.SIGINT)
        assert server.wait(patience_s()) == 0, log.read_text()
        assert "OUTSIDE" not in log.read_text() and "Traceback" not in log.read_text() and NOTICE in log.read_text()
    finally:
        server.kill()
        server.wait()


def test_the_page_is_served_at_an_address_of_ipv6(folder: Path) -> None:
    """The page answers at its IPv6 address in brackets, and at no other name."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError as error:
        pytest.skip(f"this machine has no ::1 ({error})")
    line = [sys.executable, *greedy(folder, "--web", "--host", "::1", "--port", str(port))]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
        try:
            assert page.stdout
            output = ""
            while "Ctrl-C ends it" not in output:
                one = page.stdout.readline()
                assert one, output
                output += one
            assert f"the page is at http://[::1]:{port};" in output and "warning" not in output
            for host, status in ((f"[::1]:{port}", 200), (f"localhost:{port}", 200), (f"evil.example:{port}", 421)):
                connection = http.client.HTTPConnection("::1", port, timeout=patience_s())
                connection.request("GET", "/", headers={"Host": host})
                assert connection.getresponse().status == status, host
                connection.close()
        finally:
            page.kill()


@pytest.fixture(scope="module")
def address(server: tuple[str, int]) -> str:
    return server[0]


def processor_time_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def until_it_rests(pid: int) -> float:
    """Processor time of a process, after half a second in which it did next to nothing."""
    deadline_s, before_s = time.monotonic() + patience_s(), 0.0
    while (now_s := processor_time_s(pid)) - before_s > 0.1:
        assert time.monotonic() < deadline_s
        before_s = now_s
        time.sleep(0.5)
    return now_s


Visit = Callable[[str, int], "Page"]


def text_on(page: Page, ending: str = NOTICE) -> str:
    """The text after generation has ended."""
    page.wait_for_function("end => document.querySelector('#text textarea').value.endsWith(end)", arg=ending)
    return page.input_value("#text textarea")


TYPE = """
text => {
  const box = document.querySelector("#prompt textarea");
  box.value = text;
  box.dispatchEvent(new Event("input", {bubbles: true}));
}
"""
# Text that a fast user types as soon as the box exists and accepts it.
TYPED_AT_ONCE = """
new MutationObserver((_, watch) => {
  const box = document.querySelector("#prompt textarea");
  if (box === null) return;
  watch.disconnect();
  const type = () => box.disabled || box.readOnly ? setTimeout(type, 0) : (TYPE)("Cytase");
  type();
}).observe(document, {childList: true, subtree: true});
""".replace("TYPE", TYPE)


def test_what_is_typed_at_once_is_written_on(address: str, visit: Visit) -> None:
    """Gradio empties its boxes some 100 ms after they are seen."""
    page = visit("about:blank", 1280)
    page.add_init_script(TYPED_AT_ONCE)
    page.goto(address)
    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'Cytase'")
    page.locator("#prompt textarea:enabled").wait_for()
    press(page, "Write")
    assert text_on(page, f"…\n\n[{NOTICE}]").startswith("Cytase")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_writes_and_says_what_for(address: str, loaded: tuple[Any, Any], visit: Visit, width: int) -> None:
    page = visit(address, width)
    press(page, PROMPTS[1])
    page.wait_for_function("prompt => document.querySelector('#prompt textarea').value === prompt", arg=PROMPTS[1])
    page.fill("#prompt textarea", "Cytase is\nbatoma")
    press(page, "Write")
    expected = printable(samples.generate(*loaded, "Cytase is\nbatoma", GREEDY)["text"])
    assert text_on(page, f"…\n\n[{NOTICE}]") == f"Cytase is\nbatoma{expected} …\n\n[{NOTICE}]"
    page.locator("#settings button").first.click()
    for place in ("0", "document.documentElement.scrollHeight"):
        page.evaluate(f"window.scrollTo(0, {place})")
        notice = page.get_by_role("note")
        box = notice.bounding_box()
        assert notice.inner_text() == NOTICE and box is not None
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 844
        middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
        assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('#notice') !== null", middle)
    page.get_by_label("seed").scroll_into_view_if_needed()
    seed = page.get_by_label("seed").bounding_box()
    assert seed is not None and box is not None and seed["y"] + seed["height"] <= box["y"], "the notice hides nothing"


def test_what_is_copied_carries_the_notice(address: str, visit: Visit) -> None:
    page = visit(address, 1280)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#prompt textarea", "Cytase")
    press(page, "Write")
    text = text_on(page, f"…\n\n[{NOTICE}]")
    page.locator("#text button").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == text


def test_the_page_stops_goes_on_and_refuses(server: tuple[str, int], folder: Path, visit: Visit) -> None:
    address, pid = server
    page = visit(address, 1280)
    page.get_by_label("Model").click()
    page.get_by_role("option", name=str(folder.with_name("other"))).click()
    page.locator("#settings button").first.click()
    page.get_by_label("max-new-tokens").fill("1000")
    page.fill("#prompt textarea", "Cytase")
    press(page, "Write")
    page.wait_for_function("document.querySelector('#text textarea').value.length > 150")
    assert page.input_value("#text textarea").endswith(f"\n\n[{NOTICE}]"), "also while text is generated"
    before_s = processor_time_s(pid)
    press(page, "Stop")
    stopped_s = until_it_rests(pid) - before_s
    page.get_by_label("max-new-tokens").fill("3")
    press(page, "Another")
    short = text_on(page, f" …\n\n[{NOTICE}]")
    assert len(short) < 150 + len(NOTICE) and page.get_by_label("seed").input_value() == "18"
    page.fill("#prompt textarea", "")
    press(page, "Write")
    page.get_by_text("the prompt is empty").wait_for()
    page.evaluate(TYPE, "half a pair \ud800")
    press(page, "Write")
    page.get_by_text("is not valid UTF-8").wait_for()
    page.fill("#prompt textarea", "batoma " * 1000)
    press(page, "Write")
    page.get_by_text("the model's context holds 1024").wait_for()
    page.get_by_label("max-new-tokens").fill("1000")
    page.fill("#prompt textarea", "Cytase")
    before_s = processor_time_s(pid)
    press(page, "Write")
    page.wait_for_function("document.querySelector('#text textarea').value.length > 3000")
    assert stopped_s < (until_it_rests(pid) - before_s) / 2, "the model stops computing, too"


def ask(address: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str]]:
    """A request that any page or program can send: its status and headers."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=patience_s())
    sent = {
        "Host": address.removeprefix("http://"),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_the_page_is_asked_by_itself_alone(address: str) -> None:
    """Uploads, files, redirects, other pages, other names of this machine, frames and long requests are refused."""
    status, headers = ask(address, "GET", "/")
    assert status == 200 and headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    source = Path(str(importlib.util.find_spec("gradio.routes").origin)).read_text()  # pyright: ignore
    routes = re.findall(r'@(router|app)\.(get|post)\(\s*f?"(/[^"]*)"', source)
    asked = [(method.upper(), {"router": "/gradio_api", "app": ""}[kind] + path) for kind, method, path in routes]
    asked += [("GET", "/gradio_api/file=http://example.org"), ("GET", "//example.org/.."), ("PUT", "/"), ("POST", "/")]
    page_itself = tuple(path for paths in PATHS.values() for path in paths)
    others = [(method, path) for method, path in asked if path != "/" or method != "GET"]
    others = [(method, path) for method, path in others if not path.startswith(page_itself)]
    assert len(others) > 40
    for method, path in others:
        plain = re.sub(r"[{}]", "", path)
        status, headers = ask(address, method, plain, b"x" if method == "POST" else b"")
        assert status == 404 and "location" not in headers, (method, path, status)
    join = "/gradio_api/queue/join"
    assert ask(address, "POST", join, b"{}", Origin="http://example.org")[0] == 403
    assert ask(address, "POST", join, b"{}", Origin="null")[0] == 403
    assert ask(address, "GET", "/", Host="rebound.example.org:7860")[0] == 421
    assert ask(address, "GET", "/", Host=f"localhost:{address.rpartition(':')[2]}")[0] == 200
    assert ask(address, "POST", join, Content_Length=str(MAX_BODY_BYTES + 1))[0] == 413


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on .*--port {port}"):
            generate.main(["--model", "anything", "--web", "--port", str(port)])

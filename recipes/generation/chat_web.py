"""A local web page to try models: made with Gradio, without requests to other hosts."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.generation.sampling import NOTICE, PROMPTS, SETTINGS, Continuation, load_model, printable
from recipes.generation.web_guard import PageOnly

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
MAX_WAITING = 32  # largest number of requests that wait for the model; further ones are refused
# The notice is always visible at the bottom, also on a phone. Gradio shows its own messages at the top.
CSS = """
#notice { position: fixed; bottom: 0; left: 0; right: 0; z-index: 100; margin: 0; padding: .6rem 1rem;
          text-align: center; background: #fdf3d7; color: #4a3500; border-top: 1px solid #e3c876; }
#notice * { margin: 0; color: inherit; }
.gradio-container { max-width: 60rem !important; margin: auto !important; padding-bottom: 6rem !important; }
#examples { flex-wrap: wrap; gap: .5rem; }
#examples button { flex: 0 1 auto; width: auto; font-weight: normal; }
#settings .form { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
"""
INTERACTIVE = {"__type__": "update", "interactive": True}  # the JSON form of gr.update(interactive=True)


def serve(folders: Sequence[Path], device: str | None, settings: JsonDict, host: str, port: int) -> None:
    """Load the models and serve the page until Ctrl-C.

    Args:
        folders: folder of each model; the user can choose one of them on the page.
        device: torch's name of the device; None: a GPU if there is one.
        settings: initial settings.
        host: address to listen on.
        port: port to listen on.

    Raises:
        BadInput: Gradio is not installed, a model cannot be loaded, or the port is taken.
    """
    host = host.removeprefix("[").removesuffix("]")
    family, in_url = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"cannot listen on --host {host} --port {port}: {error}") from None
    # Gradio reads GRADIO_ANALYTICS_ENABLED when it is imported. It also sends a request to its own server, to see
    # whether it is up, and that request must not go through a proxy.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    files = tempfile.TemporaryDirectory()  # for Gradio's files; removed when the process ends
    os.environ["GRADIO_TEMP_DIR"] = files.name
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), *THIS_MACHINE)))
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise BadInput(f"the page needs {error.name}: make .venv/development installs it") from None
    warnings.filterwarnings("ignore", module=r"gradio\.")  # deprecation warnings about Gradio's own code
    theme = gr.themes.Default(font="system-ui", font_mono="monospace").set(block_info_text_color="*neutral_500")
    page = build({str(folder): load_model(folder, device) for folder in folders}, settings)
    if host not in THIS_MACHINE:
        print(
            f"warning: --host {host}: anyone who can reach port {port} of this machine can use the page, without a "
            "password",
            file=sys.stderr,
        )
    guard = Middleware(cast(Any, PageOnly), hosts=frozenset((*THIS_MACHINE, "[::1]")) if host in THIS_MACHINE else None)
    page.queue(max_size=MAX_WAITING).launch(
        server_name=in_url, server_port=port, share=False, ssr_mode=False, prevent_thread_lock=True, quiet=True,
        footer_links=[], enable_monitoring=False, theme=theme, css=CSS, app_kwargs={"middleware": [guard]},
    )  # fmt: skip
    print(f"the page is at http://{in_url}:{port}; Ctrl-C ends it\nnote: {NOTICE}", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        page.close(verbose=False)


def build(models: Mapping[str, tuple[Any, Any]], settings: JsonDict) -> Any:
    """Build the page as `gradio.Blocks`.

    Args:
        models: name -> model and tokenizer of `load_model`.
        settings: initial settings.
    """
    import gradio as gr

    def write(name: str, prompt: str, *values: float) -> Iterator[str]:
        try:
            chosen = {s.name: s.read(value) for s, value in zip(SETTINGS, values, strict=True)}
            continuation = Continuation(*models[name], prompt, chosen)
        except BadInput as error:
            raise gr.Error(str(error), print_exception=False) from None
        text = prompt
        for piece in continuation:
            text += printable(piece)
            yield signed(text)
        yield signed(text if continuation.stopped else f"{text} …")

    with gr.Blocks(title="Text of a language model", analytics_enabled=False) as page:
        gr.HTML(f"<p role='note'>{NOTICE}</p>", elem_id="notice")
        first = next(iter(models))
        model = gr.Dropdown(list(models), value=first, label="Model", interactive=len(models) > 1, elem_id="model")
        prompt = gr.Textbox(label="Beginning of a text", lines=4, interactive=False, elem_id="prompt")
        awaited: list[Any] = [prompt]
        with gr.Row(elem_id="examples"):
            for example in PROMPTS:
                button = gr.Button(example, size="sm", interactive=False)
                awaited.append(button)
                button.click(None, outputs=prompt, js=f"() => {json.dumps(example)}", api_visibility="private")
        with gr.Row():
            go = gr.Button("Write", variant="primary", min_width=80)
            stop, another = (gr.Button(what, min_width=80) for what in ("Stop", "Another"))
        # Inputs are enabled only after the page has loaded: for about 100 ms after they are visible, Gradio would
        # discard anything that the user types or chooses.
        ready = f"() => {json.dumps([INTERACTIVE] * len(awaited))}"
        page.load(None, outputs=awaited, js=ready, api_visibility="private")
        text = gr.Textbox(label="Text", lines=10, max_lines=40, buttons=["copy"], interactive=False, elem_id="text")
        with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
            numbers = [
                gr.Number(
                    settings[s.name], label=s.words, info=s.help, maximum=s.rule.high,
                    minimum=s.rule.low if s.rule.also is None else min(s.rule.low, s.rule.also),
                    precision=0 if isinstance(s.default, int) else None,
                )
                for s in SETTINGS
            ]  # fmt: skip
        seed = numbers[[s.name for s in SETTINGS].index("seed")]
        call: JsonDict = {
            "fn": write, "inputs": [model, prompt, *numbers], "outputs": text, "concurrency_id": "model",
            "api_visibility": "private", "show_progress": "minimal",
        }  # fmt: skip
        written = go.click(**call)
        again = another.click(lambda n: n + 1, seed, seed, api_visibility="private").then(**call)
        stop.click(None, cancels=[written, again], api_visibility="private")
    return page


def signed(text: str) -> str:
    """Add the notice below a text, so that every copy of the text contains it."""
    return f"{text}\n\n[{NOTICE}]"

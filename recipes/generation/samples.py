"""Continue a list of prompts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.common.files import JsonDict, read_json, write_json
from data_prep.common.manifest import MANIFEST, manifest_sha256
from recipes.generation.sampling import NOTICE, Continuation, check_prompt, load_model, printable


def generate(model: Any, tokenizer: Any, prompt: str, settings: Mapping[str, Any]) -> JsonDict:
    """Continue one prompt to the end. The arguments are those of `Continuation`.

    Returns:
        `prompt`, `text` (the continuation), `tokens`, `stopped` (whether the model ended the text itself).

    Raises:
        BadInput: the prompt is empty, is not text, or leaves no room in the context.
    """
    continuation = Continuation(model, tokenizer, prompt, settings)
    text = "".join(continuation)
    return {"prompt": prompt, "text": text, "tokens": continuation.tokens, "stopped": continuation.stopped}


def sample(folder: Path, device: str | None, prompts: Sequence[str], settings: JsonDict, out: Path | None) -> None:
    """Continue prompts and print the texts. With `out`, also write them to a file; if it has them, do nothing.

    Raises:
        BadInput: the model cannot be loaded, or a prompt cannot be continued.
    """
    for prompt in prompts:
        check_prompt(prompt)
    has_manifest = (folder / MANIFEST).is_file()
    request = {"model": manifest_sha256(folder) if has_manifest else None, "settings": settings, "prompts": prompts}
    if out and has_manifest and out.is_file():
        written = read_json(out)
        if written.get("request") == request:
            print(f"{out} is up to date")
            return

    model, tokenizer = load_model(folder, device)
    print(f"note: {NOTICE}", file=sys.stderr)
    samples = []
    for prompt in prompts:
        written = generate(model, tokenizer, prompt, settings)
        samples.append(written)
        print(f"\n[{prompt}]{printable(written['text'])}{'' if written['stopped'] else ' …'}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"request": request, "samples": samples, "notice": NOTICE})

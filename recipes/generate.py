"""Generate: continue prompts with an exported model.

python recipes/generate.py --model runs/smoke/model --prompt "Photosynthesis is" --prompt "Treatment with aspirin"
python recipes/generate.py --model runs/smoke/model --prompt "Thrombin" --temperature 0 --max-new-tokens 64
python recipes/generate.py --model runs/smoke/model --out runs/smoke/samples.json    # three biomedical prompts
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.stage import MANIFEST, BadInput, JsonDict, manifest_sha256, read_json, run, write_json

NOTICE = (
    "For research only. This model's text is often false; its licence forbids medical advice and the interpretation "
    "of medical results."
)
PROMPTS = (
    "Photosynthesis is the process by which",
    "The patient was treated with",
    "In this study, we investigated the role of thrombin in",
)


def load_model(folder: Path, device: str | None) -> tuple[Any, Any]:
    """The model of an exported folder, in evaluation mode, and its tokenizer.

    Raises:
        BadInput: the folder is not a causal language model, or its attention is scaled by layer, which transformers'
            fast attention ignores without a word (huggingface/transformers#44380).
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"--model {folder} is not a Hugging Face folder (no config.json); recipes/export.py makes one")
    if read_json(folder / "config.json").get("scale_attn_by_inverse_layer_idx"):
        raise BadInput(
            f"{folder} has attention scaled by layer, which transformers computes wrongly under its default attention; "
            f"mend it first: python recipes/export.py --checkpoint {folder} --out {folder}-fixed"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {folder} cannot be loaded: {error}") from None
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def generate(model: Any, tokenizer: Any, prompt: str, settings: JsonDict) -> JsonDict:
    """Continue one prompt.

    Args:
        model: from `load_model`.
        tokenizer: from `load_model`.
        prompt: the text to continue.
        settings: max_new_tokens, temperature (0: greedy), top_p, top_k, repetition_penalty, seed.

    Returns:
        `prompt`, `text` (the continuation), `tokens`, `stopped` (whether the model ended the text itself).

    Raises:
        BadInput: the prompt is empty or leaves no room in the context.
    """
    import torch

    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    n_prompt, n_positions = inputs["input_ids"].shape[1], model.config.n_positions
    if not n_prompt:
        raise BadInput("--prompt is empty")
    if n_prompt >= n_positions:
        raise BadInput(f"--prompt has {n_prompt} tokens; the model's context holds {n_positions}")
    torch.manual_seed(settings["seed"])
    sampling: JsonDict = {"do_sample": False}
    if settings["temperature"] > 0:
        names = ("temperature", "top_p", "top_k")
        sampling = {"do_sample": True, **{name: settings[name] for name in names}}
    with torch.no_grad():
        ids = model.generate(
            **inputs,
            **sampling,
            max_new_tokens=min(settings["max_new_tokens"], n_positions - n_prompt),
            repetition_penalty=settings["repetition_penalty"],
            use_cache=True,
        )[0, n_prompt:]
    stopped = bool(len(ids)) and int(ids[-1]) == tokenizer.eos_token_id
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return {"prompt": prompt, "text": text, "tokens": len(ids), "stopped": stopped}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, generate, print."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2] + f"\n{NOTICE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that recipes/export.py wrote")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given again (default: three)")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=50, help="0 switches it off (default: 50)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, help="also write the samples there as JSON; done once for a model")
    arguments = parser.parse_args(argv)
    for name, good in (("max_new_tokens", arguments.max_new_tokens > 0), ("top_p", 0 < arguments.top_p <= 1),
                       ("temperature", arguments.temperature >= 0), ("top_k", arguments.top_k >= 0),
                       ("repetition_penalty", arguments.repetition_penalty > 0)):  # fmt: skip
        if not good:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(arguments, name)} is out of range")
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
    settings: JsonDict = {name: getattr(arguments, name) for name in names}
    prompts = arguments.prompt or list(PROMPTS)

    has_manifest = (arguments.model / MANIFEST).is_file()
    request = {
        "model": manifest_sha256(arguments.model) if has_manifest else None,
        "settings": settings,
        "prompts": prompts,
    }
    if arguments.out and has_manifest and arguments.out.is_file():
        written = read_json(arguments.out)
        if written.get("request") == request:
            print(f"{arguments.out} is up to date")
            return

    model, tokenizer = load_model(arguments.model, arguments.device)
    print(f"note: {NOTICE}", file=sys.stderr)
    samples = []
    for prompt in prompts:
        sample = generate(model, tokenizer, prompt, settings)
        samples.append(sample)
        print(f"\n[{prompt}]{sample['text']}{'' if sample['stopped'] else ' …'}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, {"request": request, "samples": samples, "notice": NOTICE})


if __name__ == "__main__":
    run(main)

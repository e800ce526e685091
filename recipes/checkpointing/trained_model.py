"""Export: a checkpoint, or a GPT-2 folder with layer-scaled attention, into a Hugging Face folder that runs anywhere.

The scale 1/(layer + 1) is folded into the query part of c_attn and the flag switched off, which gives a plain GPT-2
that every attention backend, vLLM and llama.cpp compute right. The folder is written aside, loaded afresh with stock
transformers and compared with the trained model under eager and sdpa; it gets its name only if the logits agree.

    python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model            # a run's newest checkpoint
    python recipes/export.py --checkpoint runs/smoke/checkpoints/ep0-ba200 --out /tmp/at-200
    python recipes/export.py --checkpoint ~/BioMedLM --out ~/BioMedLM-fixed            # the published model
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.stage import (
    BadInput,
    JsonDict,
    begin,
    finished,
    library_versions,
    manifest_sha256,
    publish,
    read_json,
    run,
)
from recipes.checkpointing.checkpoints import fault, newest_intact
from recipes.config.schema import load_config
from recipes.modeling.pretrained import save_pretrained, weights_sha256
from recipes.runs import run_folder

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

FORMAT = 1
# Largest |difference| of logits as a share of the largest |logit|: rounding in fp32 (measured 1e-6 at 32 layers).
TOLERANCE = 1e-5
DTYPES = ("float32", "bfloat16", "float16")
CARD = Path(__file__).with_name("model_card.md.jinja")


@dataclass(frozen=True)
class Source:
    """What is exported: weights from a run's checkpoint, or from a Hugging Face folder (`run` is None)."""

    weights: Path
    tokenizer: Path
    run: Path | None
    sha256: str


def find_source(path: Path, tokenizer: Path | None) -> Source:
    """Resolve `--checkpoint`: a run folder, one checkpoint in it, or a Hugging Face folder.

    Raises:
        BadInput: it is none of these, or lacks a tokenizer.
    """
    if (path / "config.json").is_file():
        source = Source(path, tokenizer or path, None, weights_sha256(path))
    else:
        if (path / run_folder.RECORD).is_file():
            newest, _ = newest_intact(path / run_folder.CHECKPOINTS)
            if newest is None:
                raise BadInput(f"{path} holds a run without a complete checkpoint yet (save_interval decides when)")
            checkpoint = newest
        else:
            checkpoint = path
            if found := fault(checkpoint):
                raise BadInput(f"{found}; give a run folder, an intact checkpoint in one, or a model folder")
        folder = checkpoint.parent.parent
        if not (folder / run_folder.RECORD).is_file():
            raise BadInput(f"{checkpoint} does not lie in a run folder (no {folder / run_folder.RECORD})")
        source = Source(checkpoint, tokenizer or folder / run_folder.TOKENIZER, folder, manifest_sha256(checkpoint))
    if not (source.tokenizer / "tokenizer_config.json").is_file() and not (source.tokenizer / "vocab.json").is_file():
        raise BadInput(f"{source.tokenizer} holds no tokenizer; give one with --tokenizer")
    return source


def load_trained(source: Source) -> GPT2LMHeadModel:
    """The trained model in fp32, as transformers' eager path computes it: the reference of the export.

    Raises:
        BadInput: not a GPT-2, or unsafe or unreadable weights.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.modeling_utils import no_init_weights

    from recipes.checkpointing.safe_loading import load_model_weights
    from recipes.modeling.model import gpt2_config

    if source.run is None:
        config = read_json(source.weights / "config.json")
        if config.get("model_type") != "gpt2":
            raise BadInput(f"{source.weights} is a {config.get('model_type')!r} model; only gpt2 is exported")
        try:
            return GPT2LMHeadModel.from_pretrained(
                source.weights, attn_implementation="eager", torch_dtype=torch.float32, local_files_only=True
            ).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(f"{source.weights} cannot be loaded: {error}") from None
    cfg = load_config(source.run / run_folder.CONFIG)
    settings = gpt2_config(cfg.model, eos_token_id=cfg.model.vocab_size - 1).to_dict()
    with no_init_weights():  # they are read in a moment
        model = GPT2LMHeadModel._from_config(GPT2Config(**settings), attn_implementation="eager")
    model.tie_weights()
    load_model_weights(source.weights, model)
    return model.eval()


def fold_layer_scaling(model: GPT2LMHeadModel) -> None:
    """Fold 1/(layer + 1) into the query columns of c_attn, in place and once: the flag is switched off."""
    import torch

    if not model.config.scale_attn_by_inverse_layer_idx:
        return
    blocks: Any = model.transformer.h
    with torch.no_grad():
        for layer, block in enumerate(blocks):
            attention = block.attn
            n = attention.split_size  # Conv1D's weight is (in, 3 · n_embd): queries are its first n_embd columns
            attention.c_attn.weight[:, :n] /= layer + 1
            attention.c_attn.bias[:n] /= layer + 1
            attention.scale_attn_by_inverse_layer_idx = False
    model.config.scale_attn_by_inverse_layer_idx = False


def logits(model: GPT2LMHeadModel) -> torch.Tensor:
    """fp32 logits of the gate's fixed tokens, shape (2, T, vocab_size), and of the same tokens with right padding."""
    import torch

    from recipes.modeling.attention import gate_tokens

    tokens = gate_tokens(model.config)
    mask = torch.ones_like(tokens)
    mask[1, tokens.shape[1] // 2 :] = 0
    with torch.no_grad():
        plain = model(input_ids=tokens).logits.float()
        padded = model(input_ids=tokens, attention_mask=mask).logits.float()
    return torch.cat([plain, padded[mask.bool()][None].expand(2, -1, -1)], dim=1)


def compare_with_stock(folder: Path, expected: torch.Tensor, tolerance: float) -> dict[str, float]:
    """Load the folder as a user would and compare its logits under both attention backends.

    Args:
        folder: the exported folder.
        expected: the trained model's `logits`.
        tolerance: largest |difference| allowed, as a share of the largest |logit|.

    Raises:
        RuntimeError: the folder does not compute the trained model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    differences: dict[str, float] = {}
    for implementation in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=implementation, torch_dtype=torch.float32, local_files_only=True
        ).eval()
        share = ((logits(model) - expected).abs().max() / expected.abs().max()).item()
        del model  # before the next one is loaded
        differences[implementation] = share
        if not share <= tolerance:
            raise RuntimeError(
                f"the exported model does not compute the trained one: under {implementation} attention its logits "
                f"differ by {share:.1e} of the largest, more than {tolerance:.0e}; no folder was written"
            )
    return differences


def write_model_card(
    folder: Path, source: Source, differences: dict[str, float], dtype: str, n_parameters: int
) -> None:
    """README.md of the model: the run's facts, intended use and limits, licence."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    facts: JsonDict = {"run": None}
    if source.run:
        record = read_json(source.run / run_folder.RECORD)
        cfg = load_config(source.run / run_folder.CONFIG)
        facts = {"run": record, "cfg": cfg, "evaluation": last_evaluation(source.run / run_folder.METRICS)}
    environment = Environment(loader=FileSystemLoader(CARD.parent), undefined=StrictUndefined, trim_blocks=True)
    card = environment.get_template(CARD.name).render(
        checkpoint=source.weights.name, differences=differences, dtype=dtype, n_parameters=n_parameters, **facts
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def last_evaluation(metrics: Path) -> JsonDict | None:
    """The last evaluation's line of a metrics.jsonl, None if there was none."""
    import json

    found = None
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            if "metrics/eval/BitsPerByte" in line:
                found = json.loads(line)
    return found


def export(checkpoint: Path, out: Path, tokenizer: Path | None = None, dtype: str = "float32") -> JsonDict:
    """Write the Hugging Face folder `out`; its manifest. Nothing is done if it is there already.

    Raises:
        BadInput: the source or the output folder is not usable.
        RuntimeError: the exported model does not compute the trained one.
    """
    source = find_source(checkpoint, tokenizer)
    request: JsonDict = {
        "stage": "export",
        "format": FORMAT,
        "arguments": {"dtype": dtype},
        "inputs": {"weights": source.sha256},
    }
    if manifest := finished(out, request):
        print(f"{out} is up to date")
        return manifest

    import torch
    from transformers import AutoTokenizer, GenerationConfig

    model = load_trained(source)
    text_tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, local_files_only=True)
    if len(text_tokenizer) != model.config.vocab_size:
        raise BadInput(
            f"{source.tokenizer} has {len(text_tokenizer)} entries, the model {model.config.vocab_size}; "
            "give the model's own with --tokenizer"
        )
    eos = text_tokenizer.eos_token_id if text_tokenizer.eos_token_id is not None else model.config.eos_token_id
    expected = logits(model)
    fold_layer_scaling(model)
    model.config.use_cache = True
    model.config.bos_token_id = model.config.eos_token_id = model.config.pad_token_id = eos
    model.generation_config = GenerationConfig(bos_token_id=eos, eos_token_id=eos, pad_token_id=eos)
    model.config.torch_dtype = getattr(torch, dtype)
    n_parameters = model.num_parameters()
    partial = begin(out)
    try:
        save_pretrained(model.to(getattr(torch, dtype)), partial)
        text_tokenizer.save_pretrained(partial)
        del model  # never two models in memory
        # Rounded weights differ by their rounding: 2^-8 and 2^-11 a weight, measured 2e-2 and 3e-3 on logits.
        tolerance = {"float32": TOLERANCE, "bfloat16": 1e-1, "float16": 2e-2}[dtype]
        differences = compare_with_stock(partial, expected, tolerance)
        write_model_card(partial, source, differences, dtype, n_parameters)
        results = {"logit_difference": differences, "versions": library_versions("torch", "transformers")}
        return publish(partial, out, request, results)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint, or GPT-2 model folder")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder, if it is not beside the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the saved weights (default: float32)")
    arguments: Any = parser.parse_args(argv)
    try:
        manifest = export(arguments.checkpoint, arguments.out, arguments.tokenizer, arguments.dtype)
    except RuntimeError as error:
        raise BadInput(str(error)) from None
    shares = ", ".join(f"{name} {share:.1e}" for name, share in manifest["logit_difference"].items())
    print(f"{arguments.out}: logits differ from the trained model's by {shares} of the largest")


if __name__ == "__main__":
    run(main)

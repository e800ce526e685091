"""Export: a checkpoint, or a GPT-2 folder with layer-scaled attention, into a Hugging Face folder that runs anywhere.

The scale 1/(layer + 1) is folded into the query part of c_attn and the flag switched off, which gives a plain GPT-2
that every attention backend, vLLM and llama.cpp compute right. The folder is written aside, loaded afresh with stock
transformers and compared with the trained model under eager and sdpa; it gets its name only if the logits agree.

    python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model            # a run's newest checkpoint
    python recipes/export.py --checkpoint runs/smoke/checkpoints/ep0-ba200 --out /tmp/at-200
    python recipes/export.py --checkpoint ~/BioMedLM --out ~/BioMedLM-fixed            # the published model
    python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model --scores runs/smoke/scores # on its card

Its README.md is a card that the Hugging Face hub takes. Scores come onto it from evaluate.py's folder, grams of CO2
from what you state of the devices and the grid. Exported again with more of these, the folder gets another card.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.command_line import Allowed, folder_to_make, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.files import JsonDict
from data_prep.common.last_line import say_made
from data_prep.common.limits import REPOSITORY, Real
from data_prep.common.lock import hold
from data_prep.common.manifest import begin, finished, library_versions, publish
from recipes.checkpointing.card_request import card_request, copy_licenses, refuse_additions
from recipes.checkpointing.checkpoint import saved_at
from recipes.checkpointing.trained_model import find_source, load_tokenizer, load_trained
from recipes.evaluation.results import read_scores
from recipes.modeling.model_folder import EXPORT, save_pretrained
from recipes.modeling.release import TOLERANCE, compare_with_stock, fold_layer_scaling, logits, make_ready
from recipes.modeling.tokenizer_folder import save_tokenizer, tokenizer_sha256
from recipes.modeling.weights import weights_sha256
from recipes.runs.model_card import NOTHING_STATED, Stated, write_model_card

FORMAT = 2
DTYPES = ("float32", "bfloat16", "float16")
WATTS, GRAMS = Real(0, 1e5, above=True), Real(0, 1e4)


def export(
    checkpoint: Path,
    out: Path,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    stated: Stated = NOTHING_STATED,
    scores: Path | None = None,
    license_file: Path | None = None,
) -> JsonDict:
    """Write the Hugging Face folder `out`; its manifest. Nothing is done if it is there already.

    Args:
        checkpoint: run folder, checkpoint in one, or GPT-2 folder.
        out: the folder.
        tokenizer: its folder, if it is not beside the weights.
        dtype: dtype of the saved weights.
        stated: what the card says beside the record.
        scores: a folder of evaluate.py, of these weights.
        license_file: the licence's text, which is copied.

    Raises:
        BadInput: the source, the output folder or what is to be on the card is not usable.
        RuntimeError: the exported model does not compute the trained one.
    """
    source = find_source(checkpoint, tokenizer)
    card = card_request(source, stated, scores, license_file)
    request: JsonDict = {
        "stage": EXPORT,
        "format": FORMAT,
        "arguments": {"dtype": dtype},
        "inputs": {"weights": source.sha256, "tokenizer": tokenizer_sha256(source.tokenizer)},
    }
    if manifest := finished(out, request):
        if not card or manifest.get("card") == card:
            print(f"{out} is up to date")
            return manifest
        refuse_additions(out, manifest)

    import torch

    from recipes.modeling.transformers_releases import DTYPE

    model, text_tokenizer = load_trained(source), load_tokenizer(source)
    if len(text_tokenizer) != model.config.vocab_size:
        raise BadInput(
            f"{source.tokenizer} has {len(text_tokenizer)} entries, the model {model.config.vocab_size}; "
            "give the model's own with --tokenizer"
        )
    expected = logits(model)
    fold_layer_scaling(model)
    make_ready(model, text_tokenizer.eos_token_id, text_tokenizer.eos_token_id)
    setattr(model.config, DTYPE, getattr(torch, dtype))
    facts: JsonDict = {
        "dtype": dtype, "n_parameters": model.num_parameters(), "n_positions": model.config.n_positions,
        "tied": model.config.tie_word_embeddings,
    }  # fmt: skip
    partial = begin(out)
    try:
        save_pretrained(model.to(getattr(torch, dtype)), partial)
        save_tokenizer(text_tokenizer, partial, facts["n_positions"])
        del model  # never two models in memory
        # Rounded weights differ by their rounding: 2^-8 and 2^-11 a weight, measured 2e-2 and 3e-3 on logits.
        tolerance = {"float32": TOLERANCE, "bfloat16": 1e-1, "float16": 2e-2}[dtype]
        differences = compare_with_stock(partial, expected, tolerance)
        batch = saved_at(source.weights)["batch"] if source.run else 0
        of_scores = read_scores(scores, weights_sha256(partial)) if scores else ()
        write_model_card(partial, source.weights, source.run, batch, differences, facts, stated, of_scores)
        copy_licenses(source.weights if source.run is None else None, license_file, partial)
        results = {"logit_difference": differences, "versions": library_versions("torch", "transformers")}
        if manifest:
            shutil.rmtree(out)  # the same weights with another card
        return publish(partial, out, request | ({"card": card} if card else {}), results)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint, or GPT-2 model folder")
    parser.add_argument("--out", type=folder_to_make, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder, if it is not beside the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the saved weights (default: float32)")
    parser.add_argument("--scores", type=Path, help="folder of evaluate.py, of these weights: onto the card")
    parser.add_argument("--license-file", type=Path, help="the licence's text, to be copied into the folder as LICENSE")
    parser.add_argument("--base-model", type=Allowed(REPOSITORY), help="what it began with, as OWNER/NAME on the hub")
    parser.add_argument(
        "--device-watts", type=Allowed(WATTS), help="that a device took with its share of the machine, for grams of CO2"
    )
    parser.add_argument("--grid-g-per-kwh", type=Allowed(GRAMS), help="g of CO2-equivalent a kWh of the grid, for them")
    arguments: Any = parser.parse_args(argv)
    stated = Stated(arguments.base_model, arguments.device_watts, arguments.grid_g_per_kwh)
    try:
        with hold(arguments.out):
            manifest = export(
                arguments.checkpoint, arguments.out, arguments.tokenizer, arguments.dtype, stated, arguments.scores,
                arguments.license_file,
            )  # fmt: skip
    except RuntimeError as error:
        raise BadInput(str(error)) from None
    shares = ", ".join(f"{name} {share:.1e}" for name, share in manifest["logit_difference"].items())
    same = f"logits differ from the trained model's by {shares} of the largest"
    say_made(arguments.out, same, "python", "recipes/generate.py", "--model", arguments.out, "--interactive")


if __name__ == "__main__":
    run(main)

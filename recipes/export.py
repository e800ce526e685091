"""Export: turn a checkpoint, or a GPT-2 folder with layer-scaled attention, into a plain Hugging Face folder.

The command multiplies the query part of c_attn by the scale 1/(layer + 1) and switches the flag off. The result is a
plain GPT-2, which every attention backend, vLLM and llama.cpp compute correctly. The folder is written under a
temporary name, loaded with unmodified transformers and compared with the trained model, with eager and sdpa attention.
It gets its final name only if the logits agree.

    python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model            # a run's newest checkpoint
    python recipes/export.py --checkpoint runs/smoke/checkpoints/ep0-ba200 --out /tmp/at-200
    python recipes/export.py --checkpoint ~/BioMedLM --out ~/BioMedLM-fixed            # the published model
    python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model --scores runs/smoke/scores # on its card

The folder's README.md is a model card that the Hugging Face hub accepts. The card shows scores if you pass the folder
of evaluate.py, and grams of CO2 if you state the power of a device and the carbon intensity of the grid. If you export
again with more of these options, only the card is replaced.
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
    """Write the Hugging Face folder `out` and return its manifest. If the folder is up to date, nothing is written.

    Args:
        checkpoint: run folder, checkpoint in a run folder, or GPT-2 folder.
        out: folder to write.
        tokenizer: tokenizer folder, if the tokenizer is not beside the weights.
        dtype: dtype of the saved weights.
        stated: facts for the card that the run's record does not hold.
        scores: folder of evaluate.py with scores of these weights.
        license_file: file with the licence's text, to be copied into the folder.

    Raises:
        BadInput: the source, the output folder or an addition to the card cannot be used.
        RuntimeError: the exported model computes other logits than the trained model.
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
            f"{source.tokenizer} has {len(text_tokenizer)} entries, but the model has {model.config.vocab_size}; "
            "give the model's own tokenizer with --tokenizer"
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
        del model  # so that memory never holds two models
        # Rounding changes a weight by up to 2^-8 (bfloat16) or 2^-11 (float16): measured 2e-2 and 3e-3 on logits.
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
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the saved weights (default: float32)"
    )
    parser.add_argument("--scores", type=Path, help="folder of evaluate.py with scores of these weights, for the card")
    parser.add_argument("--license-file", type=Path, help="the licence's text, to be copied into the folder as LICENSE")
    parser.add_argument(
        "--base-model", type=Allowed(REPOSITORY), help="OWNER/NAME on the hub of the model that training began with"
    )
    parser.add_argument(
        "--device-watts",
        type=Allowed(WATTS),
        help="watts that one device and its share of the machine took, for the grams of CO2 on the card",
    )
    parser.add_argument(
        "--grid-g-per-kwh",
        type=Allowed(GRAMS),
        help="grams of CO2-equivalent for each kWh of your grid, for the grams of CO2 on the card",
    )
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

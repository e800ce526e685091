"""Export the tuned model of a run to a folder: merge LoRA, fold the attention scale, and compare the answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.files import JsonDict
from data_prep.common.lock import hold
from data_prep.common.manifest import begin, library_versions, manifest_sha256, publish
from data_prep.tasks.task_set import Splits
from recipes.checkpointing.trained_model import Source
from recipes.config.schema import FinetuneConfig
from recipes.finetuning.kind import Encoder
from recipes.finetuning.model_card import write_model_card
from recipes.finetuning.names import MODEL
from recipes.finetuning.task_head import TaskHead
from recipes.modeling.model_folder import FINETUNE
from recipes.runs.names import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from recipes.finetuning.heads import FineTuned

FORMAT = 1
# Largest |difference| of scores, as a share of the largest |score|: fp32 rounding after folding and merging.
TOLERANCE = 1e-4


def build_model(cfg: FinetuneConfig, source: Source, head: TaskHead, n_entries: int) -> tuple[FineTuned, Any]:
    """Build the base model with the task's head. New weights are drawn from the seed.

    Returns:
        The model, and the object that can merge its LoRA; None without LoRA.

    Raises:
        BadInput: the base model cannot be loaded.
    """
    import torch

    from recipes.checkpointing.trained_model import load_trained
    from recipes.finetuning.heads import FineTuned, add_lora, resize

    torch.manual_seed(cfg.seed)
    model: GPT2LMHeadModel = load_trained(source)
    model.config._attn_implementation = "sdpa"
    model.config.use_cache = False
    # With an id, each forward pass would search for padding to warn about it, but causal attention needs no mask.
    model.config.pad_token_id = None
    resize(model, n_entries)
    lora = add_lora(model, cfg.lora) if cfg.lora else None
    return FineTuned(model, head).train(), lora


def export(cfg: FinetuneConfig, source: Source, head: TaskHead, encoder: Encoder, parts: Splits) -> None:
    """Export the run's newest checkpoint to `model/`: merge LoRA, fold the attention scale, and compare the answers.

    Raises:
        RuntimeError: the model in the folder gives other answers than the trained model.
    """
    import torch

    from recipes.checkpointing.checkpoint import newest_intact, saved_at
    from recipes.checkpointing.safe_loading import load_model_weights
    from recipes.finetuning import heads
    from recipes.modeling.release import fold_layer_scaling, make_ready

    folder = Path(cfg.run_dir)
    checkpoint, _ = newest_intact(folder / CHECKPOINTS)
    assert checkpoint is not None, "training has just written it"
    trained, lora = build_model(cfg, source, head, len(encoder.tokenizer))
    load_model_weights(checkpoint, trained, prefix="")
    trained.eval()
    batch = encoder.collate([(n, encoder(example)) for n, example in enumerate(parts["dev"][:4])])

    @torch.no_grad()
    def answers(model: FineTuned) -> torch.Tensor:
        return model.answers(batch).nan_to_num(neginf=0.0)

    expected = answers(trained)
    if lora is not None:
        lora.merge_and_unload()
    fold_layer_scaling(trained.model)
    make_ready(trained.model, encoder.tokenizer.eos_token_id, encoder.pad_id)
    facts: JsonDict = {
        "dtype": "float32", "n_parameters": trained.model.num_parameters(),
        "n_positions": trained.model.config.n_positions,
    }  # fmt: skip
    with hold(folder / MODEL, "give this run its own name (run_name=…)"):
        partial_folder = begin(folder / MODEL)
        heads.save(trained, encoder.tokenizer, partial_folder)
        del trained, lora  # `lora` refers to the model, too; memory must never hold two models
        loaded, _ = heads.load(partial_folder)
        share = ((answers(loaded) - expected).abs().max() / expected.abs().max()).item()
        if not share <= TOLERANCE:
            raise RuntimeError(
                f"the exported model does not compute the trained model: its answers differ by {share:.1e}"
            )
        facts |= {"difference": share, "batch": saved_at(checkpoint)["batch"]}
        write_model_card(partial_folder, cfg, source, head, parts, facts)
        request: JsonDict = {
            "stage": FINETUNE, "format": FORMAT, "arguments": {"task": head.task, "kind": head.kind},
            "inputs": {"model": source.sha256, "checkpoint": manifest_sha256(checkpoint)},
        }  # fmt: skip
        results = {"difference": share, "versions": library_versions("torch", "transformers")}
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        publish(partial_folder, folder / MODEL, request, results)

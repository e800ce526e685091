"""Compute the answers of a tuned model, and its scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.files import JsonDict, read_json, write_json, write_text
from data_prep.tasks.task_set import Examples, Splits
from recipes.config.schema import FinetuneConfig
from recipes.finetuning.data import say_cut
from recipes.finetuning.kind import Encoder
from recipes.finetuning.names import MODEL, PREDICTIONS, SCORES
from recipes.scoring.bootstrap import bootstrap, measures
from recipes.scoring.results_table import percent

if TYPE_CHECKING:
    from recipes.finetuning.heads import FineTuned


def score(cfg: FinetuneConfig, parts: Splits, splits: Sequence[str]) -> JsonDict:
    """Predict with the exported model, and write predictions-SPLIT.jsonl and scores.json into the run folder.

    Earlier scores of other splits are kept, unless dev is scored: then the model has just been exported, or the
    settings of generation have changed.
    """
    import torch

    from recipes.finetuning import heads

    folder = Path(cfg.run_dir)
    device = "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"
    model, tokenizer = heads.load(folder / MODEL, device)
    before: JsonDict = {} if "dev" in splits else read_json(folder / SCORES)
    scores, cut = before.get("scores", {}), before.get("cut", {})
    for split in splits:
        records = predict(model, tokenizer, parts[split], cfg)
        write_text(folder / PREDICTIONS.format(split), "".join(json.dumps(record) + "\n" for record in records))
        cut[split] = sum(record["cut"] for record in records)
        say_cut(split, cut[split], len(records), model.kind)
        measured = {metric: bootstrap(values, weights) for metric, (values, weights) in measures(records).items()}
        scores[split] = {metric: asdict(value) for metric, value in measured.items()}
        for metric, value in measured.items():
            print(f"{split}: {metric} {percent(value)}", flush=True)
    write_json(folder / SCORES, {"task": cfg.task, "seed": cfg.seed, "scores": scores, "cut": cut})
    current = {PREDICTIONS.format(split) for split in scores}
    for path in folder.glob(PREDICTIONS.format("*")):
        if path.name not in current:
            path.unlink()
    return scores


def predict(model: FineTuned, tokenizer: Any, examples: Examples, cfg: FinetuneConfig) -> list[JsonDict]:
    """Return the answers of a fine-tuned model to examples.

    Returns:
        For each example its `id`; `cut`, whether it was too long; and the values that the kind's `predict` returns.
    """
    head = model.task_head
    encoder = Encoder(tokenizer, model.kind, head.seq_len, head.labels)
    return model.kind.predict(model.model, model.head, encoder, examples, cfg)

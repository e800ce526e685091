"""What a tuned model answers, and its scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.files import JsonDict, read_json, write_json, write_text
from data_prep.tasks.task_set import Examples, Pair, Question, Sentence, Splits
from recipes.config.schema import FinetuneConfig
from recipes.finetuning.data import say_cut
from recipes.finetuning.names import MODEL, PREDICTIONS, SCORES
from recipes.scoring.bootstrap import bootstrap, measures
from recipes.scoring.results_table import percent

if TYPE_CHECKING:
    from recipes.finetuning.encoding import Encoder
    from recipes.finetuning.heads import FineTuned


def score(cfg: FinetuneConfig, parts: Splits, splits: Sequence[str]) -> JsonDict:
    """Predict with the exported model; predictions-SPLIT.jsonl and scores.json in the run folder.

    What else was scored before stays, but not when dev is: then the model was exported a moment ago, or it writes in
    another way.
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
        say_cut(split, cut[split], len(records), model.task_head.kind)
        found = {metric: bootstrap(values, weights) for metric, (values, weights) in measures(records).items()}
        scores[split] = {metric: asdict(value) for metric, value in found.items()}
        for metric, value in found.items():
            print(f"{split}: {metric} {percent(value)}", flush=True)
    write_json(folder / SCORES, {"task": cfg.task, "seed": cfg.seed, "scores": scores, "cut": cut})
    current = {PREDICTIONS.format(split) for split in scores}
    for path in folder.glob(PREDICTIONS.format("*")):
        if path.name not in current:
            path.unlink()
    return scores


def predict(model: FineTuned, tokenizer: Any, examples: Examples, cfg: FinetuneConfig) -> list[JsonDict]:
    """What a fine-tuned model answers to each example.

    Returns:
        For each `id`, and `cut`, whether it was too long to be read; of questions `answer`, `scores` and `acc`; of
        pairs `text` and ROUGE-1, -2 and -L (F1); of sentences `words`, `tags` as the model gives them, `right`, and
        `entities`: of each type how many were found exactly, given, and there.
    """
    import torch
    from tqdm import tqdm

    from recipes.finetuning.encoding import Encoder, collate

    head = model.task_head
    encoder = Encoder(tokenizer, head.kind, head.seq_len, head.labels)
    device = next(model.parameters()).device
    if head.kind == "pairs":
        return write_targets(model, encoder, [e for e in examples if isinstance(e, Pair)], cfg)
    records = []
    bar = tqdm(total=len(examples), desc="predict", unit=" examples", disable=None)
    for begin in range(0, len(examples), cfg.device_eval_batch_size):
        part = examples[begin : begin + cfg.device_eval_batch_size]
        encoded = [encoder(example) for example in part]
        batch = collate(list(enumerate(encoded)), encoder.pad_id)
        with torch.no_grad():
            found = model.scores({name: values.to(device) for name, values in batch.items()})
        for example, one, scores, labels in zip(part, encoded, found.cpu(), batch["labels"], strict=True):
            told: JsonDict = {"id": example.id, "cut": one.truncated}
            if isinstance(example, Sentence):
                given, right = head.tagged(scores, labels)
                told |= {"words": example.words, "tags": given, "right": right}
                records.append({**told, "entities": head.entities(right, given)})
                continue
            assert isinstance(example, Question)
            row = scores[: len(example.options)].tolist()
            right = float(row.index(max(row)) == example.answer)
            records.append({**told, "answer": example.answer, "scores": row, "acc": right})
        bar.update(len(part))
    bar.close()
    return records


def write_targets(model: FineTuned, encoder: Encoder, pairs: Sequence[Pair], cfg: FinetuneConfig) -> list[JsonDict]:
    """What a model writes from each source, by beam search or sampling, and its ROUGE (Lin 2004) with stemming."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer
    from tqdm import tqdm

    settings, tokenizer = cfg.generation, encoder.tokenizer
    decoding: JsonDict = {"do_sample": False, "num_beams": settings.num_beams}
    if settings.num_beams > 1:
        decoding["length_penalty"] = settings.length_penalty
    if settings.temperature > 0:
        decoding = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    n_new = min(settings.max_new_tokens, model.model.config.n_positions // 2)
    room = min(encoder.seq_len, model.model.config.n_positions - n_new) - 1
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    torch.manual_seed(cfg.seed)
    records = []
    for pair in tqdm(pairs, desc="write", unit=" texts", disable=None):
        source, cut = encoder.source(pair, room)
        ids = torch.tensor([source], device=next(model.parameters()).device)
        with torch.no_grad():
            generated: Any = model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=n_new,
                no_repeat_ngram_size=settings.no_repeat_ngram_size,
                pad_token_id=encoder.pad_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
                **decoding,
            )
        written = generated[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        found = {name: value.fmeasure for name, value in rouge.score(pair.target, text).items()}
        ended = tokenizer.eos_token_id in written.tolist()
        records.append({"id": pair.id, "cut": cut, "text": text, "ended": ended, **found})
    return records

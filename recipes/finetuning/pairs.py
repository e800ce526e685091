"""Pairs of a source text and a target text: `source <|startoftext|> target <|endoftext|>`.

This is the format of BioMedLM's published numbers (stanford-crfm/BioMedLM, finetune/textgen). There is no head: the
language model itself is tuned, with the loss of the target tokens only, and writes the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.common.files import JsonDict
from data_prep.tasks.task_set import Example, Examples, Pair
from recipes.config.schema import FinetuneConfig
from recipes.finetuning.kind import Encoded, Encoder, Kind

if TYPE_CHECKING:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from recipes.finetuning.kind import Batch

START = "<|startoftext|>"
CARD_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Aspirin<|startoftext|>", return_tensors="pt")  # the source, then the token that starts a target
written = model.generate(**inputs, max_length={{ max_length }})[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(written, skip_special_tokens=True))
"""


class Pairs(Kind):
    """Pairs of source and target. `label` is the position of the target's first token."""

    added_tokens = (START,)
    loss_unit = "nats/token"
    metric = "rougeL"
    dev_metric = "TargetLoss"
    target_start = START
    pipeline_tag = "text-generation"
    does = "writes a target after a source"
    card_code = CARD_CODE

    def encode(self, example: Example, encoder: Encoder) -> Encoded:
        """Make one sequence. A long source loses its end.

        Raises:
            BadInput: the target does not fit.
        """
        assert isinstance(example, Pair)
        target = [*encoder.ids(example.target), encoder.tokenizer.eos_token_id]
        room = encoder.room(len(target) + 1, "target", example.where)
        source, cut = self.source(example, encoder, room)
        return Encoded(((*source, *target),), len(source), cut)

    def source(self, pair: Pair, encoder: Encoder, room: int) -> tuple[tuple[int, ...], bool]:
        """Encode a source, or its beginning if it is too long. Also return whether it is too long."""
        (start,) = encoder.added
        ids = encoder.ids(pair.source)
        return (*ids[:room], start), len(ids) > room

    def new_head(self, config: GPT2Config, labels: Sequence[str]) -> None:
        """There is no head."""
        return None

    def answers(self, gpt2: GPT2LMHeadModel, head: Any, batch: Batch) -> torch.Tensor:
        """(B,): mean cross entropy of each target, in nats per token, end-of-text included."""
        import torch
        import torch.nn.functional as F

        input_ids, lengths = batch["input_ids"][:, 0], batch["lengths"][:, 0]
        logits = gpt2(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        position = torch.arange(1, input_ids.shape[1], device=input_ids.device)
        wanted = (position >= batch["labels"][:, None]) & (position < lengths[:, None])
        return (nats.view_as(wanted) * wanted).sum(1) / wanted.sum(1)

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean loss over targets."""
        return answers.mean()

    def judge(self, answers: torch.Tensor, batch: Batch, labels: Sequence[str]) -> torch.Tensor:
        """(B,): the loss of each target."""
        return answers

    def predict(
        self, gpt2: GPT2LMHeadModel, head: Any, encoder: Encoder, examples: Examples, cfg: FinetuneConfig
    ) -> list[JsonDict]:
        """Write a target for each source, by beam search or sampling, and score it by ROUGE (Lin 2004) with stemming.

        Returns:
            Values as in `Kind.predict`; also `text`, `ended` (whether the model ended the text), and the F1 of ROUGE-1,
            ROUGE-2 and ROUGE-L.
        """
        import torch
        from rouge_score.rouge_scorer import RougeScorer
        from tqdm import tqdm

        settings, tokenizer = cfg.generation, encoder.tokenizer
        decoding: JsonDict = {"do_sample": False, "num_beams": settings.num_beams}
        if settings.num_beams > 1:
            decoding["length_penalty"] = settings.length_penalty
        if settings.temperature > 0:
            decoding = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
        n_new = min(settings.max_new_tokens, gpt2.config.n_positions // 2)
        room = min(encoder.seq_len, gpt2.config.n_positions - n_new) - 1
        rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        torch.manual_seed(cfg.seed)
        records = []
        for pair in tqdm(examples, desc="write", unit=" texts", disable=None):
            assert isinstance(pair, Pair)
            source, cut = self.source(pair, encoder, room)
            ids = torch.tensor([source], device=gpt2.device)
            with torch.no_grad():
                generated: Any = gpt2.generate(
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
            scores = {name: value.fmeasure for name, value in rouge.score(pair.target, text).items()}
            ended = tokenizer.eos_token_id in written.tolist()
            records.append({"id": pair.id, "cut": cut, "text": text, "ended": ended, **scores})
        return records

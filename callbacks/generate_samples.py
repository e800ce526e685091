"""Write texts from the same prompts after each evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.core import get_precision_context
from composer.utils import dist

TEMPERATURE = 0.8


class GenerateSamples(Callback):
    """Appends texts to a file after each evaluation, one JSON line for each prompt: batch, tokens, prompt, text.

    Rank 0 draws the tokens from the same seed each time. It uses a generator of its own, so this callback does not
    change dropout or losses. All ranks compute the same number of steps, because a sharded model needs all of them.

    Args:
        path: file to append to.
        tokenizer: tokenizer folder.
        prompts: texts to continue.
        max_new_tokens: largest number of tokens to write; a text also ends at an end-of-text token.
        n_positions: largest number of tokens of prompt and text together.
        seed: seed of the draws.
    """

    def __init__(
        self, path: Path, tokenizer: Path, prompts: Sequence[str], max_new_tokens: int, n_positions: int, seed: int
    ) -> None:
        from tokenizers import Tokenizer

        self.path, self.prompts, self.seed = path, list(prompts), seed
        self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        # One by one: for a batch, tokenizers would use threads, and later warn in each forked loader process.
        self.ids = [self.tokenizer.encode(prompt).ids[: n_positions - 1] for prompt in self.prompts]
        self.steps = min(max_new_tokens, n_positions - max(map(len, self.ids)))

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the texts after the last split was evaluated."""
        if state.dataloader_label != state.evaluators[-1].label:
            return
        written = self._write(state)
        if dist.get_global_rank() != 0:
            return
        batch, tokens = int(state.timestamp.batch), int(state.timestamp.token)
        texts = [self._text(ids, len(prompt)) for ids, prompt in zip(written, self.ids, strict=True)]
        with self.path.open("a", encoding="utf-8") as file:
            for prompt, text in zip(self.prompts, texts, strict=True):
                file.write(json.dumps({"batch": batch, "tokens": tokens, "prompt": prompt, "text": text}) + "\n")
        rows = [[prompt, text] for prompt, text in zip(self.prompts, texts, strict=True)]
        logger.log_table(["prompt", "text"], rows, "texts", batch)

    def _text(self, ids: list[int], start: int) -> str:
        end_of_text = set(self.tokenizer.get_added_tokens_decoder())
        ends = [n for n, id in enumerate(ids) if n >= start and id in end_of_text]
        return self.tokenizer.decode(ids[start : ends[0] if ends else None])

    @torch.no_grad()
    def _write(self, state: State) -> list[list[int]]:
        """Return the token ids of each prompt and its continuation of `steps` tokens."""
        composer_model: Any = state.model.module if hasattr(state.model, "module") else state.model  # DDP wraps it
        model, training = composer_model.model, composer_model.training
        lengths = torch.tensor([len(ids) for ids in self.ids])
        rows = torch.zeros(len(self.ids), int(lengths.max()) + self.steps, dtype=torch.long)
        for row, ids in zip(rows, self.ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        generator = torch.Generator().manual_seed(self.seed)
        model.eval()
        try:
            for step in range(self.steps):
                # Attention is causal: a row's last real token does not see the padding after it.
                end = int(lengths.max()) + step
                with get_precision_context(state.precision):
                    input_ids = state.device.tensor_to_device(rows[:, :end].contiguous())
                    logits = model(input_ids=input_ids, use_cache=False).logits
                last = logits[torch.arange(len(rows)), (lengths + step - 1).to(logits.device)].float().cpu()
                drawn = torch.multinomial((last / TEMPERATURE).softmax(-1), 1, generator=generator).squeeze(1)
                drawn = state.device.tensor_to_device(drawn)
                dist.broadcast(drawn, src=0)
                rows[torch.arange(len(rows)), lengths + step] = drawn.cpu()
        finally:
            model.train(training)
        return [row[: n + self.steps].tolist() for row, n in zip(rows, lengths.tolist(), strict=True)]

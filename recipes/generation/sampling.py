"""Continue a prompt with a model, piece by piece, and the settings of sampling; used by all ways to generate text.

A model that was fine-tuned on pairs reads the prompt as a source and writes its target.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.limits import Real, Whole
from recipes.config.schema import NEW_TOKENS, TEMPERATURE
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import read_task
from recipes.modeling.model_folder import check_folder, find_device, move, open_folder

NOTICE = (
    "For research only. This model's text is often false; its licence forbids medical advice and the interpretation "
    "of medical results."
)
PROMPTS = (
    "Photosynthesis is the process by which",
    "The patient was treated with",
    "In this study, we investigated the role of thrombin in",
)
CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Setting:
    """A setting of sampling: a number with its default and allowed values."""

    name: str
    default: float
    rule: Whole | Real
    help: str

    @property
    def words(self) -> str:
        """The name as users type it, with hyphens."""
        return self.name.replace("_", "-")

    def read(self, value: object) -> float:
        """Convert a value, text or number, to an allowed number.

        Raises:
            BadInput: the value is not a number, or the rule does not allow it.
        """
        try:
            number = self.rule.read(str(value))
        except ValueError:
            raise self.rule.refuse(self.words, value) from None
        self.rule.check(self.words, number)
        return number


SETTINGS = (
    Setting("max_new_tokens", 100, NEW_TOKENS, "largest number of tokens to write"),
    Setting("temperature", 0.8, TEMPERATURE, "higher is more random; 0 always takes the likeliest token"),
    Setting("top_p", 0.95, Real(0.01, 1), "draw only from the likeliest tokens with this share of the probability"),
    Setting("top_k", 50, Whole(0, 100_000), "draw only from this number of likeliest tokens; 0: from all"),
    Setting("repetition_penalty", 1.0, Real(0.1, 10), "a value above 1 makes repetitions less likely"),
    Setting("seed", 17, Whole(0, 2**32 - 1), "the same seed gives the same text"),
)


def load_model(folder: Path, device: str | None) -> tuple[Any, Any]:
    """Load the model of an exported or fine-tuned folder, in evaluation mode, and its tokenizer.

    The tokenizer of a model that was fine-tuned on pairs ends each prompt with the token that starts a target.

    Raises:
        BadInput: the folder does not hold a causal language model, or the model was fine-tuned with a head and cannot
            write.
    """
    check_folder(folder)
    task = read_task(folder)
    start = KINDS[task["kind"]].target_start if task else ""
    if task and not start:
        raise BadInput(
            f"--model {folder} was fine-tuned on {task['task']} ({task['kind']}): it {KINDS[task['kind']].does} and "
            "writes no text. Its scores are in its run folder; recipes/evaluate.py --runs combines those of several "
            "seeds"
        )
    device = find_device(device)  # before the weights are read
    model, tokenizer = open_folder(folder, "auto")
    if task:
        from tokenizers.processors import TemplateProcessing

        special = (start, tokenizer.convert_tokens_to_ids(start))
        template: Any = TemplateProcessing
        tokenizer.backend_tokenizer.post_processor = template(single=f"$A {start}", special_tokens=[special])
        tokenizer.model_max_length = task["seq_len"]  # training had no longer sequences
    return move(model, device), tokenizer


def check_prompt(prompt: str) -> None:
    """Raise BadInput if a prompt is empty or is not valid UTF-8."""
    if not prompt:
        raise BadInput("the prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the prompt {prompt!r} is not text: {prompt[error.start]!r} is not valid UTF-8") from None


class Continuation:
    """The continuation of one prompt. Iterate over it to get the text in pieces, while the model writes it.

    If the loop is left, for example by Ctrl-C, the model stops after the current token.

    Args:
        model: model of `load_model`.
        tokenizer: tokenizer of `load_model`.
        prompt: text to continue.
        settings: a value for each of `SETTINGS`.

    Attributes:
        tokens: number of written tokens, known after the loop.
        stopped: whether the model itself ended the text, known after the loop.

    Raises:
        BadInput: the prompt is empty, is not text, or leaves no room in the context.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str, settings: Mapping[str, Any]) -> None:
        self.tokens = 0
        self.stopped = False
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        check_prompt(prompt)
        self._inputs = tokenizer(prompt, return_tensors="pt", verbose=False).to(model.device)
        n_prompt = self._inputs["input_ids"].shape[1]
        context = min(model.config.n_positions, tokenizer.model_max_length)
        if n_prompt >= context:
            raise BadInput(f"the prompt has {n_prompt} tokens, but the model's context holds {context}")
        self._n_new = min(settings["max_new_tokens"], context - n_prompt)

    def __iter__(self) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        # Without clean-up, which would remove spaces before punctuation that belong to the text.
        streamer: Any = TextIteratorStreamer(
            self._tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        left = threading.Event()
        with ThreadPoolExecutor(1, "continuation") as pool:
            writing = pool.submit(self._write, streamer, left)
            writing.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))  # after a failure, too
            try:
                yield from filter(None, streamer)
            finally:
                left.set()
        ids = writing.result()
        self.tokens = len(ids)
        self.stopped = bool(ids) and ids[-1] == self._tokenizer.eos_token_id

    def _write(self, streamer: Any, left: threading.Event) -> list[int]:
        import torch

        torch.manual_seed(self._settings["seed"])
        sampling: JsonDict = {"do_sample": False}
        if self._settings["temperature"] > 0:
            sampling = {"do_sample": True, **{name: self._settings[name] for name in ("temperature", "top_p", "top_k")}}
        eos = self._tokenizer.eos_token_id
        ids = self._model.generate(
            **self._inputs,
            **sampling,
            max_new_tokens=self._n_new,
            repetition_penalty=self._settings["repetition_penalty"],
            num_beams=1,
            eos_token_id=eos,
            pad_token_id=eos,
            use_cache=True,
            streamer=streamer,
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), left.is_set(), device=ids.device)],
        )
        return ids[0, self._inputs["input_ids"].shape[1] :].tolist()


def printable(text: str) -> str:
    """Replace control characters, because a model can write escape sequences that a terminal would obey."""
    return text.translate(CONTROL)

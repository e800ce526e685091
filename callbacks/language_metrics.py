"""Perplexity and bits per byte, made of the losses that are there already."""

from __future__ import annotations

import math

from composer import Callback, Logger, State


class LanguageMetrics(Callback):
    """Logs what a loss in nats per token means.

    | key                          | unit                                                            |
    |------------------------------|-----------------------------------------------------------------|
    | perplexity/train             | exp(loss/train/total), each batch                               |
    | metrics/eval/Perplexity      | exp of the validation loss                                      |
    | metrics/eval/BitsPerByte     | validation loss in bits, per UTF-8 byte of text; comparable     |
    |                              | between tokenizers                                              |

    A sample's first token is not predicted; it is taken to cost what the others cost.
    """

    def __init__(self, eval_bytes_per_token: float) -> None:
        self.eval_bytes_per_token = eval_bytes_per_token

    def batch_end(self, state: State, logger: Logger) -> None:
        """Training perplexity, from the loss that Trainer has averaged over ranks and microbatches."""
        loss = state.total_loss_dict.get("loss/train/total")
        if loss is not None:
            logger.log_metrics({"perplexity/train": math.exp(min(float(loss), 50.0))})

    def eval_end(self, state: State, logger: Logger) -> None:
        """Validation perplexity and bits per byte."""
        loss = float(state.eval_metrics["eval"]["LanguageCrossEntropy"].compute())
        logger.log_metrics(
            {
                "metrics/eval/Perplexity": math.exp(min(loss, 50.0)),
                "metrics/eval/BitsPerByte": loss / math.log(2) / self.eval_bytes_per_token,
            }
        )

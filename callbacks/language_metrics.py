"""Log perplexity and bits per byte, computed from losses that are already known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from composer import Callback, Logger, State

from recipes.modeling.token_loss import metric_name

BytesPerToken = Mapping[str | None, float]  # source, or None for all text -> UTF-8 bytes of text per token


class LanguageMetrics(Callback):
    """Logs losses, which are in nats per token, in two other units.

    | key                                  | unit                                                                |
    |--------------------------------------|---------------------------------------------------------------------|
    | loss/train/perplexity                | exp(loss/train/total), each batch                                   |
    | loss/train/bits_per_byte             | training loss in bits, per UTF-8 byte of text                       |
    | metrics/eval/Perplexity              | exp of the validation loss                                          |
    | metrics/eval/BitsPerByte             | validation loss in bits, per UTF-8 byte of text; comparable between |
    |                                      | tokenizers                                                          |
    | metrics/eval/BitsPerByte/SOURCE      | the same for the text of one source                                 |
    | metrics/eval-NAME/…                  | the same for the folder NAME of data.mix                            |

    The first token of a sample is not predicted; bits per byte assumes that its loss is the mean loss.

    Args:
        train_bytes_per_token: UTF-8 bytes of text per token of the training split.
        eval_bytes_per_token: Composer's label of a validation split -> bytes per token of all of its text, and of each
            source whose loss is computed.
    """

    def __init__(self, train_bytes_per_token: float, eval_bytes_per_token: Mapping[str, BytesPerToken]) -> None:
        self.train_bytes_per_token, self.eval_bytes_per_token = train_bytes_per_token, eval_bytes_per_token

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the training loss, which the Trainer has averaged over ranks and microbatches, in both units."""
        loss = state.total_loss_dict.get("loss/train/total")
        if loss is not None:
            nats = float(loss)
            logger.log_metrics(
                {
                    "loss/train/perplexity": _perplexity(nats),
                    "loss/train/bits_per_byte": nats / math.log(2) / self.train_bytes_per_token,
                }
            )

    def eval_end(self, state: State, logger: Logger) -> None:
        """Log validation perplexity and bits per byte, of all text and by source."""
        label = state.dataloader_label
        assert label is not None
        for source, bytes_per_token in self.eval_bytes_per_token[label].items():
            nats = float(state.eval_metrics[label][metric_name(source)].compute())
            name = f"metrics/{label}/BitsPerByte" + (f"/{source}" if source else "")
            logger.log_metrics({name: nats / math.log(2) / bytes_per_token})
            if source is None:
                logger.log_metrics({f"metrics/{label}/Perplexity": _perplexity(nats)})


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 50.0))

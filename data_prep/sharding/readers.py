"""The configuration in yamls/ that trains on a shards folder."""

from __future__ import annotations

from pathlib import Path

from data_prep.sharding.shard_format import ShardsInfo
from data_prep.tokenizing.tokenizer_settings import MODEL_CONFIG

READERS = {
    "data/sample/shards": "yamls/smoke-gpu.yaml",
    "data/sample/shards-256": "yamls/smoke-cpu.yaml",
    "data/text/shards-256": "yamls/own-text-cpu.yaml",
    "data/pubmed/shards": "yamls/biomedlm-2.7b.yaml",
    "data/pubmed/shards-no-eos": "yamls/biomedlm-2.7b-2022.yaml",
}
MANY_GPUS = ("yamls/biomedlm-2.7b.yaml", "yamls/biomedlm-2.7b-2022.yaml")
SMALL, CONTINUE = "yamls/smoke-cpu.yaml", "yamls/continue/domain.yaml"  # for shards in any other folder


def reading_command(shards: ShardsInfo, tokenizer: Path) -> list[str]:
    """The words of a command that trains on the shards; if that takes many GPUs, it only shows the plan (--dry-run).

    Args:
        shards: finished shards folder.
        tokenizer: folder of the tokenizer that encoded the shards.
    """
    yaml = READERS.get(str(shards.folder), SMALL)
    command = ["python", "recipes/train.py", yaml]
    if (tokenizer / MODEL_CONFIG).is_file():  # a model folder: training continues this model
        return [*command[:2], CONTINUE, f"init_from={tokenizer}", f"data.shards={shards.folder}"]
    if str(shards.folder) not in READERS:
        command += [f"data.shards={shards.folder}", f"data.tokenizer={tokenizer}", f"data.seq_len={shards.seq_len}"]
        command += [f"model.n_positions={shards.seq_len}", f"model.vocab_size={shards.vocab_size}"]
        command += [] if shards.eos_between_documents else ["data.eos_between_documents=false"]
    return [*command, "--dry-run"] if yaml in MANY_GPUS else command

"""JSON lines -> Arrow files by `datasets.map`, as transformers' run_clm.py does it; runs in datasets' environment.

Two maps over batches of 1,000: tokenise, then join and cut into blocks; what is left of each batch is dropped. It is
lighter than run_clm: no attention mask, and no copy of the ids as labels. End-of-text is added to each text.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import datasets  # pyright: ignore[reportMissingImports]
from transformers import AutoTokenizer


def main() -> None:
    """Command line: texts, tokenizer, out, tokens a block, processes."""
    texts, tokenizer_folder, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    seq_len, workers = int(sys.argv[4]), int(sys.argv[5])
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True, trust_remote_code=False)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ended = [text + tokenizer.eos_token for text in batch["text"]]
        return {"input_ids": tokenizer(ended, return_attention_mask=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = list(chain(*batch["input_ids"]))
        whole = len(ids) // seq_len * seq_len
        return {"input_ids": [ids[start : start + seq_len] for start in range(0, whole, seq_len)]}

    raw = datasets.load_dataset("json", data_files=sorted(map(str, texts.glob("*.jsonl"))), split="train")
    processes = workers if workers > 1 else None
    tokenized = raw.map(tokenize, batched=True, num_proc=processes, remove_columns=raw.column_names)
    grouped = tokenized.map(group, batched=True, num_proc=processes)
    grouped.save_to_disk(str(out / "dataset"))
    print(json.dumps({"tokens": len(grouped) * seq_len}))


if __name__ == "__main__":
    main()

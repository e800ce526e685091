"""Turn JSON lines into Arrow files with `datasets.map`, like transformers' run_clm.py; runs in datasets' environment.

The first map tokenizes batches of 1,000 texts, each followed by end-of-text. The second map joins the tokens of a batch
and cuts them into blocks; the rest of each batch is dropped. Unlike run_clm, this script makes no attention mask and no
copy of the ids as labels, so it does less work.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import datasets  # pyright: ignore[reportMissingImports]
from transformers import AutoTokenizer


def main() -> None:
    """Command line: texts, tokenizer, output folder, tokens per block, processes."""
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

"""Turn JSON lines into token files with datatrove's own pipeline; runs in datatrove's environment.

Documents are not shuffled. By default datatrove would shuffle them, which takes a second pass.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.tokens import DocumentTokenizer  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    texts, tokenizer, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(texts), glob_pattern="*.jsonl"),
            DocumentTokenizer(
                str(out / "tokens"),
                str(tokenizer / "tokenizer.json"),
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ],
        tasks=workers,
        workers=workers,
        logging_dir=str(out / "logs"),
    ).run()
    # The second line of each .metadata file is the number of tokens.
    counts = [int(path.read_text().splitlines()[1]) for path in (out / "tokens").glob("*.metadata")]
    print(json.dumps({"tokens": sum(counts)}))

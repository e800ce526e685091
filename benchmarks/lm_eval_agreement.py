"""Do our scores equal those of lm-eval-harness's own command line? Question by question, on an exported model.

lm-eval is not among the recipe's requirements: it brings scikit-learn, pandas and pyarrow (450 MB), and with
scikit-learn installed every `import transformers` takes half as long again. It has an environment of its own:

    python3.11 -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install lm-eval==0.4.13 accelerate -r requirements.txt
    python recipes/evaluate.py --model runs/smoke/model --tasks mmlu,pubmedqa --data data/tasks --out runs/smoke/scores
    python benchmarks/lm_eval_agreement.py --scores runs/smoke/scores --model runs/smoke/model --lm-eval /tmp/lm-eval
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before this folder, whose data_prep.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.stage import BadInput, run

# Padding and batch order differ; the same sums in another order in fp32.
TOLERANCE_NATS = 1e-3


def harness_scores(lm_eval: Path, model: Path, tasks: Path, out: Path) -> dict[str, list[Any]]:
    """What lm-eval's command line makes of `tasks`: name -> samples in the order of the task."""
    names = sorted(path.stem for path in tasks.glob("*.yaml"))
    command = [
        str(lm_eval / "bin/lm_eval"), "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
        "--include_path", str(tasks), "--tasks", ",".join(names), "--batch_size", "8", "--device", "cpu",
        "--log_samples", "--output_path", str(out),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    subprocess.run(command, check=True, env={**os.environ, **offline})
    samples = {}
    for name in names:
        lines = next(out.rglob(f"samples_{name}_*.jsonl")).read_text(encoding="utf-8").splitlines()
        samples[name] = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return samples


def main() -> None:
    """Run the harness, compare, print one line a task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scores", type=Path, required=True, help="folder that recipes/evaluate.py made")
    parser.add_argument("--model", type=Path, required=True, help="the exported model that they are of")
    parser.add_argument("--lm-eval", type=Path, required=True, help="an environment that has lm-eval 0.4.13")
    arguments = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        found = harness_scores(arguments.lm_eval, arguments.model, arguments.scores / "harness", Path(folder))
    for name, samples in found.items():
        task, _, form = name.rpartition("_")
        ours = (arguments.scores / f"{task}-{form}.jsonl").read_text(encoding="utf-8").splitlines()
        largest, verdicts = 0.0, 0
        for sample, record in zip(samples, map(json.loads, ours), strict=True):
            theirs = [float(response[0][0]) for response in sample["resps"]]
            largest = max(largest, *(abs(a - b) for a, b in zip(theirs, record["log_probs"], strict=True)))
            verdicts += sample["acc"] != record["acc"] or (
                form == "option" and sample["acc_norm"] != record["acc_norm"]
            )
        differ += verdicts + (largest > TOLERANCE_NATS)
        print(
            f"{name}: {len(samples)} questions, {verdicts} judged differently, log-probabilities within {largest:.1e}"
        )
    if differ:
        raise BadInput("our scores are not lm-eval's")


if __name__ == "__main__":
    run(main)

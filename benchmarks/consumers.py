"""Compare the ids and logits that three other programs compute from an exported folder with ours.

The programs are the newest transformers, CTranslate2 and ONNX Runtime (through optimum). uv installs each program into
its own virtual environment; all together take some 7 GB, and links share torch between them.

    python benchmarks/consumers.py --model runs/smoke/model --environments data/environments
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

UV = Path(sys.executable).with_name("uv")
TEXT = "Aspirin inhibits cyclooxygenase-2 in the patient's platelets. β-blockers, 10^6 cells/mL and naïve T cells were"
# Each script prints {"versions": …, "ids": …, "logits": [[…]]}; its arguments are the folder and the text.
TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2])["input_ids"]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor([ids])).logits[0]
versions = f"transformers {transformers.__version__}, torch {torch.__version__}, {model.config._attn_implementation}"
print(json.dumps({"versions": versions, "ids": ids, "logits": logits.tolist()}))
"""
CTRANSLATE2 = """
import json, sys, tempfile, ctranslate2, numpy, tokenizers
from ctranslate2.converters import TransformersConverter
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
encoded = tokenizer.encode(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    TransformersConverter(sys.argv[1]).convert(folder, force=True)
    generator = ctranslate2.Generator(folder, device="cpu", compute_type="float32")
    logits = numpy.array(generator.forward_batch([encoded.tokens]))[0]
print(json.dumps({"versions": f"ctranslate2 {ctranslate2.__version__}", "ids": encoded.ids, "logits": logits.tolist()}))
"""
ONNX = """
import json, sys, onnxruntime, torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer
inputs = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt")
model = ORTModelForCausalLM.from_pretrained(sys.argv[1], export=True, use_cache=False, use_io_binding=False)
logits = model(**inputs).logits[0]
versions = f"onnxruntime {onnxruntime.__version__}"
print(json.dumps({"versions": versions, "ids": inputs["input_ids"][0].tolist(), "logits": logits.tolist()}))
"""
CONSUMERS = {
    "transformers, newest": (["transformers", "torch", "numpy"], TRANSFORMERS),
    "CTranslate2": (["ctranslate2", "transformers<5", "torch==2.7.0", "numpy"], CTRANSLATE2),
    "ONNX Runtime": (["optimum-onnx[onnxruntime]", "torch==2.7.0", "numpy"], ONNX),
}


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of a virtual environment with these packages; the environment is made if it does not exist."""
    python = folder / "bin/python"
    if not (folder / "made").is_file():
        subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *packages], check=True)
        (folder / "made").touch()
    return python


def ask(python: Path, script: str, model: Path) -> dict[str, object]:
    """Run a script on the text in a process without this process's environment variables; return its output."""
    with tempfile.TemporaryDirectory() as home:
        settings = {"HOME": home, "HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}:/usr/bin:/bin"}
        command = [python, "-c", script, str(model.resolve()), TEXT]
        return json.loads(subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Command line: compare all programs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder made by recipes/export.py")
    parser.add_argument("--environments", type=Path, required=True, help="folder for the virtual environments")
    args = parser.parse_args()
    ours = ask(Path(sys.executable), TRANSFORMERS.replace("dtype=", "torch_dtype="), args.model)
    logits = np.array(ours["logits"])
    print(f"beside {ours['versions']}: {len(logits)} tokens, logits up to {np.abs(logits).max():.2f}\n")
    print("| read by | versions | ids | largest difference, share of the largest logit | first choices |")
    print("|---|---|---|---|---|")
    for name, (packages, script) in CONSUMERS.items():
        python = environment(args.environments / name.split(",")[0].replace(" ", "-").lower(), packages)
        try:
            theirs = ask(python, script, args.model)
        except subprocess.CalledProcessError as error:
            print(f"| {name} | | failed | {error.stderr.strip().splitlines()[-1]} | |", flush=True)
            continue
        computed = np.array(theirs["logits"])
        ids = "equal" if theirs["ids"] == ours["ids"] else "differ"
        far = np.abs(computed - logits).max() / np.abs(logits).max() if computed.shape == logits.shape else np.nan
        same = np.mean(computed.argmax(-1) == logits.argmax(-1)) if computed.shape == logits.shape else np.nan
        print(f"| {name} | {theirs['versions']} | {ids} | {far:.1e} | {same:.0%} equal |", flush=True)


if __name__ == "__main__":
    main()

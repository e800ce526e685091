"""Compare the two stacks, `.venv` and `.venv-next`, on this machine: start, batch, compiled batch, save, memory.

In each round, every row is measured with both stacks in turn, in separate processes. A ratio compares the two
measurements of one round.

    python benchmarks/stacks.py --rounds 3
    python benchmarks/stacks.py --yaml yamls/smoke-gpu.yaml --rows step compiled --batches 40
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before this folder, whose modules are not the packages of their names.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import Run, machine, measured, result_of
from data_prep.common.errors import BadInput, run

ROOT = Path(__file__).resolve().parents[1]
STACKS = {"lock": ROOT / ".venv/bin/python", "next": ROOT / ".venv-next/bin/python"}
VERSIONS = "from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in ('torch', 'transformers')))"


class Bench:
    """Measures rows with the Python of a stack.

    Args:
        args: parsed command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def one(self, python: Path, script: str, *words: str | Path) -> tuple[dict[str, Any], Run]:
        """Run another benchmark of this folder once; return its result, and the time and memory of its process."""
        taken = measured([python, ROOT / "benchmarks" / script, "--one", *words, *self.args.overrides], 1)
        return result_of(taken), taken

    def start(self, python: Path, folder: Path) -> dict[str, float]:
        """Seconds from the start of the process to the end of the first batch."""
        phases, _ = self.one(python, "startup.py", folder, "--yaml", self.args.yaml)
        return {"start to first batch, s": sum(phases.values())}

    def step(self, python: Path, folder: Path, variant: str = "yaml") -> dict[str, float]:
        """Milliseconds per batch, and the peak memory of the process."""
        words = ("bare", variant, folder, "--preset", self.args.preset, "--batches", str(self.args.batches))
        more = ("kernels.compile=true",) if variant == "compile" else ()
        result, taken = self.one(python, "train_step.py", *words, *more)
        name = "compiled batch" if more else "batch"
        return {f"{name}, ms": 1e3 * result["step_s"], f"{name}: memory of the process, GB": taken.peak_bytes / 1e9}

    def compiled(self, python: Path, folder: Path) -> dict[str, float]:
        """Milliseconds per compiled batch, and the peak memory of the process."""
        return self.step(python, folder, "compile")

    def save(self, python: Path, folder: Path) -> dict[str, float]:
        """Seconds to write and hash a checkpoint."""
        result, _ = self.one(python, "checkpoint.py", "save", folder, "--yaml", self.args.yaml)
        return {"checkpoint, s": statistics.median(each["writing"] + each["hashing"] for each in result["saves"])}


ROWS: dict[str, Callable[[Bench, Path, Path], dict[str, float]]] = {
    "start": Bench.start, "step": Bench.step, "compiled": Bench.compiled, "save": Bench.save,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what is measured (default all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default 3)")
    parser.add_argument("--batches", type=int, default=12, help="of a run, its first three not timed (default 12)")
    parser.add_argument("--yaml", default="yamls/smoke-cpu.yaml", help="configuration (default yamls/smoke-cpu.yaml)")
    parser.add_argument("--preset", default="smoke", help="configuration of the batches (default smoke)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    args = parser.parse_intermixed_args(argv)
    if args.rounds < 1:
        raise BadInput(f"--rounds {args.rounds} must be above 0")
    for name, python in STACKS.items():
        if not python.exists():
            raise BadInput(f"there is no {python}; make {python.parents[1].name}/development makes the stack {name}")
    values: dict[str, dict[str, list[float]]] = {}
    for n in range(args.rounds):
        for row in args.rows:
            # Every second round begins with the other stack.
            for stack in sorted(STACKS, reverse=n % 2 == 1):
                folder = Path(tempfile.mkdtemp(prefix="stacks-"))
                try:
                    for name, value in ROWS[row](Bench(args), STACKS[stack], folder).items():
                        values.setdefault(name, {one: [] for one in STACKS})[stack].append(value)
                        print(f"round {n + 1}, {stack}: {name} {value:.3g}", file=sys.stderr, flush=True)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
    named = [f"{stack}: {measured([python, '-c', VERSIONS], 1).output.strip()}" for stack, python in STACKS.items()]
    settings = " ".join([args.yaml, *args.overrides])
    print(f"{settings}; {args.rounds} rounds, median; {machine()}; {'; '.join(named)}.\n")
    print("| | lock | next | next / lock (least to most) |\n| --- | ---: | ---: | ---: |")
    for name, by_stack in values.items():
        ratios = [after / before for before, after in zip(by_stack["lock"], by_stack["next"], strict=True)]
        medians = " | ".join(f"{statistics.median(by_stack[stack]):.3g}" for stack in STACKS)
        print(f"| {name} | {medians} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


if __name__ == "__main__":
    run(main)

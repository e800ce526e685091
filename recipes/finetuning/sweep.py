"""Sweep: a grid of fine-tuning runs in; the best configuration by dev out, and its score on test, looked at once.

python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks --dry-run   # runs and cost
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm data=data/tasks             # one by one
RAY_ADDRESS=head:6379 python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --cluster ray
python recipes/sweep.py yamls/finetune/pubmedqa-sweep.yaml model=biomedlm --only 3      # run 3 of 0, 1, … and no more

The YAML holds `base`, a configuration of recipes/finetune.py beside it, and `grid`: for each key the values to try.
What follows it holds for all runs. The folder, runs/NAME of the YAML or run_dir=…, gets a run folder and a log for each
run. Typing the same command again goes on: finished runs stay, unfinished ones resume, failed ones are tried again.

No run scores test. When all are finished, the configuration with the best mean over its seeds on dev is written down in
results.json, and then its runs alone score test, once; another grid needs another folder from there on. On Ray, every
node must see the folder, the model and the data under the same paths. With `--only`, which a scheduler's array needs,
nothing is chosen; the command without it does that afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from data_prep.running.workers import connected
from data_prep.stage import BadInput, JsonDict, difference, read_json, run, write_json, write_text
from data_prep.tasks import describe, load
from recipes import finetune
from recipes.config.schema import FinetuneConfig, load_finetune_config, parse_run, read_yaml
from recipes.evaluate import evaluate_runs
from recipes.export import Source, find_source
from recipes.plan import flops_per_token
from recipes.runs import run_folder
from recipes.runs.exit_codes import leave_at_once_when_preempted
from recipes.runs.launch import command_of, execute, last_line, run_here

RESULTS, TABLE, PICTURE = "results.json", "table.md", "dev.png"
RUNS, LOGS, TEST = "runs", "logs", "test"
METRIC = {"choice": "acc", "verdict": "acc", "pairs": "rougeL", "tags": "f1"}  # what is best of each kind of task
# What decides which sweep it is, or what the sweep itself sets.
NOT_IN_GRID = ("task", "data", "run_name", "run_dir", "save_remote", "score_test")


@dataclass(frozen=True)
class Job:
    """A run of the sweep.

    Attributes:
        name: of its folder and log; made of its values, so that a grid may grow while a sweep is under way.
        values: of the grid's keys.
        folder: its run folder.
        overrides: what its command has after the YAML.
        identity: what decides its losses.
        plan: its derived numbers.
        examples: that it reads in training.
        tokens: of these, at most.
        flops: of these, at most.
        world_size: ranks.
    """

    name: str
    values: JsonDict
    folder: Path
    overrides: tuple[str, ...]
    identity: JsonDict
    plan: finetune.Plan
    examples: int
    tokens: int
    flops: float
    world_size: int

    @property
    def kept_bytes(self) -> int:
        """What its folder takes in the end: a checkpoint, and the exported model in fp32."""
        return self.plan.checkpoint_bytes + 4 * self.plan.parameters

    @property
    def configuration(self) -> str:
        """Its values but for the seed."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.values.items() if key != "seed") or "as it is"

    @property
    def scores(self) -> JsonDict:
        """Split -> metric -> score of a run that is finished; empty of one that is not."""
        record = self.folder / run_folder.RECORD
        if not record.is_file() or not read_json(record)["finished"]:
            return {}
        return read_json(self.folder / finetune.SCORES)["scores"]

    def command(self, base: Path, score_test: bool) -> list[str]:
        """What one would type."""
        switch = f"score_test={str(score_test).lower()}"
        return [*command_of("finetune.py", base, self.world_size), *self.overrides, switch]


@dataclass(frozen=True)
class Sweep:
    """A grid and the runs that it stands for.

    Attributes:
        name: of the sweep.
        folder: where everything goes.
        base: the YAML of its runs.
        grid: key -> values.
        metric: what is compared.
        jobs: the runs, in the order of the grid.
    """

    name: str
    folder: Path
    base: Path
    grid: dict[str, list[Any]]
    metric: str
    jobs: tuple[Job, ...]

    @property
    def identity(self) -> JsonDict:
        """What decides its outcome."""
        return {job.name: job.identity for job in self.jobs}

    @property
    def configurations(self) -> dict[str, list[Job]]:
        """Configuration -> its runs, one a seed."""
        found: dict[str, list[Job]] = {}
        for job in self.jobs:
            found.setdefault(job.configuration, []).append(job)
        return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def read_grid(path: Path) -> tuple[Path, dict[str, list[Any]]]:
    """The base of a sweep's YAML, and its grid.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    content: Any = OmegaConf.to_container(read_yaml(path))
    if unknown := sorted(map(str, content.keys() - {"base", "grid"})):
        raise BadInput(
            f"{path}: unknown key {unknown[0]!r}; a sweep holds `base` and `grid`, and what is the same in all runs "
            f"goes into the base or behind the YAML, as {unknown[0]}=…"
        )
    if not isinstance(content.get("base"), str):
        raise BadInput(f"{path}: `base` is missing: the configuration of its runs, such as pubmedqa.yaml")
    grid = content.get("grid")
    if not isinstance(grid, dict) or not grid:
        raise BadInput(f"{path}: `grid` must hold keys with lists of values, such as optimizer.lr: [2e-6, 5e-6]")
    for key, values in grid.items():
        where = f"{path}: grid: {key}"
        if not isinstance(values, list):
            raise BadInput(f"{where} = {values!r} is not a list of values; a key below another is written a.b: [1, 2]")
        if not values:
            raise BadInput(f"{where} is an empty list: nothing would be run")
        if key in NOT_IN_GRID:
            raise BadInput(f"{where} cannot differ between the runs of a sweep")
    return path.parent / content["base"], {str(key): values for key, values in grid.items()}


def load_sweep(path: Path, overrides: Sequence[str]) -> Sweep:
    """Read a sweep and work out all of its runs, before any of them starts.

    Raises:
        BadInput: a key, value, model, set or plan cannot be used; two runs are the same; a run folder holds another.
    """
    base, grid = read_grid(path)
    given = {override.partition("=")[0] for override in overrides}
    if "score_test" in given:
        raise BadInput("score_test: a sweep scores test itself, of the best configuration alone")
    if twice := sorted(given & grid.keys()):
        raise BadInput(f"{twice[0]} stands in the grid of {path} and behind it; leave one out")

    def configure(values: JsonDict, *place: str) -> tuple[FinetuneConfig, tuple[str, ...]]:
        changes = (*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items()), *place)
        try:
            return load_finetune_config(base, changes), changes
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None

    common, _ = configure({}, *(f"run_name={path.stem}" for _ in range("run_name" not in given)))
    task = load(common.task, Path(common.data))
    n_train = len(finetune.splits(task)["train"])
    sources: dict[str, Source] = {}
    jobs: dict[str, Job] = {}
    for chosen in itertools.product(*grid.values()):
        values = dict(zip(grid, chosen, strict=True))
        name = "_".join(_file_name(f"{key.rsplit('.')[-1]}-{_text(value)}") for key, value in values.items())
        folder = Path(common.run_dir) / RUNS / name
        cfg, changes = configure(values, f"run_name={common.run_name}-{name}", f"run_dir={folder}")
        if cfg.model not in sources:
            sources[cfg.model] = find_source(Path(cfg.model), None)
        model = finetune.architecture(sources[cfg.model])
        plan = finetune.make_plan(cfg, model, task, n_train, cfg.world_size)
        identity = finetune.identity(cfg, plan, task, sources[cfg.model])
        for other in jobs.values():
            if other.name == name or not difference(other.identity, identity):
                raise BadInput(f"{path}: two runs of the grid are the same: {other.values} and {values}")
        run_folder.check_identity(folder, identity, cfg.resume.allow)
        examples = plan.batches * cfg.global_train_batch_size
        tokens = examples * cfg.seq_len * (4 if task.kind == "choice" else 1)
        flops = tokens * flops_per_token(model, cfg.seq_len)
        jobs[name] = Job(name, values, folder, changes, identity, plan, examples, tokens, flops, cfg.world_size)
    print(describe(task), flush=True)
    return Sweep(common.run_name, Path(common.run_dir), base, grid, METRIC[task.kind], tuple(jobs.values()))


def format_sweep(sweep: Sweep) -> str:
    """The runs and what they cost, as lines to print."""
    width = max(len(job.name) for job in sweep.jobs)
    lines = [
        f"{sweep.name}: {len(sweep.jobs)} runs of {len(sweep.configurations)} configurations, in {sweep.folder}",
        f"  {'run':<{width}}  {'batches':>9}  {'examples':>9}",
    ]
    for job in sweep.jobs:
        state = f"finished, dev {sweep.metric} {100 * _dev(job, sweep):.1f}" if job.scores else "to do"
        lines.append(f"  {job.name:<{width}}  {job.plan.batches:>9,}  {job.examples:>9,}  {state}")
    left = tuple(job for job in sweep.jobs if not job.scores)
    for what, jobs in {"total": sweep.jobs, **({"to do": left} if left != sweep.jobs else {})}.items():
        batches, examples, tokens = (
            sum(of(job) for job in jobs) for of in (lambda j: j.plan.batches, lambda j: j.examples, lambda j: j.tokens)
        )
        flops, kept = sum(job.flops for job in jobs), sum(job.kept_bytes for job in jobs)
        lines.append(
            f"  {what}: {len(jobs)} runs, {batches:,} batches, {examples:,} examples, at most {tokens:,} tokens and "
            f"{flops:.2g} FLOPs; {kept / 1e9:,.3g} GB of checkpoints and models"
        )
    return "\n".join(lines)


def _dev(job: Job, sweep: Sweep) -> float:
    return job.scores["dev"][sweep.metric]["value"]


def run_on_ray(commands: Iterable[tuple[Job, list[str], Path]]) -> Iterator[tuple[Job, int]]:
    """As many at once as the cluster of RAY_ADDRESS, or a Ray of this machine, has room for.

    Raises:
        BadInput: there is no such cluster.
    """
    with connected(or_begin=True) as ray:
        from ray.exceptions import RayError

        gpus = ray.cluster_resources().get("GPU", 0) > 0
        waiting: dict[Any, Job] = {}
        for job, command, log in commands:
            task = ray.remote(execute).options(num_gpus=job.world_size if gpus else 0, max_retries=0)
            waiting[task.remote(command, log.absolute(), Path.cwd())] = job
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                code = ray.get(done)
            except RayError as error:  # its node went, for one
                print(f"{job.name}: {error}", flush=True)
                code = 1
            yield job, code


def run_all(sweep: Sweep, jobs: Sequence[Job], score_test: bool, cluster: str | None) -> list[Job]:
    """Run, with progress; those that failed."""
    logs, split = sweep.folder / LOGS, "test" if score_test else "dev"
    commands = [(job, job.command(sweep.base, score_test), logs / f"{job.name}.log") for job in jobs]
    failed, started_s, batches_done = [], time.monotonic(), 0
    batches = sum(job.plan.batches for job in jobs)
    for number, (job, code) in enumerate((run_on_ray if cluster == "ray" else run_here)(commands), 1):
        where = f"[{number}/{len(jobs)}] {job.name}"
        batches_done += job.plan.batches
        elapsed_s = time.monotonic() - started_s
        left = f"{elapsed_s / 60:.1f} min, about {elapsed_s * (batches / batches_done - 1) / 60:.1f} min left"
        score = job.scores.get(split, {}).get(sweep.metric)
        if code or score is None:
            failed.append(job)
            log = logs / f"{job.name}.log"
            print(f"{where} failed with exit code {code}: {last_line(log)}\n  see {log}; {left}", flush=True)
        else:
            print(f"{where}: {split} {sweep.metric} {100 * score['value']:.1f}; {left}", flush=True)
    return failed


def choose(sweep: Sweep, failed: Sequence[Job]) -> JsonDict:
    """Rank the configurations all of whose runs are finished, by the mean of their seeds on dev, the best first.

    Of equal means the first in the grid is taken.
    """
    ranked = []
    for configuration, jobs in sweep.configurations.items():
        if not any(job in failed for job in jobs):
            dev = [_dev(job, sweep) for job in jobs]
            ranked.append(
                {
                    "configuration": configuration,
                    "runs": [job.name for job in jobs],
                    "dev": dev,
                    "mean": fmean(dev),
                    "standard_deviation": stdev(dev) if len(dev) > 1 else 0.0,
                }
            )
    ranked.sort(key=lambda one: -one["mean"])
    return {
        "sweep": sweep.name,
        "grid": sweep.grid,
        "metric": sweep.metric,
        "identity": sweep.identity,
        "compared": len(ranked),
        "left_out": [job.name for job in failed],
        "configurations": ranked,
        "test": None,
    }


def draw(results: JsonDict, path: Path) -> None:
    """Dev score by configuration: a point a seed, a line at their mean, the best on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ranked = results["configurations"]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(ranked)), layout="constrained")
    for row, one in enumerate(ranked):
        color = "#c0392b" if row == 0 else "#2c3e50"
        axes.plot([100 * dev for dev in one["dev"]], [row] * len(one["dev"]), "o", color=color, alpha=0.5, markersize=5)
        axes.plot([100 * one["mean"]], [row], "|", color=color, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(ranked)), [one["configuration"] for one in ranked], fontsize=8)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_xlabel(f"{results['metric']} on dev, %: each seed, and their mean")
    axes.grid(axis="x", alpha=0.3)
    partial_path = path.with_suffix(f".partial{path.suffix}")
    figure.savefig(partial_path, dpi=150)
    plt.close(figure)
    partial_path.replace(path)


def to_markdown(results: JsonDict, test: str) -> str:
    """The configurations by their dev score, and what the best one has on test."""
    ranked, metric = results["configurations"], results["metric"]
    seeds = len(ranked[0]["dev"])
    over = f"mean of {seeds} seeds ± their deviation" if seeds > 1 else "one seed"
    lines = [f"| configuration | {metric} on dev, %, {over} |", "|---|---|"]
    for one in ranked:
        deviation = f" ± {100 * one['standard_deviation']:.1f}" if seeds > 1 else ""
        lines += [f"| {one['configuration']} | {100 * one['mean']:.1f}{deviation} |"]
    facts = [
        f"The best of {results['compared']} configurations on dev is {ranked[0]['configuration']}; a maximum of so "
        "many is higher on dev than its worth. Test was scored of it alone, once."
    ]
    if equal := sum(one["mean"] == ranked[0]["mean"] for one in ranked[1:]):
        facts.append(f"{equal} more have the same score on dev; the first in the grid was taken.")
    if results["left_out"]:
        facts.append(f"Left out, since they failed: {', '.join(results['left_out'])}.")
    return "\n".join([*lines, "", " ".join(facts), "", test])


def run_only(sweep: Sweep, number: int) -> None:
    """Become the run of this number of the grid, from 0: signals and exit codes are its own.

    Raises:
        BadInput: the grid has no such run.
    """
    if not 0 <= number < len(sweep.jobs):
        raise BadInput(f"--only {number}: the grid has {len(sweep.jobs)} runs, 0 to {len(sweep.jobs) - 1}")
    job = sweep.jobs[number]
    if job.scores:
        print(f"{job.name} is finished: nothing to do", flush=True)
        return
    print(f"run {number} of 0 to {len(sweep.jobs) - 1}: {job.name}", flush=True)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a launcher would die of it; ranks answer it
    command = job.command(sweep.base, score_test=False)
    os.execv(command[0], command)


def main(sweep: Sweep, cluster: str | None, without_failed: bool) -> JsonDict:
    """Run what is not finished, choose, score test of the best; what results.json holds.

    Args:
        sweep: the sweep.
        cluster: `ray`, or None for this machine, one run after another.
        without_failed: choose among the others if runs fail.

    Raises:
        BadInput: the folder holds another sweep that has chosen already.
        SystemExit: runs failed (1), or this process was preempted (75).
    """
    folder, path = sweep.folder, sweep.folder / RESULTS
    if (folder / run_folder.RECORD).exists():
        raise BadInput(f"{folder} is the folder of a run; give this sweep another run_name=…")
    with run_folder.hold(folder):
        results = read_json(path) if path.is_file() else None
        if results is not None and (lines := difference(results["identity"], sweep.identity)):
            raise BadInput(
                f"{folder} holds a sweep that has chosen its best and looked at test:\n  "
                + "\n  ".join(lines[:5])
                + "\n"
                "To choose again after that is to choose by test. Give this one a name of its own (run_name=…)"
            )
        if results is None:
            failed = run_all(sweep, [job for job in sweep.jobs if not job.scores], False, cluster)
            results = choose(sweep, failed)
            if failed and not (without_failed and results["compared"]):
                print(
                    f"{len(failed)} of {len(sweep.jobs)} runs failed: {', '.join(job.name for job in failed)}\n"
                    "Nothing is chosen yet. Type the same command to try them again, take them out of the grid, or add "
                    "--without-failed to choose among the configurations that are whole",
                    flush=True,
                )
                raise SystemExit(1)
            write_json(path, results)  # before test is looked at: from here on the choice stands
        best = results["configurations"][0]
        print(f"the best of {results['compared']} configurations on dev: {best['configuration']}", flush=True)
        if results["test"] is None:
            jobs = [job for job in sweep.jobs if job.name in best["runs"]]
            if failed := run_all(sweep, [job for job in jobs if "test" not in job.scores], True, cluster):
                print(f"test of {', '.join(job.name for job in failed)} failed: type the same command to go on")
                raise SystemExit(1)
            evaluate_runs([job.folder for job in jobs], folder / TEST, sweep.name)
            results["test"] = read_json(folder / TEST / "results.json")["scores"]
            draw(results, folder / PICTURE)
            test_table = (folder / TEST / "table.md").read_text(encoding="utf-8")
            write_text(folder / TABLE, to_markdown(results, test_table))
            results["environment"] = run_folder.environment(1)
            write_json(path, results)
        return results


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print the runs and their cost, run them."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cluster", choices=("ray",), help="run as Ray tasks, on RAY_ADDRESS or this machine")
        parser.add_argument("--only", type=int, metavar="N", help="do run N of the grid alone, from 0; choose nothing")
        parser.add_argument("--without-failed", action="store_true", help="if runs fail, choose among the others")

    arguments = parse_run(__doc__, "yamls/finetune/pubmedqa-sweep.yaml", "model=biomedlm", argv, add)
    leave_at_once_when_preempted()
    sweep = load_sweep(Path(arguments.yaml), arguments.overrides)
    print(format_sweep(sweep), flush=True)
    if arguments.dry_run:
        return
    if arguments.only is not None:
        run_only(sweep, arguments.only)
        return
    main(sweep, arguments.cluster, arguments.without_failed)
    print((sweep.folder / TABLE).read_text(encoding="utf-8"), end="")
    print(f"{sweep.folder / RESULTS}, {sweep.folder / PICTURE}")


if __name__ == "__main__":
    run(command_line)

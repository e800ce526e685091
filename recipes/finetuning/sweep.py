"""Read a grid of fine-tuning runs, plan them, and run them."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json
from data_prep.common.manifest import difference
from data_prep.common.redaction import redacted
from data_prep.running.workers import connected
from data_prep.tasks.description import describe
from data_prep.tasks.registry import load
from recipes.checkpointing.trained_model import Source, find_source
from recipes.config.loading import load_finetune_config, read_yaml
from recipes.config.schema import FinetuneConfig
from recipes.config.values import read_value, write_override
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.names import SCORES
from recipes.finetuning.planning import FinetunePlan, architecture, finetuning_fingerprint, make_finetune_plan, splits
from recipes.modeling.size import flops_per_token
from recipes.runs.fingerprint import changes, check_fingerprint, read_completed_record
from recipes.runs.names import RECORD
from recipes.runs.processes import command_of, execute, last_line, run_here

RUNS, LOGS, TEST = "runs", "logs", "test"
# Keys that identify a sweep, or that the sweep itself sets.
NOT_IN_GRID = ("task", "data", "run_name", "run_dir", "save_remote", "score_test")


@dataclass(frozen=True)
class Job:
    """A run of the sweep.

    Attributes:
        number: index of the run in the grid, from 0, as in `--only` and a scheduler's array.
        name: name of its folder. It is made from the run's values, so that a grid may grow during a sweep.
        values: values of the grid's keys.
        folder: run folder.
        overrides: overrides in its command.
        identity: fingerprint of the run.
        plan: plan of the run.
        examples: number of examples in training, repeated ones included.
        tokens: largest possible number of tokens of these examples.
        flops: largest possible number of FLOPs for these examples.
        world_size: number of ranks.
    """

    number: int
    name: str
    values: JsonDict
    folder: Path
    overrides: tuple[str, ...]
    identity: JsonDict
    plan: FinetunePlan
    examples: int
    tokens: int
    flops: float
    world_size: int

    @property
    def kept_bytes(self) -> int:
        """Size of its finished folder in bytes: a checkpoint, and the exported model in fp32."""
        return self.plan.checkpoint_bytes + 4 * self.plan.parameters

    @property
    def configuration(self) -> str:
        """The values of the run, without the seed, as text."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.values.items() if key != "seed") or "as it is"

    @property
    def scores(self) -> JsonDict:
        """Split -> metric -> score, if the run is finished with these settings; otherwise empty."""
        if not (self.folder / RECORD).is_file():
            return {}
        record = read_completed_record(self.folder, self.identity)
        if not record["finished"] or changes(record["identity"], self.identity):
            return {}
        return read_json(self.folder / SCORES)["scores"]

    def command(self, base: Path, score_test: bool) -> list[str]:
        """The command that runs it."""
        switch = f"score_test={str(score_test).lower()}"
        return [*command_of("finetune.py", base, self.world_size), *self.overrides, switch]


@dataclass(frozen=True)
class Sweep:
    """A grid and its runs.

    Attributes:
        name: name of the sweep.
        folder: folder of the sweep, which holds all run folders.
        base: YAML of its runs.
        grid: key -> values to try.
        metric: metric by which runs are compared.
        jobs: runs in the order of the grid.
    """

    name: str
    folder: Path
    base: Path
    grid: dict[str, list[Any]]
    metric: str
    jobs: tuple[Job, ...]

    @property
    def identity(self) -> JsonDict:
        """Fingerprints of all runs, by name."""
        return {job.name: job.identity for job in self.jobs}

    @property
    def configurations(self) -> dict[str, list[Job]]:
        """Configuration -> its runs, one for each seed."""
        jobs: dict[str, list[Job]] = {}
        for job in self.jobs:
            jobs.setdefault(job.configuration, []).append(job)
        return jobs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def read_grid(path: Path) -> tuple[Path, dict[str, list[Any]]]:
    """Read the base and the grid from a sweep's YAML.

    Raises:
        BadInput: the file cannot be read, or does not have this form.
    """
    content = read_yaml(path)
    if unknown := sorted(map(str, content.keys() - {"base", "grid"})):
        raise BadInput(
            f"{path}: unknown key {unknown[0]!r}; a sweep holds `base` and `grid`. Put a value that is the same in all "
            f"runs into the base, or after the YAML, as {unknown[0]}=…"
        )
    if not isinstance(content.get("base"), str):
        raise BadInput(f"{path}: `base` is missing: the configuration of its runs, such as pubmedqa.yaml")
    grid = content.get("grid")
    if not isinstance(grid, dict) or not grid:
        raise BadInput(f"{path}: `grid` must hold keys with lists of values, such as optimizer.lr: [2e-6, 5e-6]")
    typed = {}
    for key, values in grid.items():
        where = f"{path}: grid: {key}"
        if not isinstance(values, list):
            raise BadInput(f"{where} = {values} is not a list of values; a key within a section is written a.b: [1, 2]")
        if not values:
            raise BadInput(f"{where} is an empty list: nothing would be run")
        if key in NOT_IN_GRID:
            raise BadInput(f"{where} cannot differ between the runs of a sweep")
        try:
            typed[str(key)] = [read_value(str(key), value, FinetuneConfig) for value in values]
        except BadInput as error:
            raise BadInput(f"{path}: grid: {error}") from None
    return path.parent / content["base"], typed


def load_sweep(path: Path, overrides: Sequence[str]) -> Sweep:
    """Read a sweep and plan all of its runs, before any of them starts.

    Raises:
        BadInput: a key, value, model, set or plan cannot be used; two runs are the same; or a folder holds another run.
    """
    base, grid = read_grid(path)
    given = {override.partition("=")[0] for override in overrides}
    if "score_test" in given:
        raise BadInput("score_test: a sweep itself scores test, only for the best configuration; leave it out")
    if twice := sorted(given & grid.keys()):
        raise BadInput(f"{twice[0]} is in the grid of {path} and also after the YAML; leave one out")

    def configure(values: JsonDict, *place: str) -> tuple[FinetuneConfig, tuple[str, ...]]:
        changes = (*overrides, *(write_override(key, value) for key, value in values.items()), *place)
        try:
            return load_finetune_config(base, changes), changes
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None

    common, _ = configure({}, *(write_override("run_name", path.stem) for _ in range("run_name" not in given)))
    task = load(common.task, Path(common.data))
    n_train, kind = len(splits(task)["train"]), KINDS[task.kind]
    sources: dict[str, Source] = {}
    jobs: dict[str, Job] = {}
    for chosen in itertools.product(*grid.values()):
        values = dict(zip(grid, chosen, strict=True))
        name = "_".join(_file_name(f"{key.rsplit('.')[-1]}-{_text(value)}") for key, value in values.items())
        folder = Path(common.run_dir) / RUNS / name
        cfg, changes = configure(
            values, write_override("run_name", f"{common.run_name}-{name}"), write_override("run_dir", str(folder))
        )
        if cfg.model not in sources:
            sources[cfg.model] = find_source(Path(cfg.model), None)
        model = architecture(sources[cfg.model])
        plan = make_finetune_plan(cfg, model, task, n_train, cfg.world_size)
        identity = finetuning_fingerprint(cfg, plan, task, sources[cfg.model])
        for other in jobs.values():
            if other.name == name or not difference(other.identity, identity):
                raise BadInput(f"{path}: two runs of the grid are the same: {other.values} and {values}")
        check_fingerprint(folder, identity, cfg.resume.allow)
        examples = plan.batches * cfg.global_train_batch_size
        tokens = examples * cfg.seq_len * kind.sequences
        flops = tokens * flops_per_token(model, cfg.seq_len)
        numbered = (len(jobs), name, values, folder)
        jobs[name] = Job(*numbered, changes, identity, plan, examples, tokens, flops, cfg.world_size)
    print(describe(task), flush=True)
    return Sweep(common.run_name, Path(common.run_dir), base, grid, kind.metric, tuple(jobs.values()))


def format_sweep(sweep: Sweep) -> str:
    """Format the runs and their cost as lines to print."""
    width = max(len(job.name) for job in sweep.jobs)
    lines = [
        f"{sweep.name}: {len(sweep.jobs)} runs of {len(sweep.configurations)} configurations, in {sweep.folder}",
        f"  {'--only':>6}  {'run':<{width}}  {'batches':>9}  {'examples':>9}",
    ]
    for job in sweep.jobs:
        state = f"finished, dev {sweep.metric} {100 * dev_score(job, sweep):.1f}" if job.scores else "to do"
        lines.append(f"  {job.number:>6}  {job.name:<{width}}  {job.plan.batches:>9,}  {job.examples:>9,}  {state}")
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


def dev_score(job: Job, sweep: Sweep) -> float:
    """The score of a finished run on dev, in the metric of the sweep."""
    return job.scores["dev"][sweep.metric]["value"]


def run_on_ray(commands: Iterable[tuple[Job, list[str], Path]]) -> Iterator[tuple[Job, int]]:
    """Run commands on the cluster of RAY_ADDRESS or on a local Ray, as many at once as there is room for.

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
            except RayError as error:  # for example, its node was lost
                print(f"{job.name}: {type(error).__name__}: {redacted(error).strip().splitlines()[0]}", flush=True)
                code = 1
            yield job, code


def run_all(sweep: Sweep, jobs: Sequence[Job], score_test: bool, cluster: str | None) -> list[Job]:
    """Run jobs and print the progress. Return the jobs that failed."""
    split = "test" if score_test else "dev"
    logs = {job.name: sweep.folder / LOGS / f"{job.number}-{job.name}.log" for job in jobs}
    commands = [(job, job.command(sweep.base, score_test), logs[job.name]) for job in jobs]
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
            log = logs[job.name]
            print(f"{where} failed with exit code {code}: {last_line(log)}\n  see {log}; {left}", flush=True)
        else:
            print(f"{where}: {split} {sweep.metric} {100 * score['value']:.1f}; {left}", flush=True)
    return failed


def run_only(sweep: Sweep, number: int) -> None:
    """Replace this process by one run of the grid, so that signals reach it and its exit code is returned.

    Args:
        sweep: the sweep.
        number: index of the run in the grid, from 0.

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
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it would kill a launcher; the ranks handle it themselves
    command = job.command(sweep.base, score_test=False)
    os.execv(command[0], command)

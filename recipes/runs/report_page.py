"""The report: runs as one HTML page that needs nothing else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from data_prep.common.files import write_text
from recipes.runs.comparison import differences, losses_compared
from recipes.runs.figures import svg
from recipes.runs.plots import POINTS, plots
from recipes.runs.reading import RunData, read_run, summary

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
MADE_BY = (
    TEMPLATE,
    *(Path(__file__).with_name(f"{name}.py") for name in ("comparison", "figures", "plots", "reading", "report_page")),
)
WATCH_S = 10.0
LEAST_PATIENCE_S, PAUSES = 60.0, 3  # a run stands still that logs nothing for so long, and so many of its pauses


def write_report(
    runs: Sequence[RunData],
    path: Path,
    axis: str = "batch",
    first: int = 0,
    last: int | None = None,
    refresh_s: float | None = None,
) -> Path:
    """Write a page about runs, unless one of the same data is there.

    Args:
        runs: what it shows.
        path: where.
        axis: as `plots`, as are `first` and `last`.
        first: the first batch to show.
        last: the last one.
        refresh_s: seconds after which a browser reads the page again; None: never.
    """
    asked = f"{axis} {first} {last} {refresh_s}"
    made_by = hashlib.sha256(b"".join(path.read_bytes() for path in MADE_BY)).hexdigest()
    key = hashlib.sha256("\n".join([asked, made_by, *(data.inputs_sha256 for data in runs)]).encode()).hexdigest()
    if path.is_file() and key in path.read_text(encoding="utf-8")[:1000]:
        print(f"{path} is up to date")
        return path
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    page = environment.get_template(TEMPLATE.name).render(
        key=key,
        runs=runs,
        refresh_s=refresh_s,
        thinned=any(len(points) > POINTS for data in runs for points in data.series.values()),
        summaries=[summary(data) for data in runs],
        standings=[standing(data) for data in runs],
        differences=differences(runs) if len(runs) > 1 else {},
        losses=losses_compared(runs) if len(runs) > 1 else "",
        figures={title: svg(figure) for title, figure in plots(runs, axis, first, last).items()},
    )
    write_text(path, page)
    return path


def standing(data: RunData) -> dict[str, str | float] | None:
    """Where a run that is not finished stands; how long ago that was is for the browser to say.

    Returns:
        `done` and `left` as texts; `time_s` and `at`, when the last line was logged; `patience_s`, after which a run
            that has logged nothing more stands still: no pause so far was near it. None: finished, or nothing logged.
    """
    if data.record["finished"] or data.last_time_s is None:
        return None
    at = datetime.fromtimestamp(data.last_time_s, timezone.utc)
    return {
        "done": f"batch {data.trained_batches:,} of {data.record['plan']['batches']:,}",
        "left": data.left,
        "time_s": data.last_time_s,
        "at": f"{at:%Y-%m-%d %H:%M:%S} UTC",
        "patience_s": LEAST_PATIENCE_S + PAUSES * data.pause_s,
    }


def watch(folders: Sequence[Path], path: Path, axis: str, interval_s: float = WATCH_S) -> None:
    """Write the page again whenever a run has logged more, until all are finished or the user ends it."""
    print(f"{path} is written every {interval_s:g} s while there is news; Ctrl-C ends this, not the run", flush=True)
    seen: list[str] = []
    while True:
        runs = [read_run(folder) for folder in folders]
        finished = all(data.record["finished"] for data in runs)
        if seen != (seen := [data.inputs_sha256 for data in runs]):
            write_report(runs, path, axis, refresh_s=None if finished else interval_s)
            state = "; ".join(
                ", ".join(filter(None, (f"{of.name}: batch {of.trained_batches:,}", of.left))) for of in runs
            )
            print(f"{datetime.now(timezone.utc).astimezone():%H:%M:%S} {state}", flush=True)
        if finished:
            print(f"finished: {path}")
            return
        time.sleep(interval_s)

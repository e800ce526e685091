"""The report: one self-contained HTML page about one run or several."""

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
# A run is reported as hanging if it logs nothing for LEAST_PATIENCE_S + PAUSES x its longest pause so far.
LEAST_PATIENCE_S, PAUSES = 60.0, 3


def write_report(
    runs: Sequence[RunData],
    path: Path,
    axis: str = "batch",
    first: int = 0,
    last: int | None = None,
    refresh_s: float | None = None,
) -> Path:
    """Write a page about runs, unless the file already shows the same data.

    Args:
        runs: runs to show.
        path: file to write.
        axis: horizontal axis of the plots, one of `plots.AXES`.
        first: first batch to show.
        last: last batch to show; None: to the end.
        refresh_s: seconds after which a browser reloads the page; None: never.
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
    """State of a run that is not finished. The browser computes how long ago the last line was logged.

    Returns:
        `done` and `left`, the progress as text; `time_s` and `at`, the time of the last line; `patience_s`, the time in
            seconds after which a run without a new line is reported as hanging. None if the run is finished or has
            logged nothing.
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
    """Rewrite the page whenever a run has logged more, until all runs are finished or the user stops the command."""
    print(
        f"{path} is rewritten every {interval_s:g} s if the run has logged more; Ctrl-C ends only the watch", flush=True
    )
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

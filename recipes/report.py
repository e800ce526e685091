"""Report: show one run or several as a self-contained HTML page and a short table.

python recipes/report.py runs/smoke                                # writes runs/smoke/report.html, prints the table
python recipes/report.py runs/a runs/b --out a-and-b.html          # side by side: curves in one plot, what differs
python recipes/report.py runs/a --from-batch 41000 --to-batch 42000 --out spike.html
python recipes/report.py runs/a --watch                            # rewrites the page while the run trains
python recipes/report.py runs/a --log                              # adds an entry to docs/runs.md
python recipes/report.py runs/smoke --plot docs/smoke-loss.svg     # the loss curve alone
python recipes/report.py runs/smoke --checkpoints                  # which are whole; code 2 if one is damaged
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, FileToWrite, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.last_line import say_made
from data_prep.common.limits import Whole
from data_prep.common.lock import hold
from recipes.checkpointing.listing import format_listing, list_checkpoints, refuse_damaged
from recipes.runs.figures import save
from recipes.runs.plots import AXES, plots
from recipes.runs.reading import read_run, summary
from recipes.runs.report_page import REPORT, watch, write_report
from recipes.runs.run_log import LOG, append_log

BATCH = Whole(0, 10**9)
BATCHES = "batch"  # default of --x
PICTURES = (".png", ".svg", ".pdf")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write the page, print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="run folder, such as runs/smoke")
    parser.add_argument(
        "--out",
        type=FileToWrite((".html",)),
        help="page to write (default, for a single run: report.html in its folder)",
    )
    parser.add_argument("--x", choices=AXES, default=BATCHES, help="horizontal axis of the curves (default: batch)")
    parser.add_argument("--from-batch", type=Allowed(BATCH), default=0, help="the first batch to draw")
    parser.add_argument("--to-batch", type=Allowed(BATCH), help="the last batch to draw")
    parser.add_argument("--watch", action="store_true", help="rewrite the page while the runs train")
    parser.add_argument("--log", action="store_true", help=f"append an entry to {LOG.parent.name}/{LOG.name} instead")
    parser.add_argument("--plot", type=FileToWrite(PICTURES), help="write only the loss curve, to this file")
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="compare the files of all checkpoints with their hashes, and list the results instead",
    )
    arguments = parser.parse_args(argv)
    folders: list[Path] = arguments.run
    if arguments.checkpoints:
        _refuse_beside_checkpoints(arguments)
        listings = {folder: list_checkpoints(folder) for folder in folders}
        print("\n".join(format_listing(folder, listed) for folder, listed in listings.items()), flush=True)
        for listed in listings.values():
            refuse_damaged(listed)
        if listings[folders[-1]]:
            say_made(folders[-1], "none of its checkpoints is damaged", *_export(folders[-1]))
        return
    window = (arguments.from_batch, arguments.to_batch)
    if window[1] is not None and window[1] < window[0]:
        raise BadInput(f"--to-batch {window[1]} comes before --from-batch {window[0]}")
    part = window != (0, None)
    if (len(folders) > 1 or part) and not arguments.out and not (arguments.log or arguments.plot):
        raise BadInput(
            "several runs, or a part of one run, need --out PAGE.html; report.html in a run folder is for the whole run"
        )
    if part and arguments.watch:
        raise BadInput("--watch draws whole runs; leave out --from-batch and --to-batch")
    path = arguments.out or folders[0] / REPORT
    with hold(LOG if arguments.log else arguments.plot or path):
        _write(arguments, path, window)


def _write(arguments: Namespace, path: Path, window: tuple[int, int | None]) -> None:
    runs = [read_run(folder) for folder in arguments.run]
    if len({data.pretraining for data in runs}) > 1:
        kinds = ", ".join(f"{data.folder} {'pre-trained' if data.pretraining else 'fine-tuned'}" for data in runs)
        raise BadInput(f"pre-trained and fine-tuned runs cannot be compared: {kinds}")
    if arguments.log:
        for data in runs:
            append_log(data, LOG)
        say_made(LOG, f"{len(runs)} entries more", "python", "recipes/report.py", runs[0].folder)
    elif arguments.plot:
        figures = plots(runs, arguments.x, *window)
        if "Loss" not in figures:
            raise BadInput(f"{runs[0].folder} has logged no loss yet")
        save(figures["Loss"], arguments.plot, dpi=160)
        say_made(arguments.plot, "the loss curve", "python", "recipes/report.py", runs[0].folder)
    elif arguments.watch:
        try:
            watch(arguments.run, path, arguments.x)
        except KeyboardInterrupt:
            print(f"\n{path}")
    else:
        written = write_report(runs, path, arguments.x, *window)
        for data in runs:
            rows = summary(data)
            if (model := data.folder / "model").is_dir():
                rows["model"] = str(model)
            rows["report"] = str(written)
            width = max(map(len, rows))
            print(f"\n{data.folder}")
            print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))
        scores = ("--out", Path(f"{runs[0].folder}-scores"))
        evaluate = ("python", "recipes/evaluate.py", "--runs", *(data.folder for data in runs), *scores)
        say_made(written, "the report", *(_export(runs[0].folder) if runs[0].pretraining else evaluate))


def _export(run: Path) -> tuple[str | Path, ...]:
    """The words of the command that exports the model of a run."""
    return "python", "recipes/export.py", "--checkpoint", run, "--out", run / "model"


def _refuse_beside_checkpoints(arguments: Namespace) -> None:
    """Refuse options of the page beside --checkpoints, which writes no page."""
    given = [name for name in ("out", "from_batch", "to_batch", "watch", "log", "plot") if getattr(arguments, name)]
    given += ["x"] if arguments.x != BATCHES else []
    if given:
        raise BadInput(
            f"--{given[0].replace('_', '-')} cannot be used with --checkpoints, which writes no page; leave one out"
        )


if __name__ == "__main__":
    run(main)

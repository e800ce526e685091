"""The report of runs: the facts that it reads from run folders, and its page."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from patience import patience_s
from project import ROOT
from recipes import report
from recipes.runs import report_page
from recipes.runs.plots import POINTS, plots
from recipes.runs.reading import TRAIN_LOSS, read_run
from run_folders import MakeRun, at, full_run, losses, start


def test_what_a_crash_threw_away_is_not_shown(make_run: MakeRun):
    """The first start reached batch 9; the second resumed from batch 5 and ended at batch 7."""
    lines = [start(0), *losses(1, 10), start(5, 100), *(at(n, 100 + n, **{TRAIN_LOSS: 1.0}) for n in (6, 7))]
    data = read_run(make_run("a", lines))
    curve = dict(data.series[TRAIN_LOSS])
    assert sorted(curve) == [1, 2, 3, 4, 5, 6, 7] and curve[6] == curve[7] == 1.0 and curve[5] == 4.95
    assert data.starts == [0, 5] and data.trained_batches == 7
    # 9 s before, 7 s after, without the 91 s between them
    assert data.hours == pytest.approx((9 + 7) / 3600)


def test_a_loss_that_is_no_number_is_read(make_run: MakeRun):
    data = read_run(make_run("a", [start(0), *losses(1, 3), at(3, **{TRAIN_LOSS: math.nan}), at(4)]))
    assert math.isnan(data.series[TRAIN_LOSS][-1][1]) and max(data.places) == 4
    assert "Loss" in plots([data])


def test_a_cut_last_line_is_left_out_and_no_other(make_run: MakeRun):
    folder = make_run("a", [start(0), *losses(1, 4)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 4, "tok')
    assert read_run(folder).trained_batches == 3
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"\n{json.dumps(at(5))}\n")
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 5 is not JSON"):
        read_run(folder)


def test_a_spike_is_seen_among_many_batches(make_run: MakeRun):
    lines = [start(0), *losses(1, 20_000, 300.0)]
    lines[12_345][TRAIN_LOSS] = 777.0
    ax = plots([read_run(make_run("a", lines))])["Loss"].axes[0]
    band, line = ax.collections[0], ax.lines[0]
    assert len(line.get_xdata()) <= POINTS and band.get_paths()[0].vertices[:, 1].max() == 777.0
    closer = plots([read_run(make_run("b", lines))], first=12_300, last=12_400)["Loss"].axes[0]
    assert max(closer.lines[0].get_ydata()) == 777.0 and len(closer.lines[0].get_xdata()) == 101


@pytest.mark.parametrize("width", [1280, 390])
def test_two_runs_side_by_side(make_run: MakeRun, tmp_path: Path, visit: Callable[[str, int], Any], width: int):
    one = full_run(make_run, "warm", 5.0, "optimizer: {lr: 0.001}\nseed: 1\n")
    two = full_run(
        make_run, "a-run-with-a-rather-long-name-as-people-give-them", 6.0, "optimizer: {lr: 0.002}\nseed: 1\n"
    )
    page_path = tmp_path / "both.html"
    report.main([str(one), str(two), "--out", str(page_path), "--x", "tokens"])
    page = visit(page_path.as_uri(), width)
    for title in ("Loss", "Bits per byte of validation text", "Gradient", "Cost"):
        box = page.get_by_role("img", name=title, exact=True).bounding_box()
        assert box["width"] > 0.8 * min(width, 400) and box["height"] > 100
    assert page.locator("svg path").count() > 50
    text = page.inner_text("body")
    assert "optimizer.lr" in text and "0.002" in text and "seed" not in text  # only the differences
    assert "rewound 1 time" in text and "1 batch skipped because of NaN" in text and "restarted after batch 30" in text
    assert "is <b>text</b> 60" in text and not page.get_by_text("is <b>text</b> 30").first.is_visible()
    page.locator("summary").first.click()
    assert page.get_by_text("is <b>text</b> 30").first.is_visible()
    before = page_path.stat().st_mtime_ns
    report.main([str(one), str(two), "--out", str(page_path), "--x", "tokens"])
    assert page_path.stat().st_mtime_ns == before, "the same data, so nothing is written"


def test_watch_follows_a_run_to_its_end(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder, pages = make_run("live", [start(0)], finished=False), []
    page = tmp_path / "live.html"

    def sleep(seconds: float) -> None:
        pages.append(page.read_text())
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in losses(len(pages), len(pages) + 1))
        if len(pages) == 3:
            (folder / "run.json").write_text((folder / "run.json").read_text().replace("false", "true", 1))

    monkeypatch.setattr(time, "sleep", sleep)
    report_page.watch([folder], page, "batch")
    assert len(pages) == 3 and all('http-equiv="refresh"' in text for text in pages)
    assert "Nothing was logged yet" in pages[0] and "<svg" in pages[2]
    assert 'http-equiv="refresh"' not in page.read_text() and "3 of 100 batches" in page.read_text()


def test_watch_ends_with_ctrl_c(make_run: MakeRun):
    folder = make_run("live", [start(0), *losses(1, 4)], finished=False)
    command = [sys.executable, ROOT / "recipes/report.py", folder, "--watch"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert "Ctrl-C" in watch.stdout.readline() and "batch 3" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=patience_s())
    assert watch.returncode == 0 and not errors


def test_log_takes_each_run_once(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    log = tmp_path / "runs.md"
    log.write_text("# Runs\n\n## 2020-01-01: before\n")
    monkeypatch.setattr(report, "LOG", log)
    folder = full_run(make_run, "warm", 5.0, "seed: 1\n")
    report.main([str(folder), "--log"])
    text = log.read_text()
    assert text.startswith(
        "# Runs\n\n## 2020-01-01: before\n\n## 2023-11-14: warm\n\n`train.py yamls/smoke-cpu.yaml` on 2 ranks"
    )
    assert "| validation loss | 4.2000 nats/token (unigram 7.5000) |" in text and "| commit | 0123456789ab |" in text
    assert "| time | " in text and "0.10 rank-hours in all" in text and "2 starts" in text
    with pytest.raises(BadInput, match=r"already has an entry '2023-11-14: warm'"):
        report.main([str(folder), "--log"])
    with pytest.raises(BadInput, match="has logged no loss yet"):
        report.main([str(make_run("new", [start(0)])), "--log"])
    assert log.read_text() == text


def test_what_cannot_be_reported_is_refused(make_run: MakeRun, tmp_path: Path):
    one, tuned = make_run("a", [start(0)]), make_run("tuned", [start(0), at(1, **{"metrics/eval/Accuracy": 0.5})])
    record = json.loads((tuned / "run.json").read_text())
    record |= {"data": {"dev": {}}, "plan": {"batches": 3, "parameters": 4, "trained_parameters": 2}}
    (tuned / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="pre-trained and fine-tuned runs cannot be compared"):
        report.main([str(one), str(tuned), "--out", str(tmp_path / "x.html")])
    with pytest.raises(BadInput, match="need --out"):
        report.main([str(one), str(one)])
    with pytest.raises(BadInput, match="holds no run"):
        report.main([str(tmp_path)])
    report.main([str(tuned)])
    page = (tuned / "report.html").read_text()
    assert "Accuracy on dev" in page and "2 of them trained" in page
    report.main([str(one)])
    assert "Nothing was logged yet" in (one / "report.html").read_text()


def test_a_corpus_without_dates_that_left_nothing_out_says_so(make_run: MakeRun):
    """A plain text has no dates: no sentence of the page may have a gap or contain `None`."""
    folder = make_run("plain", [start(0), *losses(1, 3)])
    record = json.loads((folder / "run.json").read_text())
    record["data"]["corpus"] |= {"dates": {"first": None, "last": None}, "dropped": {}, "licenses": {}}
    (folder / "run.json").write_text(json.dumps(record))
    report.main([str(folder)])
    page = (folder / "report.html").read_text()
    assert "<p>Undated. Left out: nothing. Licences: unknown.</p>" in " ".join(page.split())
    assert "Dated None" not in page

"""The report in a browser: during a run, on a phone, with a single batch, with two equal runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from recipes import report
from recipes.runs.comparison import differences, losses_compared
from recipes.runs.plots import PANELS, plots
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS, TRAIN_LOSS, read_run
from recipes.runs.report_page import write_report
from run_folders import MakeRun, at, full_run, losses, start

Visit = Callable[[str, int], Any]
LONG_NAME = "a-run-with-a-rather-long-name-as-people-give-them"


def standing(page: Any) -> str:
    return " ".join(page.locator(".note").first.inner_text().split())


def test_what_is_open_outlasts_a_new_reading(make_run: MakeRun, tmp_path: Path, visit: Visit) -> None:
    folder, path = (
        full_run(make_run, "live", 5.0, "".join(f"x{n}: {'y' * 999}\n" for n in range(80))),
        tmp_path / "live.html",
    )
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("true", "false", 1))
    write_report([read_run(folder)], path, refresh_s=1.5)
    page = visit(path.as_uri(), 390)
    for name in ("configuration", "1 earlier: Thrombin"):
        page.get_by_text(name, exact=True).click()
    where = """() => {
        const heading = [...document.querySelectorAll("h2")].find((one) => one.textContent === "Corpus");
        return [heading.getBoundingClientRect().top, document.querySelector("pre").scrollLeft, visualViewport.scale];
    }"""
    page.evaluate("""() => {
        [...document.querySelectorAll("h2")].find((one) => one.textContent === "Corpus").scrollIntoView();
        scrollBy(0, 20);
        document.querySelector("pre").scrollTo(300, 0);
        getSelection().selectAllChildren(document.querySelector("h1"));
        window.reading = 1;
    }""")
    assert page.evaluate(where) == [pytest.approx(-20, abs=1), 300, 1]
    page.context.new_cdp_session(page).send("Emulation.setPageScaleFactor", {"pageScaleFactor": 2})
    before = page.evaluate(where)
    assert before[2] == 2
    with (folder / "texts.jsonl").open("a") as file:  # the content above grows, and there is one more section to open
        for prompt in ("Thrombin", "Insulin"):
            text = {"batch": 61, "tokens": 1, "prompt": prompt, "text": " more" * 200}
            file.write(f"{json.dumps(text)}\n")
    write_report([read_run(folder)], path, refresh_s=1.5)
    page.wait_for_timeout(2500)
    assert page.evaluate("window.reading") == 1, "not while text is marked"
    with page.expect_event("load"):
        page.evaluate("getSelection().removeAllRanges()")
    assert page.evaluate("window.reading") is None and "Insulin" in page.inner_text("body")
    assert page.evaluate(where) == pytest.approx(before, abs=1)
    opened = page.locator("details[open] > summary").all_inner_texts()
    assert opened == ["2 earlier: Thrombin", "configuration"]


def test_where_a_run_stands(make_run: MakeRun, visit: Visit) -> None:
    """Also if the run ended without a message, and nobody has written the page again."""
    begun_s = time.time() - 600
    lines = [start(0, begun_s), *(at(n, begun_s + 6 * n, **{TRAIN_LOSS: 5.0}) for n in range(1, 101))]
    folder = make_run("live", lines, finished=False)
    record = json.loads((folder / "run.json").read_text())
    record["plan"]["batches"] = 1000
    (folder / "run.json").write_text(json.dumps(record))
    page_path = write_report([read_run(folder)], folder / "report.html")
    assert " UTC" in page_path.read_text(), "without JavaScript, too"
    page = visit(page_path.as_uri(), 1280)
    assert "batch 100 of 1,000, " in standing(page) and standing(page).endswith("s ago; about 1.5 h left")
    page.clock.install()
    page.reload()
    page.clock.run_for(3 * 3600 * 1000)
    assert standing(page).endswith("batch 100 of 1,000, 3 h ago: the run hangs or has ended")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("false", "true", 1))
    write_report([read_run(folder)], page_path)
    page.reload()
    assert standing(page) == "finished; 1 start"


def test_time_left_is_of_the_present_start(make_run: MakeRun) -> None:
    """The second start is ten times as fast as the first; the night between them does not count."""
    first = [start(0, 0), *(at(n, 100 * n, **{TRAIN_LOSS: 5.0}) for n in range(1, 41))]
    second = [start(30, 50_000), *(at(n, 50_000 + 10 * (n - 30), **{TRAIN_LOSS: 5.0}) for n in range(31, 61))]
    data = read_run(make_run("a", [*first, *second], finished=False))
    assert data.left_s == pytest.approx(10 * 40) and data.left == "about 6.7 min left" and data.pause_s == 10
    assert read_run(make_run("begun", [start(0, 5)], finished=False)).left == ""
    assert read_run(make_run("resumed", [*first, start(30, 50_000)], finished=False)).left == ""
    assert read_run(make_run("done", first)).left == ""


def colored(figure: Any) -> int:
    """Number of pixels in the axes that are not grey."""
    figure.canvas.draw()
    pixels, box = np.asarray(figure.canvas.buffer_rgba()).astype(int), figure.axes[0].get_window_extent()
    inside = pixels[len(pixels) - int(box.y1) : len(pixels) - int(box.y0), int(box.x0) : int(box.x1), :3]
    return int((np.ptp(inside, axis=2) > 30).sum())


METRICS = [TRAIN_LOSS, EVAL_BITS, f"{EVAL_BITS}/PubMed Central", *(metric for _, metric, _ in PANELS)]


@pytest.mark.parametrize("values", [[2.0], [2.0, float("nan"), 3.0, float("nan")], [float("nan"), 2.0, float("inf")]])
def test_a_single_value_is_seen(make_run: MakeRun, values: list[float]) -> None:
    for metric in METRICS:
        lines = [at(batch, **{metric: value}) for batch, value in enumerate(values, 1)]
        folder = make_run(metric.replace("/", " "), [start(0), *lines])
        ((title, figure),) = plots([read_run(folder)]).items()
        assert colored(figure) > 5, title
        pyplot.close(figure)


@pytest.mark.parametrize("names", [["a"], ["a", LONG_NAME], [f"{n}-{LONG_NAME}" for n in range(8)]], ids=len)
def test_no_legend_lies_on_the_axes(make_run: MakeRun, names: list[str]) -> None:
    runs = [read_run(full_run(make_run, name, 5.0, "seed: 1\n")) for name in names]
    for title, figure in plots(runs).items():
        figure.canvas.draw()
        axes, legends = figure.axes[0].get_tightbbox(), figure.legends
        assert figure.axes[0].get_legend() is None and len(legends) == (len(names) > 1 or title[:4] in ("Loss", "Bits"))
        assert figure.axes[0].get_window_extent().height > 120, title
        for box in (legend.get_window_extent() for legend in legends):
            assert box.y1 <= axes.y0 and box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1, title


def test_it_is_readable(make_run: MakeRun, tmp_path: Path, visit: Visit) -> None:
    runs = [full_run(make_run, name, 5.0, f"seed: {n}\n") for n, name in enumerate(("a", LONG_NAME, "b" * 60))]
    card = {"bytes_per_token": 4.5, "tokens_per_word": 1.2, "words": {"x": [9, "electro|encephalo|graphy" * 3]}}
    (runs[0] / "tokenizer/scorecard.json").write_text(json.dumps(dict.fromkeys(("this", "gpt2", LONG_NAME), card)))
    page = visit(write_report([read_run(run) for run in runs], tmp_path / "page.html").as_uri(), 1280)
    assert not page.evaluate("[...document.querySelectorAll('table')].filter((one) => !one.closest('.wide')).length")
    for width in (360, 390, 700, 1024, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = page.evaluate("""() => [...document.querySelectorAll("svg text")].map((text) => {
            const {a, b} = text.getScreenCTM(), box = text.getBoundingClientRect();
            const around = text.closest("svg").getBoundingClientRect();
            return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b),
                Math.max(around.left - box.left, box.right - around.right,
                    around.top - box.top, box.bottom - around.bottom)];
        })""")
        assert len(texts) > 100
        assert not [(text, px, outside) for text, px, outside in texts if px < 10 or outside > 2], width
        narrow = page.evaluate("[...document.querySelectorAll('.runs td + td')].filter((one) => one.clientWidth < 100)")
        assert not narrow, width


def test_equal_runs_differ_in_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    lines = [start(0), *losses(1, 40), at(40, **{EVAL_LOSS: 4.0})]
    runs = {name: make_run(name, lines, f"run_name: {name}\nrun_dir: runs/{name}\nseed: 1\n") for name in "abcdef"}
    (runs["b"] / "config.yaml").write_text("run_name: b\nrun_dir: runs/b\nseed: 2\n")
    for name, key, value in (("c", "commit", "fedcba"), ("d", "world_size", 8), ("e", "versions", {"torch": "2.8"})):
        record = json.loads((runs[name] / "run.json").read_text())
        record["starts"][-1][key] = value
        (runs[name] / "run.json").write_text(json.dumps(record))
    record = json.loads((runs["f"] / "run.json").read_text())
    (runs["f"] / "run.json").write_text(json.dumps({**record, "identity": {"shards_sha256": "f" * 64}}))
    runs["g"] = make_run("g", [start(0), *losses(1, 30), at(30, **{TRAIN_LOSS: 4.700000000000001}), *losses(31, 40)])
    (runs["g"] / "config.yaml").write_text("run_name: g\nrun_dir: runs/g\nseed: 1\n")
    runs["h"] = make_run("h", lines[:20], "run_name: h\nrun_dir: runs/h\nseed: 1\n")

    read = {name: read_run(folder) for name, folder in runs.items()}
    for one, two in combinations("abcdef", 2):
        assert differences([read[one], read[two]]), f"{one} and {two}"
    assert (
        losses_compared([read["a"], read["g"]]) == "The training losses differ in 1 of 39 batches, first in batch 30."
    )
    report.main([str(runs["a"]), str(runs["h"]), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "Only the names and folders differ: settings, data, code and hardware are equal." in page
    assert "The training losses of the 19 batches that all runs have are equal to the last bit." in page

"""Every field of a model card and a report depends on a fact: a test changes the fact, and the page changes with it.

The fields are read from the templates: a new field fails here until its cause is listed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from project import ROOT
from recipes.dataloading import skipped_data
from recipes.runs import model_card, report_page
from recipes.runs.model_card import Stated, write_model_card
from recipes.runs.plots import POINTS
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS, SPEED, TRAIN_LOSS, read_run, summary
from template_fields import template_fields

RUN = ROOT / "tests/data/before_rooms/run"
FACTS = {"dtype": "float32", "n_parameters": 11_904, "n_positions": 32, "tied": True}
Change = Callable[[Path], object]


def put(content: Any, path: str, value: Any) -> None:
    """Set the value at `a.b.0.c`."""
    *steps, last = path.split(".")
    for step in steps:
        content = content[int(step) if isinstance(content, list) else step]
    content[last] = value


def record(path: str, value: Any) -> Change:
    def change(run: Path) -> None:
        content = json.loads((run / "run.json").read_text())
        put(content, path, value)
        (run / "run.json").write_text(json.dumps(content))

    return change


def config(before: str, after: str) -> Change:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert before in text, before
        (run / "config.yaml").write_text(text.replace(before, after))

    return change


def log(**line: Any) -> Change:
    def change(run: Path) -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"batch": 12, "tokens": 1536, "time_s": 1795846791, **line}) + "\n")

    return change


def write(name: str, content: Any) -> Change:
    return lambda run: (run / name).write_text(content if isinstance(content, str) else json.dumps(content))


def resumed(run: Path) -> None:
    """A second run, with another learning rate."""
    content = json.loads((run / "run.json").read_text())
    again = {**content["starts"][0], "batch": 6, "allowed_differences": ["optimizer.lr: 0.02 -> 0.01"]}
    write("run.json", {**content, "starts": [*content["starts"], again]})(run)


CHANGED = "from batch 6: optimizer.lr: 0.02 -> 0.01"
CORPUS, COUNTS = "data.corpus", "data.counts"
RECORDED = json.loads((RUN / "run.json").read_text())["data"]
MIXED = {"shards": "old", "shards_sha256": "feed" * 16, "share": 0.25, **{k: RECORDED[k] for k in ("corpus", "counts")}}
STATED: dict[str, Any] = {"stated": Stated(device_watts=400, grid_g_per_kwh=250)}
RESULT = {"task": {}, "dataset": {}, "metrics": []}
SCORE = {"task": "mmlu", "how": "0-shot, letter", "score": "25.0 [20.0, 30.0]", "result": RESULT}
HOURS = (
    '{"event": "start", "batch": 0, "tokens": 0, "time_s": 100, "ranks": 8}\n'
    '{"batch": 12, "tokens": 1, "time_s": 7300}\n{"batch": 13, "tokens": 1, "time_s": 9000}\n'
)
SOURCES = {"PubMed Abstracts": {"documents": 77, "bytes": 7_000}}
# Model card: field -> its cause (a change of the run folder, or an argument), and the resulting page.
OF_THE_CARD: dict[str, tuple[Change | dict[str, Any], str]] = {
    "about_pubmed": (record(f"{CORPUS}.counts.val.sources", SOURCES), "PubMed is a trademark of the NLM"),
    "changed": (resumed, f"| changed on resuming | {CHANGED} |"),
    "checkpoint": ({"weights": RUN / "checkpoints/ep0-ba11"}, "this is checkpoint ep0-ba11"),
    "commits": (record("starts.0.commit", "0123abc"), "commit 0123abc"),
    "corpus.dates.first": (record(f"{CORPUS}.dates.first", "1976-01"), "dated 1976-01 to 2021-03"),
    "corpus.dates.last": (record(f"{CORPUS}.dates.last", "2022-01"), "dated 2021-03 to 2022-01"),
    "corpus.documents": (record(f"{CORPUS}.counts.val.documents", 20), "121 documents in train and val"),
    "corpus.licenses.*": (record(f"{CORPUS}.licenses", {"unknown": 121}), "unknown: 121"),
    "corpus.licenses.key": (record(f"{CORPUS}.licenses", {"CC BY": 120}), "CC BY: 120"),
    "corpus.sources.*": (record(f"{CORPUS}.counts.val.sources.text.documents", 20), "121 of text"),
    "corpus.sources.key": (record(f"{CORPUS}.counts.val.sources", SOURCES), "101 of text, 77 of PubMed Abstracts"),
    "corpus.splits": (record(f"{CORPUS}.counts.recent", {"documents": 0, "sources": {}}), "train and val and recent"),
    "differences.*": ({"differences": {"eager": 2e-7}}, "eager 2.0e-07"),
    "differences.key": ({"differences": {"sdpa": 1e-7}}, "sdpa 1.0e-07"),
    "dtype": ({"facts": {**FACTS, "dtype": "bfloat16"}}, "in bfloat16"),
    f"evaluation.{EVAL_BITS}": (log(**{EVAL_BITS: 1.75}), "1.7500 bits per byte"),
    f"evaluation.{EVAL_LOSS}": (log(**{EVAL_LOSS: 3.25}), "3.2500 nats per token"),
    "device_watts": (STATED, "x 400 W a device"),
    "grams": (STATED, "g of CO2-equivalent: device-hours"),
    "grid_g_per_kwh": (STATED, "/ 1000 x 250 g a kWh"),
    "hardware": (record("starts.0.gpus", ["NVIDIA H100"]), "most recently on 1 × NVIDIA H100"),
    "license": ({"run": None}, "Find that licence before"),
    "metadata": ({"stated": Stated(base_model="owner/name")}, "base_model: owner/name"),
    "max_length": ({"facts": {**FACTS, "n_positions": 40}}, "max_length=40"),
    "mixed.*": (record("data.mix", {"old": MIXED}), "25.00% of a pass, of 101 documents, 4,160 tokens; shards"),
    "mixed.key": (record("data.mix", {"pile": MIXED}), "| mixed in: pile |"),
    "name": (config("run_name: old", "run_name: mine"), "# mine"),
    "n_parameters": ({"facts": {**FACTS, "n_parameters": 12_345}}, "12,345 parameters"),
    "n_positions": ({"facts": {**FACTS, "n_positions": 1024}}, "at most 1024 tokens"),
    "origin.path": (record("origin", {"path": "old/model", "sha256": "0"}), "weights | old/model, sha256 0 |"),
    "origin.sha256": (record("origin", {"path": "old", "sha256": "abc123"}), "weights | old, sha256 abc123 |"),
    f"run.{COUNTS}.train.documents": (record(f"{COUNTS}.train.documents", 102), "102 documents"),
    f"run.{COUNTS}.train.tokens": (record(f"{COUNTS}.train.tokens", 4_161), "4,161 tokens"),
    "run.identity.shards_sha256": (record("identity.shards_sha256", "abc123"), "shards manifest abc123"),
    "run.plan.batches": (record("plan.batches", 99), "of 99 batches"),
    "run.plan.tokens_per_batch": (record("plan.tokens_per_batch", 130), "batches of 130 tokens"),
    "scores.*.how": ({"scores": [SCORE]}, "| mmlu | 0-shot, letter |"),
    "scores.*.score": ({"scores": [SCORE]}, "| 25.0 [20.0, 30.0]"),
    "scores.*.task": ({"scores": [SCORE]}, "| mmlu |"),
    "spent.device_hours": (write("metrics.jsonl", HOURS), "= 16 device-hours"),
    "spent.hours": (write("metrics.jsonl", HOURS), "| 2 hours"),
    "seen.batch": ({"batch": 11}, "in 11 of 12 batches"),
    "seen.passes": (record("plan.train_tokens", 768), "= 2.00 passes"),
    "seen.tokens": ({"batch": 11}, "1,408 tokens"),
    "tied": ({"facts": {**FACTS, "tied": False}}, "11,904 parameters, in"),
    "cfg.model.n_embd": (config("n_embd: 16", "n_embd: 18"), "18 wide"),
    "cfg.model.n_head": (config("n_head: 2", "n_head: 4"), "4 heads"),
    "cfg.model.n_layer": (config("n_layer: 2", "n_layer: 3"), "3 layers"),
    "cfg.model.n_positions": (config("n_positions: 32", "n_positions: 64"), "64 positions"),
    "cfg.model.scale_attn_by_inverse_layer_idx": (config("layer_idx: true", "layer_idx: false"), "| plain |"),
    "cfg.model.vocab_size": (config("vocab_size: 300", "vocab_size: 301"), "301 entries"),
    "cfg.optimizer.betas": (config("- 0.95", "- 0.99"), "betas [0.9, 0.99]"),
    "cfg.optimizer.eps": (config("eps: 1.0e-08", "eps: 1.0e-06"), "eps 1e-06"),
    "cfg.optimizer.lr": (config("lr: 0.01", "lr: 0.02"), "lr 0.02"),
    "cfg.optimizer.weight_decay": (config("weight_decay: 0.00015", "weight_decay: 0.1"), "weight decay 0.1"),
    "cfg.precision": (config("device: cpu\nprecision: fp32", "device: gpu\nprecision: amp_bf16"), "amp_bf16"),
    "cfg.scheduler.alpha_f": (config("alpha_f: 0.1", "alpha_f: 0.3"), "final share 0.3"),
    "cfg.scheduler.name": (config("scheduler:\n", "scheduler:\n  name: linear\n"), "| schedule | linear"),
    "cfg.scheduler.t_warmup": (config("t_warmup: 2ba", "t_warmup: 3ba"), "warm-up 3ba"),
    "cfg.seed": (config("seed: 17", "seed: 18"), "| seed | 18 |"),
}  # fmt: skip


def card(run: Path, arguments: dict[str, Any]) -> str:
    given: dict[str, Any] = {
        "folder": run.parent, "weights": run / "checkpoints/ep0-ba12", "run": run, "batch": 12,
        "differences": {"eager": 1e-7}, "facts": FACTS,
    }  # fmt: skip
    write_model_card(**{**given, **arguments})
    return (run.parent / "README.md").read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUN, tmp_path / "run")


def test_every_field_of_the_model_card_is_traced() -> None:
    assert template_fields(model_card.TEMPLATE) == OF_THE_CARD.keys()


@pytest.mark.parametrize("field", OF_THE_CARD)
def test_the_model_card_follows(field: str, run: Path) -> None:
    cause, says = OF_THE_CARD[field]
    before = card(run, {})
    if not isinstance(cause, dict):
        cause(run)
    after = card(run, cause if isinstance(cause, dict) else {})
    assert says in " ".join(after.split()) and says not in " ".join(before.split())


def tuned(run: Path) -> None:
    """The record of a fine-tuning run, without a corpus and with LoRA."""
    record("data", {"dev": 1})(run)
    record("plan.trained_parameters", 7)(run)


TEXT = {"batch": 12, "tokens": 1536, "prompt": "cytitis", "text": ")"}
SAMPLE = {"prompt": "Aspirin", "text": " is", "stopped": True}
SCORES = json.loads((RUN / "tokenizer/scorecard.json").read_text())


def scores(**changes: Any) -> Change:
    return write("tokenizer/scorecard.json", {"this": {**SCORES["this"], **changes}})


REWIND = {"from_batch": 12, "to_batch": 6, "losses": [9.0], "limit": 8.0, "windows": [[0, 24, 28]]}
R, C = "runs.*.", "runs.*.record.data.corpus"
# Report: field -> its cause, and the resulting page.
OF_THE_REPORT: dict[str, tuple[Change, str]] = {
    f"{R}config": (config("seed: 17", "seed: 18"), "seed: 18"),
    f"{R}name": (lambda run: run.rename(run.with_name("mine")), "<h1>mine</h1>"),
    f"{R}pretraining": (tuned, "11,904, 7 of them trained"),
    f"{R}record": (record("starts.0.python", "3.99"), "3.99"),
    f"{C}.counts.key": (record(f"{CORPUS}.counts.recent", {"documents": 1, "sources": {"text": {"documents": 1,
                        "bytes": 2}}}),
                        "<tr><td>recent</td><td>text</td>"),
    f"{C}.counts.*.sources.key": (record(f"{CORPUS}.counts.val.sources", SOURCES), "<td>PubMed Abstracts</td>"),
    f"{C}.counts.*.sources.*.documents": (record(f"{CORPUS}.counts.val.sources", SOURCES), "<td>77</td>"),
    f"{C}.counts.*.sources.*.bytes": (record(f"{CORPUS}.counts.val.sources", SOURCES), "<td>7,000</td>"),
    f"{C}.dates.first": (record(f"{CORPUS}.dates.first", "1976"), "Dated 1976 to 2021-03."),
    f"{C}.dates.last": (record(f"{CORPUS}.dates.last", "2022"), "Dated 2021-03 to 2022."),
    f"{C}.dropped.*": (record(f"{CORPUS}.dropped", {"same text": 16}), "Left out: 16 same text."),
    f"{C}.dropped.key": (record(f"{CORPUS}.dropped", {"retracted": 16}), "Left out: 16 retracted."),
    f"{C}.licenses.*": (record(f"{CORPUS}.licenses", {"unknown": 121}), "unknown: 121."),
    f"{C}.licenses.key": (record(f"{CORPUS}.licenses", {"CC BY": 120}), "CC BY: 120."),
    f"{R}record.data.counts.key": (record(f"{COUNTS}.recent", {"documents": 1, "samples": 1, "tokens": 1,
                                   "dropped_tokens": 1, "bytes": 1}), "<tr><td>recent</td><td>1</td>"),
    f"{R}record.data.counts.*.documents": (record(f"{COUNTS}.val.documents", 2_001), "<td>2,001</td>"),
    f"{R}record.data.counts.*.samples": (record(f"{COUNTS}.val.samples", 2_002), "<td>2,002</td>"),
    f"{R}record.data.counts.*.tokens": (record(f"{COUNTS}.val.tokens", 2_003), "<td>2,003</td>"),
    f"{R}record.data.counts.*.dropped_tokens": (record(f"{COUNTS}.val.dropped_tokens", 204), "<td>204</td>"),
    f"{R}record.data.counts.*.bytes": (record(f"{COUNTS}.val.bytes", 2_005), "<td>2,005</td>"),
    f"{R}record.finished": (record("finished", False), "not finished"),
    f"{R}rewinds": (lambda run: skipped_data.append(run, REWIND, {run: ([1], [])}), "rewound 1 time "),
    f"{R}samples.*.prompt": (write("samples.json", {"samples": [{**SAMPLE, "prompt": "Insulin"}]}), "<b>Insulin</b>"),
    f"{R}samples.*.text": (write("samples.json", {"samples": [{**SAMPLE, "text": " was"}]}), "</b> was<"),
    f"{R}samples.*.stopped": (write("samples.json", {"samples": [{**SAMPLE, "stopped": False}]}), "</b> is …<"),
    f"{R}scorecard.*": (write("tokenizer/scorecard.json", {**SCORES, "gpt2": SCORES["this"]}), "<th>gpt2</th>"),
    f"{R}scorecard.*.*": (scores(bytes_per_token=4.5),
                          "<td>4.5</td>"),
    f"{R}scorecard.*.words.*": (scores(words={"ECG": [1, 2]}),
                                "<td>1 (2)</td>"),
    f"{R}scorecard.this.words.*": (scores(words={"DNA": [1, 2]}),
                                   "tokens of DNA"),
    f"{R}skipped": (log(**{"guard/skipped_batches": 1}), "1 batch skipped because of NaN"),
    f"{R}starts": (log(event="start"), "2 starts (restarted after batch 12)"),
    f"{R}texts.key": (write("texts.jsonl", f"{json.dumps({**TEXT, 'prompt': 'DNA', 'batch': 1})}\n"
                            f"{json.dumps({**TEXT, 'prompt': 'DNA'})}\n"), "1 earlier: DNA"),
    f"{R}texts.*.*.batch": (write("texts.jsonl", f"{json.dumps({**TEXT, 'batch': 1_001})}\n"), "batch 1,001"),
    f"{R}texts.*.*.tokens": (write("texts.jsonl", f"{json.dumps({**TEXT, 'tokens': 1_002})}\n"), "1,002 tokens"),
    f"{R}texts.*.*.prompt": (write("texts.jsonl", f"{json.dumps({**TEXT, 'prompt': 'DNA'})}\n"), "<b>DNA</b>"),
    f"{R}texts.*.*.text": (write("texts.jsonl", f"{json.dumps({**TEXT, 'text': ' codes'})}\n"), "</b> codes<"),
    "summaries.*": (log(**{f"{EVAL_BITS}/Pile": 1.5}), "<td>… of Pile</td>"),
    "summaries.*.*": (log(**{EVAL_LOSS: 3.25}), "3.2500 nats/token"),
    "thinned": (write("metrics.jsonl", "".join(
        f'{{"batch": {n}, "tokens": {n}, "time_s": {n}, "{TRAIN_LOSS}": 1.0}}\n' for n in range(POINTS + 2))),
        "Long curves are drawn as"),
}  # fmt: skip
# Fields that depend on arguments, two runs, the drawing or the clock have their own tests, here or in
# test_report_page.py.
BESIDE = {"key", "refresh_s", "figures.key", "figures.*", "differences.key", "differences.*.*", "losses"}
BESIDE |= {f"standings.*.{fact}" for fact in ("at", "done", "left", "patience_s", "time_s")}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the drawing of curves, which takes a second per page."""
    monkeypatch.setattr(report_page, "plots", lambda *_: {})


def page(*runs: Path, **arguments: Any) -> str:
    path = runs[0].parent / "page.html"
    path.unlink(missing_ok=True)
    return report_page.write_report([read_run(run) for run in runs], path, **arguments).read_text()


def test_every_field_of_the_report_is_traced() -> None:
    assert template_fields(report_page.TEMPLATE) == OF_THE_REPORT.keys() | BESIDE


@pytest.mark.parametrize("field", OF_THE_REPORT)
@pytest.mark.usefixtures("undrawn")
def test_the_report_follows(field: str, run: Path) -> None:
    cause, says = OF_THE_REPORT[field]
    write("samples.json", {"samples": [SAMPLE]})(run)
    before = page(run)
    moved = cause(run)
    after = page(moved if isinstance(moved, Path) else run)
    assert says in " ".join(after.split()) and says not in " ".join(before.split())


@pytest.mark.usefixtures("undrawn")
def test_the_report_follows_its_arguments_and_what_differs(run: Path) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    alone, both = page(run), page(run, other)
    assert (
        "What differs" not in alone
        and "Only the names and folders differ" in both
        and 'http-equiv="refresh"' not in alone
    )
    assert '<meta http-equiv="refresh" content="7.5">' in page(run, refresh_s=7.5)
    config("seed: 17", "seed: 18")(other)
    assert "<tr><td>seed</td><td>17</td><td>18</td></tr>" in page(run, other)
    log(**{TRAIN_LOSS: 1.0})(run)
    keys = [text.partition('name="key" content="')[2][:64] for text in (alone, both, page(run))]
    assert len({*keys}) == 3 and all(keys)


def test_the_curves_follow_the_metrics(run: Path) -> None:
    def curve(text: str, title: str) -> str:
        return text.partition(f'aria-label="{title}"')[2].partition("</figure>")[0]

    (run / "metrics.jsonl").write_text("")  # two of all curves, because each takes a second
    log(**{"cost/gpu_hours": 4.0})(run)
    before = page(run)
    log(batch=13, **{"cost/gpu_hours": 5.0, "memory/peak_reserved_mem": 1.0})(run)
    after = page(run)
    assert curve(before, "Cost") != curve(after, "Cost") and not curve(before, "Memory") and curve(after, "Memory")


# Row of the table -> its cause, and the resulting text.
OF_THE_SUMMARY: dict[str, tuple[Change, str]] = {
    "documents": (record(f"{COUNTS}.val.documents", 20), "101 train + 20 val"),
    "tokens": (record(f"{COUNTS}.train.tokens", 4_161), "4,161 train + 800 val"),
    "bytes per token": (record(f"{COUNTS}.val.bytes", 8_220), "10.000 (val, end-of-text counted)"),
    "parameters": (record("plan.parameters", 12_345), "12,345"),
    "trained on": (log(batch=14, **{TRAIN_LOSS: 1.0}), "1,792 tokens in 14 of 12 batches"),
    "validation loss": (record("data.baselines.unigram_nats_per_token", 9.0), "4.2653 nats/token (unigram 9.0000)"),
    "bits per byte": (log(**{EVAL_BITS: 1.5}), "1.5000 (unigram 0.9794, xz -9 1.6347)"),
    "… of Pile": (log(**{f"{EVAL_BITS}/Pile": 1.5}), "1.5000"),
    "speed": (lambda run: [log(batch=n, **{SPEED: 7e6})(run) for n in range(1, 13)], "7,000,000 tokens/s (median)"),
    "time": (log(time_s=1795846790.432 + 7200), "2.0 h of training, 0.00 rank-hours in all"),
    "cost": (log(**{"cost/total": 12.5}), "12.50"),
    "hardware": (record("starts.0.gpus", ["H100"]), "1 × H100"),
    "changed on resuming": (resumed, CHANGED),
    "commit": (record("starts.0.uncommitted", ["x"]), "6e66e8e92ce1 with uncommitted changes"),
}  # fmt: skip


@pytest.mark.parametrize("row", OF_THE_SUMMARY)
def test_the_summary_follows(row: str, run: Path) -> None:
    before, (cause, says) = summary(read_run(run)), OF_THE_SUMMARY[row]
    cause(run)
    after = summary(read_run(run))
    assert after[row] == says != before.get(row)
    assert {*before, *after} <= OF_THE_SUMMARY.keys()

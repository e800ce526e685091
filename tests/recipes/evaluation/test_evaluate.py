"""Scores, perplexity and leaks equal independent computations."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import warm
from data_prep.common.errors import BadInput
from data_prep.filtering.corpus_format import read_documents
from data_prep.filtering.decontamination import GRAM_WORDS
from data_prep.sources.document import Document
from data_prep.tasks.registry import load
from data_prep.tasks.task_set import Question, TaskSet, part_by_hash
from data_prep.tasks.token_classification import SCHEMES, count
from last_line import next_command
from patience import patience_s
from project import ROOT
from recipes import evaluate, export
from recipes.evaluation import log_likelihood, perplexity
from recipes.evaluation.answers import check_answerable
from recipes.evaluation.contamination import find_leaks
from recipes.evaluation.evaluate_model import OFFLINE
from recipes.evaluation.lm_eval_harness import count_cut, score_choices
from recipes.evaluation.log_likelihood import Window, document_windows, log_probs
from recipes.evaluation.prompts import Prompt, make_prompts, write_harness_task
from recipes.finetuning import heads
from recipes.finetuning.heads import FineTuned
from recipes.finetuning.kind import Encoder
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import TaskHead
from recipes.modeling.model_folder import load_pretrained
from recipes.scoring.bootstrap import bootstrap, measures, over_seeds
from recipes.scoring.results_table import percent

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of recipes/evaluate.py, shortened for tests."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def make_model(tiny_tokenizer: Path, tmp_path: Path) -> MakeModel:
    """`make_model(scaled)`: a random GPT-2 of 64 positions; scaled: with attention scaled by layer, like BioMedLM."""

    def make(scaled: bool, **changes: Any) -> Path:
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "vocab_size": 600, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2,
            "bos_token_id": 599, "eos_token_id": 599, "use_cache": not scaled,
            "scale_attn_by_inverse_layer_idx": scaled,
        }  # fmt: skip
        folder = tmp_path / ("scaled" if scaled else "plain")
        GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).save_pretrained(folder, safe_serialization=not scaled)
        AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(folder)
        return folder

    return make


@torch.no_grad()
def by_hand(folder: Path, inputs: tuple[int, ...], targets: tuple[int, ...]) -> float:
    """Σ log p of one window alone, by transformers' eager path in fp64."""
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", torch_dtype=torch.float64).eval()
    logits = model(input_ids=torch.tensor([inputs])).logits[0, -len(targets) :]
    return -F.cross_entropy(logits, torch.tensor(targets), reduction="sum").item()


@pytest.mark.parametrize("scaled", [False, True])
def test_log_probs_are_those_of_the_eager_model(scaled: bool, make_model: MakeModel) -> None:
    folder = make_model(scaled)
    model, _ = load_pretrained(folder)
    draw = random.Random(1)
    windows = []
    for n in (3, 64, 17, 17, 40, 5, 64):
        inputs = tuple(draw.choices(range(599), k=n))
        windows.append(Window(inputs, (*inputs[n // 2 + 1 :], 7)))
    expected = [by_hand(folder, window.inputs, window.targets) for window in windows]
    for batch_size in (1, 3, 8):
        assert log_probs(model, windows, batch_size) == pytest.approx(expected, rel=1e-4)


def test_a_window_does_not_feel_its_batch(make_model: MakeModel) -> None:
    """Right padding and other examples of the batch change only the last bits."""
    model, _ = load_pretrained(make_model(True))
    window = Window((5, 6, 7), (6, 7, 8))
    others = [Window(tuple(range(begin, begin + 60)), (3,)) for begin in range(1, 8)]
    alone = log_probs(model, [window], 1)[0]
    assert log_probs(model, [*others, window], 8)[-1] == pytest.approx(alone, rel=1e-5)


def test_the_head_in_parts_is_the_head(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_pretrained(make_model(False))
    window = [Window(tuple(range(60)), tuple(range(1, 61)))]
    whole = log_probs(model, window, 1)
    monkeypatch.setattr(log_likelihood, "HEAD_ROWS", 7)
    assert log_probs(model, window, 1) == pytest.approx(whole, rel=1e-6)


def test_document_windows_predict_each_token_once() -> None:
    for n in (1, 9, 10, 11, 25, 30):
        ids = list(range(100, 100 + n))
        windows = list(document_windows(ids, 599, 10))
        assert [token for window in windows for token in window.targets] == ids
        text = [599, *ids]
        for window in windows:
            assert len(window.inputs) <= 10 and len(window.targets) <= len(window.inputs)
            end = text.index(window.inputs[len(window.inputs) - 1]) + 1
            assert list(window.inputs) == text[end - len(window.inputs) : end] and text[end] == window.targets[-1]
        assert all(len(window.inputs) == 10 for window in windows[1:]), (
            "later windows have the longest possible context"
        )


def score(model: Any, tokenizer: Any, prompts: list[Prompt], batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Through the task files, as in recipes/evaluate.py."""
    write_harness_task(folder, "toy", prompts, folder)
    return score_choices(model, tokenizer, prompts, folder / "toy.yaml", batch_size)


def questions(n: int, subject: str = "") -> list[Question]:
    draw = random.Random(n)

    def text(most: int) -> str:
        return " ".join(draw.choices(["cyt", "gen", "hep", "lip", "myo", "neu"], k=draw.randint(1, most)))

    def question(i: int) -> Question:
        options = (text(9), text(9), text(9), text(9))
        return Question(f"{subject}{i}", text(6), options, i % 4, f"line {i}", subject=subject)

    return [question(i) for i in range(n)]


def test_prompts_have_the_shots_of_their_subject() -> None:
    test = [*questions(2, "a"), *questions(2, "b")]
    dev = [Question(f"dev {s}{i}", f"{s}{i}?", ("w", "x", "y", "z"), 2, "", subject=s) for s in "ab" for i in range(3)]
    task = TaskSet("mmlu", "choice", {"dev": dev, "test": test}, {})
    prompts = make_prompts(task, "letter", 2, None)
    assert prompts[3].text.startswith("Question: b0?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nQuestion: b1?")
    assert prompts[3].text.endswith("\nAnswer:") and prompts[3].choices == ("A", "B", "C", "D")
    cloze = make_prompts(task, "option", 1, 1)
    assert len(cloze) == 1 and cloze[0].choices == test[0].options
    assert cloze[0].text == f"Question: a0?\nAnswer: y\n\nQuestion: {test[0].question}\nAnswer:"
    with pytest.raises(BadInput, match="--shots 4: mmlu has only 3 questions"):
        make_prompts(task, "letter", 4, None)
    with pytest.raises(BadInput, match="--shots: mmlu has no train or dev"):
        make_prompts(TaskSet("mmlu", "choice", {"test": test}, {}), "letter", 1, None)


def test_scores_are_right_where_the_model_is_sure(make_model: MakeModel, tmp_path: Path) -> None:
    """A model that always predicts one token: the option with that token wins, in any position."""
    folder = make_model(False)
    model, tokenizer = load_pretrained(folder)
    task = TaskSet("toy", "choice", {"test": questions(20)}, {})
    prompts = make_prompts(task, "letter", 0, None)
    letter = tokenizer(" C")["input_ids"]
    torch.nn.init.zeros_(model.transformer.wte.weight)
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[letter[-1]] = 1.0
    records = score(model, tokenizer, prompts, 8, tmp_path / "tasks")
    assert [record["acc"] for record in records] == [float(q.answer == 2) for q in task.questions("test")]


def test_scores_of_options_by_hand(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(True)
    model, tokenizer = load_pretrained(folder)
    prompts = make_prompts(TaskSet("toy", "choice", {"test": questions(9)}, {}), "option", 0, None)
    records = score(model, tokenizer, prompts, 4, tmp_path / "tasks")
    assert any(record["acc"] != record["acc_norm"] for record in records), "length matters here"
    for prompt, record in zip(prompts, records, strict=True):
        context = tokenizer(prompt.text)["input_ids"]
        sums = []
        for choice in prompt.choices:
            whole = tokenizer(f"{prompt.text} {choice}")["input_ids"]
            sums.append(by_hand(folder, tuple(whole[:-1]), tuple(whole[len(context) :])))
        assert record["log_probs"] == pytest.approx(sums, rel=1e-4)
        lengths = [len(choice) for choice in prompt.choices]
        assert record["acc"] == (np.argmax(sums) == prompt.question.answer)
        assert record["acc_norm"] == (np.argmax(np.divide(sums, lengths)) == prompt.question.answer)


def test_what_does_not_fit_is_counted(make_model: MakeModel, tmp_path: Path) -> None:
    """A long prompt is cut at its beginning, and an option that is too long is refused."""
    folder = make_model(False)
    model, tokenizer = load_pretrained(folder)
    long = " ".join(["cyt gen"] * 40)
    asked = [
        Question("fits", "cyt?", ("gen", "hep lip"), 0, "line 1"),
        Question("long", long, ("ro", "x"), 0, "line 2"),
    ]
    prompts = make_prompts(TaskSet("toy", "choice", {"test": asked}, {}), "option", 0, None)
    assert count_cut(tokenizer, prompts, 64) == 1
    record = score(model, tokenizer, prompts, 1, tmp_path / "tasks")[1]
    ids = tokenizer(f"{prompts[1].text} ro")["input_ids"]
    n = len(ids) - len(tokenizer(prompts[1].text)["input_ids"])
    assert record["log_probs"][0] == pytest.approx(by_hand(folder, tuple(ids[-65:-1]), tuple(ids[-n:])), rel=1e-4)
    wide = Question("wide", "cyt?", ("gen", long), 0, "line 3")
    with pytest.raises(BadInput, match=r"line 3: an option has \d+ tokens, but the model reads 64"):
        count_cut(tokenizer, make_prompts(TaskSet("t", "choice", {"test": [wide]}, {}), "option", 0, None), 64)


def test_perplexity_by_hand(
    make_model: MakeModel, tmp_path: Path, make_corpus: Callable[..., Path], tiny_documents: list[Document]
) -> None:
    folder = make_model(True)
    corpus = make_corpus(tmp_path / "corpus", tiny_documents, 0.1)
    model, tokenizer = load_pretrained(folder)
    measured = perplexity.perplexity(model, tokenizer, corpus, 6, 4)["all"]["all"]
    nats, tokens, size_bytes, left_over = 0.0, 0, 0, []
    for line in itertools.islice(read_documents(corpus, "val"), 6):
        ids = [599, *tokenizer(line.text)["input_ids"]]
        for begin in range(0, len(ids) - 1, 64):
            end = min(begin + 64, len(ids) - 1)
            nats -= by_hand(folder, tuple(ids[max(0, end - 64) : end]), tuple(ids[begin + 1 : end + 1]))
        tokens += len(ids) - 1
        size_bytes += len(line.text.encode())
        left_over += [(len(ids) - 1) % 64] if len(ids) > 65 else []
    assert any(left_over), "a last window gets its missing context from the window before it"
    assert measured["nats"] == pytest.approx(nats, rel=1e-4)
    assert measured["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size_bytes, rel=1e-4)
    assert measured["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    groups = perplexity.perplexity(model, tokenizer, corpus, 20, 4)
    assert groups["source"].keys() <= {"PubMed Abstracts", "PubMed Central"} and groups["year"].keys() == {"2021"}
    for kind in ("source", "year"):
        assert sum(g["bytes"] for g in groups[kind].values()) == groups["all"]["all"]["bytes"]


def test_leaks_by_pmid_and_by_words(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    words = [f"word{n}" for n in range(100)]
    texts = {
        "pmid:1": "nothing of note",
        "pmid:2": "Title\n" + " ".join(words[:GRAM_WORDS]).upper() + ", more",
        **{f"pmid:{n}": f"filler {n}" for n in range(3, 30)},
    }
    documents = [Document(id_, text, "PubMed Abstracts", None, "2021") for id_, text in texts.items()]
    corpus = make_corpus(tmp_path / "corpus", documents, 0.05)
    held = {d.id for d in read_documents(corpus, "train")}
    assert {"pmid:1", "pmid:2"} <= held

    def question(text: str, *pmids: str) -> Question:
        return Question("q", text, ("a", "b"), 0, "", pmids=pmids)

    leaks = find_leaks(
        {
            "pmid": question("unseen", "1"),
            "absent": question("unseen", "777", "11777"),
            "words": question(f"So, {'; '.join(words[:GRAM_WORDS])}?"),
            "twelve": question(" ".join(words[1:GRAM_WORDS]) + " other " + " ".join(words[20:40])),
        },
        corpus,
    )
    assert leaks.by_pmid == {"pmid"} and leaks.by_words == {"words"} and leaks.any == {"pmid", "words"}
    assert leaks.too_short == {"pmid", "absent"} and leaks.documents == len(held)


@pytest.mark.parametrize("n", [1, 2, 5, 30, 500])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_interval_of_a_proportion_is_wilsons(n: int, share: float) -> None:
    """Equal to scipy's interval; it always has a width, and contains the value."""
    from scipy.stats import binomtest

    right = round(share * n)
    score = bootstrap([1.0] * right + [0.0] * (n - right))
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert score.interval == "Wilson" and score.low < score.high and score.low <= score.value <= score.high
    assert percent(score).endswith(f" Wilson, n = {n}")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_no_proportion_has_a_width_at_0_and_1_too(value: float) -> None:
    """F1 of entities over several seeds, all right or all wrong."""
    for tops, bottoms in (
        (np.full((1, 6), 2 * value), np.full((1, 6), 2.0)),
        (np.full((3, 6), value), np.ones((3, 6))),
    ):
        score = bootstrap(tops, bottoms)
        assert score.value == value and score.high - score.low > 0.3 and score.interval == "Wilson" and score.n == 6
    mixed = bootstrap(np.array([2.0, 0.0, 2.0]), np.array([2.0, 2.0, 2.0]))
    assert mixed.interval == "bootstrap" and "] bootstrap, n = 3" in percent(mixed)


def test_a_part_by_hash_is_no_beginning() -> None:
    """Files are sorted by subject or label; a larger part includes the smaller one."""
    asked = [*questions(300, "anatomy"), *questions(300, "virology")]
    few, more = part_by_hash(asked, 60), part_by_hash(asked, 120)
    assert [q for q in asked if q in few] == few and set(few) <= set(more) and len(few) == 60
    assert 18 < sum(q.subject == "anatomy" for q in few) < 42
    assert part_by_hash(asked[::-1], 60) == few[::-1]
    assert part_by_hash(asked, None) == part_by_hash(asked, 600) == part_by_hash(asked, 601) == asked


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).random(1000) < 0.3
    score = bootstrap(values.astype(float))
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert score.value == values.mean() and score.n == 1000
    assert score.high - score.low == pytest.approx(2 * half, rel=0.1)
    assert bootstrap([2.0, 6.0], [1.0, 3.0]).value == 2.0, "a ratio of sums"
    assert bootstrap([2.0, 6.0], [1.0, 3.0]).low == 2.0


def test_perplexity_is_that_of_the_harness(make_model: MakeModel) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_pretrained(make_model(True))
    texts = [" ".join(["cyt", "gen", "hep"] * n) for n in (1, 40, 90)]
    arguments: Any = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 2}
    requests: Any = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)]
    rolling: Any = HFLM(**arguments)
    for text, theirs in zip(texts, rolling.loglikelihood_rolling(requests), strict=True):
        windows = list(document_windows(tokenizer(text)["input_ids"], tokenizer.eos_token_id, 64))
        assert sum(log_probs(model, windows, 2)) == pytest.approx(theirs, rel=1e-5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = []
    for question in questions(30):
        options = {f"op{'abcd'[n]}": option for n, option in enumerate(question.options)}
        record = {"question": question.question, "cop": question.answer + 1, "id": question.id, **options}
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "data/medmcqa").mkdir(parents=True)
    (tmp_path / "data/medmcqa/dev.json").write_text("".join(lines))
    return tmp_path / "data"


def test_the_command_line(
    make_model: MakeModel, data: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    command = ["--model", str(make_model(True)), "--tasks", "medmcqa", "--data", str(data), "--out", str(out)]
    command += ["--corpus", str(tiny_corpus), "--text-documents", "3"]
    evaluate.main(command)
    results = json.loads((out / "results.json").read_text())
    task = results["tasks"]["medmcqa"]
    assert task["forms"]["letter"]["all"]["acc"]["n"] == 30 and task["leaks"]["by_pmid"] == 0
    assert results["inputs"]["tasks"]["medmcqa"]["dev.json"] and results["environment"]["versions"]["torch"]
    assert results["text"]["all"]["all"]["documents"] == 3
    printed = capsys.readouterr().out
    assert next_command(printed, tmp_path)[1] == "recipes/evaluate.py"
    assert "| *medmcqa* | *BioMedLM* | *published* | *57.3* |" in printed and "| medmcqa | scaled | 0-shot" in printed
    page = (out / "table.html").read_text()
    assert "<tr class=published><td>medmcqa<td>BioMedLM<td>published<td>57.3</tr>" in page
    harness = json.loads((out / "harness/medmcqa_option.yaml").read_text())
    assert Path(harness["dataset_kwargs"]["data_files"]["test"]).is_file()
    evaluate.main(command)
    assert "up to date" in capsys.readouterr().out
    # With `--limit`, the baseline is computed on the same few questions as the scores, and the row says so.
    evaluate.main([*command[:6], "--limit", "7", "--out", str(tmp_path / "few")])
    asked = load("medmcqa", data).questions("dev")
    few = sorted(asked, key=lambda question: hashlib.sha256(question.id.encode()).digest())[:7]
    answers, printed = Counter(question.answer for question in few), capsys.readouterr().out
    assert f"always the commonest answer | baseline | {100 * max(answers.values()) / 7:.1f} |" in printed
    lines = (tmp_path / "few/medmcqa-letter.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [q.id for q in asked if q in few]
    assert "| 0-shot, letter, a part, 7 of 30 |" in printed and "Wilson, n = 7 |" in printed
    with pytest.raises(BadInput, match=r"shots: 0 -> 1|no train or dev"):
        evaluate.main([*command, "--shots", "1"])


def test_what_was_scored_outlives_a_fault_after_it(
    make_model: MakeModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the environment is taken before the work starts, and an error there costs no scores."""
    command = ["--model", str(make_model(False)), "--tasks", "medmcqa", "--data", str(data), "--limit", "3"]
    command += ["--out", str(tmp_path / "scores")]

    def fail(*arguments: object) -> None:
        raise OSError("at once")

    with monkeypatch.context() as patch:
        patch.setattr("recipes.evaluation.evaluate_model.environment", fail)
        patch.setattr("recipes.evaluation.evaluate_model.load_pretrained", lambda *_: pytest.fail("work has begun"))
        with pytest.raises(OSError, match="at once"):
            evaluate.main(command)
        with pytest.raises(BadInput, match=r"device 'cuda:7': .*; --device cpu needs no GPU"):
            patch.undo()
            patch.setattr("recipes.evaluation.evaluate_model.load_pretrained", lambda *_: pytest.fail("work has begun"))
            evaluate.main([*command, "--device", "cuda:7"])
    monkeypatch.setattr("recipes.evaluation.evaluate_model.to_markdown", fail)
    with pytest.raises(OSError, match="at once"):
        evaluate.main(command)
    for form in ("letter", "option"):
        assert len((tmp_path / f"scores.partial/medmcqa-{form}.jsonl").read_text().splitlines()) == 3


@pytest.mark.chaos
@pytest.mark.parametrize("form", ["letter", "option"])
def test_scores_are_those_of_the_harness_command_line(
    form: str, make_model: MakeModel, data: Path, tmp_path: Path
) -> None:
    """Our scores of a folder like BioMedLM equal lm-eval's scores of the export, question by question."""
    original, exported, out = make_model(True), tmp_path / "exported", tmp_path / "scores"
    export.main(["--checkpoint", str(original), "--out", str(exported)])
    evaluate.main(["--model", str(exported), "--tasks", "medmcqa", "--data", str(data), "--out", str(out)])
    command = [
        str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "hf",
        "--model_args", f"pretrained={exported},dtype=float32", "--include_path", str(out / "harness"),
        "--tasks", f"medmcqa_{form}", "--batch_size", "8", "--device", "cpu", "--log_samples",
        "--output_path", str(tmp_path / "theirs"),
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    # A Trainer of an earlier test has set these variables.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        env.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=patience_s())
    assert done.returncode == 0, done.stderr
    lines = next((tmp_path / "theirs").rglob("samples_*.jsonl")).read_text().splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    records = [json.loads(line) for line in (out / f"medmcqa-{form}.jsonl").read_text().splitlines()]
    assert len(samples) == len(records) == 30
    for sample, record in zip(samples, records, strict=True):
        assert sample["doc"]["id"] == record["id"]
        assert [float(response[0][0]) for response in sample["resps"]] == record["log_probs"]
        assert (sample["acc"], sample["acc_norm"]) == (record["acc"], record["acc_norm"])
    theirs = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text())["results"][f"medmcqa_{form}"]
    ours = json.loads((out / "results.json").read_text())["tasks"]["medmcqa"]["forms"][form]["all"]
    assert ours["acc"]["value"] == pytest.approx(theirs["acc,none"], rel=1e-12)
    assert ours["acc_norm"]["value"] == pytest.approx(theirs["acc_norm,none"], rel=1e-12)
    # The folder before the export is also scored with its layer scaling.
    evaluate.main(["--model", str(original), "--tasks", "medmcqa", "--data", str(data), "--out", str(tmp_path / "o")])
    for line, record in zip((tmp_path / f"o/medmcqa-{form}.jsonl").read_text().splitlines(), records, strict=True):
        assert json.loads(line)["log_probs"] == pytest.approx(record["log_probs"], rel=1e-4)


ALONE = """
import socket, sys
def refuse(*arguments, **named):
    print("network:", arguments, file=sys.stderr)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from recipes import evaluate
evaluate.main(sys.argv[1:])
print("lm_eval" in sys.modules, "datasets" in sys.modules)
"""


def test_nothing_is_asked_of_a_network(make_model: MakeModel, data: Path, tmp_path: Path) -> None:
    """No connection is even tried, with sockets blocked, and no file is written to a cache of the user."""
    home = tmp_path / "home"
    home.mkdir()
    model, corpus = make_model(False), ["--tasks", "medmcqa", "--data", str(data)]
    command = ["--model", str(model), *corpus, "--out", str(tmp_path / "scores")]
    switches = ("HF_", "TRANSFORMERS_", "XDG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(switches)} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *command], capture_output=True, text=True, check=False, env=environment,
        cwd=ROOT, timeout=patience_s(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "network:" not in done.stderr and "True True" in done.stdout
    assert not [path for path in home.rglob("*") if path.is_file()]
    again = warm.run([sys.executable, "-c", ALONE, *command], ROOT, environment)
    assert "up to date" in again.stdout and "False False" in again.stdout, "only needed for scores"


def tuned_folder(make_model: MakeModel, task: str, kind: str, labels: tuple[str, ...] = ()) -> Path:
    """A folder as exported by recipes/finetune.py, with a head of random weights."""
    folder = make_model(False).rename(make_model(False).with_name(f"{task}-1")) / "model"
    base = folder.parent
    model, tokenizer = load_pretrained(base)
    KINDS[kind].add_tokens(tokenizer)
    heads.resize(model, len(tokenizer))
    torch.manual_seed(2)
    heads.save(FineTuned(model, TaskHead(task, kind, labels, 64)), tokenizer, folder)
    return folder


def test_a_head_answers_another_set_of_its_kind(make_model: MakeModel, data: Path, tmp_path: Path) -> None:
    (data / "mmlu").mkdir()
    for split, n in (("dev", 5), ("test", 20)):
        rows = [[q.question, *q.options, "ABCD"[q.answer]] for q in questions(n)]
        for subject in ("anatomy", "college_biology"):
            text = "".join(",".join(f'"{cell} {subject[0]}"' for cell in row[:-1]) + f",{row[-1]}\n" for row in rows)
            (data / f"mmlu/{subject}_{split}.csv").write_text(text)
    model, out = tuned_folder(make_model, "medmcqa", "choice"), tmp_path / "scores"
    command = ["--model", str(model), "--tasks", "mmlu", "--data", str(data)]
    evaluate.main([*command, "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    scores = results["tasks"]["mmlu"]["forms"]["head"]
    assert scores["all"]["acc"]["n"] == 40 and scores["college_biology"]["acc"]["n"] == 20
    assert results["model"] == "medmcqa-1" and results["inputs"]["head"]["task"] == "medmcqa"
    assert "| mmlu: anatomy | medmcqa-1 | fine-tuned on medmcqa |" in (out / "table.md").read_text()
    trained, tokenizer = heads.load(model)
    asked = load("mmlu", data).questions("test")
    encoder = Encoder(tokenizer, KINDS["choice"], 64)
    for line, question in zip((out / "mmlu-head.jsonl").read_text().splitlines(), asked, strict=True):
        with torch.no_grad():
            alone = trained.answers(encoder.collate([(0, encoder(question))]))[0]
        record = json.loads(line)
        assert record["scores"] == pytest.approx(alone.tolist(), rel=1e-4, abs=1e-6)
        assert record["acc"] == float(alone.argmax() == question.answer)
    with pytest.raises(BadInput, match="its head reads no shots"):
        evaluate.main([*command, "--out", str(tmp_path / "o"), "--shots", "1"])
    with pytest.raises(BadInput, match="--dtype: the head"):
        evaluate.main([*command, "--out", str(tmp_path / "o"), "--dtype", "bfloat16"])


@pytest.mark.parametrize(
    ("kind", "labels", "says"),
    [
        ("verdict", ("yes", "no"), "fine-tuned on tuned, of kind 'verdict', but medmcqa is of kind 'choice': score"),
        ("pairs", (), "of kind 'pairs', but medmcqa is of kind 'choice'"),
    ],
)
def test_a_head_of_another_kind_is_refused(
    kind: str, labels: tuple[str, ...], says: str, make_model: MakeModel, data: Path
) -> None:
    model = tuned_folder(make_model, "tuned", kind, labels)
    with pytest.raises(BadInput, match=says):
        evaluate.main(["--model", str(model), "--tasks", "medmcqa", "--data", str(data), "--out", "o"])


def test_a_head_with_other_labels_is_refused() -> None:
    asked = [Question("1", "cyt?", ("yes", "no"), 0, "line 1")]
    bioasq = TaskSet("bioasq", "verdict", {"test": asked}, {})
    head = {"task": "pubmedqa", "kind": "verdict", "labels": ["yes", "no", "maybe"]}
    check_answerable(bioasq, {**head, "labels": ["yes", "no"]}, Path("m"))
    with pytest.raises(
        BadInput, match="m was fine-tuned on pubmedqa, whose answers are yes, no, maybe; those of bioas"
    ):
        check_answerable(bioasq, head, Path("m"))


def test_sets_are_checked_without_a_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "own").mkdir()
    for split, word in (("train", "p53"), ("test", "TNF")):
        (data / f"own/{split}.tsv").write_text(f"The\tO\n{word}\tB-Gene\n")
    evaluate.main(["--tasks", "medmcqa,own", "--data", str(data), "--check"])
    printed = capsys.readouterr().out
    assert "medmcqa: dev 30" in printed and "test: 2 words, 1 entities: Gene 1 (100.0%)" in printed
    with pytest.raises(BadInput, match="own is of kind 'tags', on which a base model cannot be scored; fine-tune it"):
        evaluate.main(["--tasks", "own", "--data", str(data), "--out", str(data / "scores")])


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES", "BILOU"])
def test_entities_are_scored_as_seqeval_scores_them(scheme: str) -> None:
    """For random tags, also ill-formed ones: precision, recall and F1 over all types, and F1 of each type."""
    import seqeval.scheme
    from seqeval.metrics import classification_report

    draw = random.Random(scheme)
    tags = ["O", *(f"{letter}-{kind}" for letter in SCHEMES[scheme] for kind in ("gene", "cell_type"))]
    right = [draw.choices(tags, k=draw.randint(1, 12)) for _ in range(300)]
    given = [[tag if draw.random() < 0.7 else draw.choice(tags) for tag in sentence] for sentence in right]
    report: Any = classification_report(
        right, given, mode="strict", scheme=getattr(seqeval.scheme, scheme), output_dict=True
    )
    counts = measures([{"entities": count(r, g, scheme)} for r, g in zip(right, given, strict=True)])
    scores = {name: values.sum() / weights.sum() for name, (values, weights) in counts.items()}
    micro = report["micro avg"]
    expected = {"f1": micro["f1-score"], "precision": micro["precision"], "recall": micro["recall"]}
    expected |= {f"f1 of {kind}": report[kind]["f1-score"] for kind in ("gene", "cell_type")}
    assert scores == pytest.approx(expected) and 0.1 < scores["f1"] < 0.9
    value = bootstrap(*counts["f1"])
    assert value.value == pytest.approx(micro["f1-score"]) and value.low < value.value < value.high and value.n == 300


def test_a_model_that_gives_no_entity_has_precision_0() -> None:
    counts = measures([{"entities": count(["B", "I"], ["O", "O"], "IOB2")}, {"entities": {}}])
    assert {name: bootstrap(*parts).value for name, parts in counts.items()} == {"f1": 0, "precision": 0, "recall": 0}
    assert count(["DT", "NN"], ["DT", "VB"], "") == {"DT": [1, 1, 1], "NN": [0, 0, 1], "VB": [0, 1, 0]}


def test_seeds_of_a_ratio() -> None:
    """The mean of each seed's ratio, not the ratio of the means."""
    values, weights = np.array([[1.0, 0.0], [2.0, 2.0]]), np.array([[1.0, 1.0], [2.0, 2.0]])
    score, each, deviation = over_seeds(values, weights)
    assert each.tolist() == [0.5, 1.0] and score.value == 0.75 and deviation == pytest.approx(0.125**0.5)
    assert (score.low, score.high) == (0.5, 1.0), "the second sentence twice, the first twice"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "medqa", "--out", "o"], "medqa does not exist"),
        (["--tasks", ","], "--tasks: '' must be the name of one folder"),
        (["--tasks", "../medqa"], "--tasks: '../medqa' must be the name of one folder"),
        (["--check"], "--tasks is missing"),
        (["--out", "o"], "--tasks is missing"),
        (["--tasks", "medmcqa"], "--out is missing"),
        (["--tasks", "medmcqa", "--out", "o"], "--model is missing"),
        (["--tasks", "medmcqa", "--out", "o", "--model", "nowhere"], "not a Hugging Face folder"),
        (["--tasks", "medmcqa", "--shots", "-1"], "--shots: '-1' must be a whole number from 0"),
        (["--tasks", "medmcqa", "--text-documents", "5"], "needs --corpus"),
    ],
)
def test_bad_arguments(arguments: list[str], says: str, data: Path) -> None:
    with pytest.raises(BadInput, match=says):
        evaluate.main([*arguments, "--data", str(data)])


def test_a_model_smaller_than_its_tokenizer_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(BadInput, match="its tokenizer has 600 entries, its model 500"):
        load_pretrained(make_model(False, vocab_size=500))

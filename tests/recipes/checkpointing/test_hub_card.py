"""A release can be uploaded to the Hugging Face hub: its card has valid metadata, and its numbers are the run's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file
from yaml import safe_load

from data_prep.common.errors import BadInput
from hub_head import check, head_of
from project import ROOT
from recipes import evaluate, export
from recipes.finetuning.kinds import KINDS
from recipes.runs.card_metadata import metadata

RUN = ROOT / "tests/data/before_rooms/run"
HOURS = '{{"event": "start", "batch": 0, "tokens": 0, "time_s": {}, "ranks": {}}}\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUN, tmp_path / "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "model"
    export.main(["--checkpoint", str(RUN), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def scores(model: Path) -> Path:
    """Scores of the model on questions in MMLU's format."""
    data, out = model.with_name("tasks"), model.with_name("scores")
    (data / "mmlu/test").mkdir(parents=True)
    (data / "mmlu/test/anatomy_test.csv").write_text("Bone?,a,b,c,d,A\nSkin?,e,f,g,h,C\nHair?,i,j,k,l,B\n")
    evaluate.main(["--model", str(model), "--tasks", "mmlu", "--data", str(data), "--out", str(out)])
    return out


def again(model: Path, out: Path, *more: object) -> Path:
    """Export the same weights again, with more statements on the card."""
    if not out.exists():
        shutil.copytree(model, out)
    export.main(["--checkpoint", str(RUN), "--out", str(out), *map(str, more)])
    return out


def test_nothing_is_said_that_is_not_known(model: Path) -> None:
    head = head_of(model)
    assert head.keys() == {"license", "library_name", "pipeline_tag", "tags"}, "this text has no known language"
    card = (model / "README.md").read_text()
    assert "| emissions | not computed: device-hours x watts a device" in card and "## Scores" not in card


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("license", ["mit", "My own: terms #2", "- x", None])
def test_the_head_is_the_hubs_for_every_kind_of_model_and_licence(kind: str, license: str | None) -> None:
    for about_pubmed in (True, False):
        head = safe_load(metadata(license, KINDS[kind].pipeline_tag, about_pubmed))
        check(head)
        assert ("language" in head) == about_pubmed and ("license" in head) == (license is not None)


@pytest.mark.parametrize("license", ["apache-2.0", "'Odd: one'", "Apache 2.0"])
def test_a_licence_that_the_hub_has_no_name_for_is_passed_on(license: str, model: Path, tmp_path: Path) -> None:
    source, out = shutil.copytree(model, tmp_path / "source"), tmp_path / "out"
    (source / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    (source / "LICENSE.txt").write_text("the text")
    export.main(["--checkpoint", str(source), "--out", str(out)])
    head = head_of(out)
    assert head["license"] == ("apache-2.0" if license == "apache-2.0" else "other")
    assert f"states the licence {license.strip(chr(39))}" in (out / "README.md").read_text()
    assert (out / "LICENSE.txt").read_text() == "the text"


def test_scores_come_onto_the_card_of_the_model_that_has_them(model: Path, scores: Path, tmp_path: Path) -> None:
    text = tmp_path / "terms"
    text.write_text("terms")
    out = again(model, tmp_path / "out", "--scores", scores, "--license-file", text)
    head, card = head_of(out), (out / "README.md").read_text()
    _, results = model_index_to_eval_results(head["model-index"])
    accuracies = json.loads((scores / "results.json").read_text())["tasks"]["mmlu"]["forms"]
    expected = [accuracies["letter"]["all"]["acc"], accuracies["option"]["all"]["acc"]]
    assert [result.metric_value for result in results][:2] == [round(100 * e["value"], 1) for e in expected]
    assert {(r.dataset_type, r.dataset_split, r.metric_type) for r in results} == {("mmlu", "test", "accuracy")}
    table = [
        line.split(" | ") for line in (scores / "table.md").read_text().splitlines() if line.startswith("| mmlu |")
    ]
    ours = [row for row in table if row[2] != "baseline"]
    assert ours and all(f"| mmlu | {row[2]} | {row[3]}" in card for row in ours)
    assert (out / "LICENSE").read_text() == "terms"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again(model, out, "--scores", scores, "--license-file", text)
    again(model, out)  # without options, the existing card is kept, because it describes these weights
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_scores_of_other_weights_are_refused(model: Path, scores: Path, tmp_path: Path) -> None:
    half = ["--checkpoint", str(RUN), "--out", str(tmp_path / "half"), "--dtype", "bfloat16", "--scores", str(scores)]
    with pytest.raises(BadInput, match="scores of other weights"):
        export.main(half)
    assert not (tmp_path / "half").exists()
    altered = shutil.copytree(scores, tmp_path / "altered")
    path = altered / "results.json"
    path.write_text(path.read_text().replace('"value": 0.', '"value": 0.9'))
    for folder, says in ((altered, "was altered"), (model, "not 'evaluation'"), (tmp_path / "none", "no file")):
        with pytest.raises(BadInput, match=says):
            again(model, tmp_path / "out", "--scores", folder)


@pytest.mark.parametrize("ranks", [1, 8])
def test_hours_and_grams_are_those_of_the_runs_own_log(run: Path, ranks: int, tmp_path: Path) -> None:
    """Hours count up to the checkpoint's batch, with those lost in a crash; the user gives watts and grid emissions."""
    (run / "metrics.jsonl").write_text(
        HOURS.format(1000, ranks) + '{"batch": 9, "tokens": 1, "time_s": 8200}\n'
        + HOURS.format(50_000, ranks).replace('"batch": 0', '"batch": 6')
        + '{"batch": 12, "tokens": 1, "time_s": 53600}\n'
        + '{"batch": 13, "tokens": 1, "time_s": 99999}\n'
    )  # fmt: skip
    export.main([
        "--checkpoint", str(run), "--out", str(tmp_path / "out"), "--device-watts", "400", "--grid-g-per-kwh", "250",
    ])  # fmt: skip
    head, card = head_of(tmp_path / "out"), (tmp_path / "out/README.md").read_text()
    assert f"| 3 hours = {3 * ranks} device-hours" in card
    grams = 3 * ranks * 400 / 1000 * 250
    assert head["co2_eq_emissions"]["emissions"] == grams and f"| emissions | {grams:,.4g} g of CO2" in card
    assert head["co2_eq_emissions"]["source"].startswith(f"{3 * ranks} device-hours x 400 W x 250 g/kWh")
    assert head["co2_eq_emissions"]["hardware_used"] in card


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--device-watts", "400"], "give both"), (["--grid-g-per-kwh", "1"], "give both"),
     (["--device-watts", "0", "--grid-g-per-kwh", "1"], "--device-watts: '0' must be"),
     (["--base-model", "owner/name"], "began with random weights"),
     (["--base-model", "a/b/c"], "--base-model: 'a/b/c' must be of the form OWNER/NAME"),
     (["--license-file", "nowhere"], "there is no file nowhere")],
)  # fmt: skip
def test_what_cannot_be_true_of_this_model_is_refused(more: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        export.main(["--checkpoint", str(RUN), "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_a_converted_model_has_no_hours_but_a_base(model: Path, tmp_path: Path) -> None:
    given = ["--checkpoint", str(model), "--out", str(tmp_path / "out")]
    with pytest.raises(BadInput, match="is not a run, so its hours are not known"):
        export.main([*given, "--device-watts", "400", "--grid-g-per-kwh", "250"])
    export.main([*given, "--base-model", "stanford-crfm/BioMedLM"])
    assert head_of(tmp_path / "out")["base_model"] == "stanford-crfm/BioMedLM"


def test_a_folder_with_another_card_has_the_same_weights_and_nothing_of_yours_is_lost(
    model: Path, tmp_path: Path
) -> None:
    stated = ("--device-watts", 9, "--grid-g-per-kwh", 9)
    out = again(model, tmp_path / "out", *stated)
    (weights, same) = (load_file(folder / "model.safetensors") for folder in (model, out))
    assert all(weights[name].equal(same[name]) for name in weights) and "co2_eq_emissions" in head_of(out)
    (out / "loss.png").write_text("mine")
    with pytest.raises(BadInput, match=r"did not write: loss\.png"):
        again(model, out, "--device-watts", 10, "--grid-g-per-kwh", 9)
    assert (out / "loss.png").read_text() == "mine"

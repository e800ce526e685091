"""Fine-tuned models learn their task, and their scores equal independent computations."""

from __future__ import annotations

import json
import random
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import warm
from data_prep.common.errors import BadInput
from data_prep.tasks.registry import load
from data_prep.tasks.task_set import Pair, Question, Sentence
from holder import Holder
from kind_examples import ASKED
from last_line import next_command
from project import ROOT
from recipes import evaluate
from recipes.checkpointing import checkpoint
from recipes.config.loading import load_finetune_config, to_yaml
from recipes.config.schema import FinetuneConfig, ModelConfig
from recipes.finetuning import heads, release, training
from recipes.finetuning.heads import FineTuned
from recipes.finetuning.kind import AS_TEXT, Encoder
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.planning import make_finetune_plan, splits
from recipes.finetuning.release import export
from recipes.finetuning.scoring import predict, score
from recipes.finetuning.tags import NO_TAG, Tags, entities, tagged
from recipes.finetuning.task_head import TaskHead
from recipes.scoring.bootstrap import measures

YAMLS = sorted(p for p in (ROOT / "yamls/finetune").glob("*.yaml") if p.stem != "base" and "-sweep" not in p.stem)
WORDS = ["cyt", "gen", "hep", "lip", "myo", "neu", "ro", "thro"]
LABELS = ("yes", "no", "maybe")
TAGS = ("O", "B-Gene", "I-Gene")
Configure = Callable[..., FinetuneConfig]


def choice_record(draw: random.Random, id_: str, shuffled: bool) -> dict[str, Any]:
    """The question names the right option, or a random option if labels are shuffled."""
    wanted, *others = draw.sample(WORDS, 4)
    options = [wanted, *others]
    draw.shuffle(options)
    right = draw.randrange(4) if shuffled else options.index(wanted)
    return {"id": id_, "question": f"Which is {wanted}?", "cop": right + 1} | dict(
        zip(("opa", "opb", "opc", "opd"), options, strict=True)
    )


def write_choice(data: Path, n: int, shuffled: bool = False) -> None:
    draw, folder = random.Random(1), data / "medmcqa"
    folder.mkdir(parents=True)
    for split, size in (("train", n), ("dev", 60)):
        records = [choice_record(draw, f"{split}{i}", shuffled) for i in range(size)]
        (folder / f"{split}.json").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_verdict(data: Path, n: int) -> None:
    """The last word of the context decides."""
    draw, folder = random.Random(2), data / "pubmedqa"
    (folder / "pqal_fold0").mkdir(parents=True)
    words = dict(zip(LABELS, WORDS, strict=False))
    records = {}
    for i in range(n + 20):
        label = LABELS[i % 3]
        context = " ".join([*draw.choices(WORDS[3:], k=6), words[label]])
        records[str(i)] = {"QUESTION": "Does it?", "CONTEXTS": [context], "final_decision": label}
    ids = list(records)
    truth = {i: records[i]["final_decision"] for i in ids[n + 8 :]}
    files = {
        "ori_pqal.json": records,
        "test_ground_truth.json": truth,
        "pqal_fold0/train_set.json": {i: {} for i in ids[:n]},
        "pqal_fold0/dev_set.json": {i: {} for i in ids[n : n + 8]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_pairs(data: Path, n: int) -> None:
    """The target is the first word of the source, twice."""
    draw, folder = random.Random(3), data / "mine"
    folder.mkdir(parents=True)
    for split, size in (("train", n), ("dev", 6), ("test", 6)):
        sources = [draw.choices(WORDS, k=4) for _ in range(size)]
        records = [{"source": " ".join(words), "target": f"{words[0]} {words[0]}"} for words in sources]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_tags(data: Path, n: int, shuffled: bool = False) -> None:
    """`gen` begins an entity and `ro` continues one; with shuffled tags, a quarter of the words begin one."""
    draw, folder = random.Random(4), data / "toy"
    folder.mkdir(parents=True)
    for split, size in (("train", n), ("devel", 20), ("test", 60)):
        lines = []
        for _ in range(size):
            tag = "O"
            for word in draw.choices([*WORDS, "gen", "ro"], k=draw.randint(4, 9)):
                tag = {"gen": "B-Gene", "ro": "O" if tag == "O" else "I-Gene"}.get(word, "O")
                lines.append(f"{word}\t{draw.choice(['B-Gene', 'O', 'O', 'O']) if shuffled else tag}\n")
            lines.append("\n")
        (folder / f"{split}.tsv").write_text("".join(lines))


def scores_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())["scores"]


def train_accuracy(cfg: FinetuneConfig) -> float:
    """Accuracy of the exported model on its training set."""
    model, tokenizer = heads.load(Path(cfg.run_dir) / "model")
    examples = splits(load(cfg.task, Path(cfg.data)))["train"]
    scores = measures(predict(model, tokenizer, examples, cfg))
    values, weights = scores[{"pairs": "rouge1", "tags": "f1"}.get(model.task_head.kind, "acc")]
    return values.sum() / weights.sum()


def test_multiple_choice_is_learned(
    configure: Configure, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_choice(tmp_path / "data", 200)
    cfg = configure("medmcqa", "max_duration=30ep", "eval_interval=200ba")
    assert training.finetune(cfg)
    printed = capsys.readouterr().out
    assert re.search(r"batch +1/\d+ \| loss +[\d.]+ nats/question \|", printed) and "nats/token" not in printed
    assert json.loads((tmp_path / "run/run.json").read_text())["loss_unit"] == "nats/question"
    assert scores_of(tmp_path / "run")["test"]["acc"]["value"] > 0.9, "held-out questions"
    lines = (tmp_path / "run/predictions-test.jsonl").read_text().splitlines()
    assert len(lines) == 60 and len(json.loads(lines[0])["scores"]) == 4
    assert any("metrics/eval/Accuracy" in line for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert not training.finetune(cfg), "if it is typed again, a finished run does nothing"
    with pytest.raises(BadInput, match=r"(?s)holds another run.*warmup_share: 0.1 -> 0.2"):
        training.finetune(configure("medmcqa", "max_duration=30ep", "warmup_share=0.2"))

    # the folder is a plain GPT-2 with embeddings of the added tokens
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "run/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert len(tokenizer) == model.config.vocab_size == 602 and model.config.architectures == ["GPT2LMHeadModel"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 599
    assert model.config.pad_token_id == tokenizer.pad_token_id and model.config.use_cache
    assert not model.config.scale_attn_by_inverse_layer_idx
    before = GPT2LMHeadModel.from_pretrained(base).transformer.wte.weight
    assert not torch.equal(model.transformer.wte.weight[:600], before), "all weights are trained"

    # it is also a release: with a card, for every program, and with a manifest
    files = {path.name: path for path in (tmp_path / "run/model").iterdir()}
    assert {"README.md", "manifest.json", "vocab.json", "merges.txt", "head.safetensors"} <= files.keys()
    assert len({path.stat().st_mode for path in files.values()}) == 1, "the umask's mode"
    dev = max((line for line in map(json.loads, (tmp_path / "run/metrics.jsonl").open())), key=lambda n: n["batch"])
    card = files["README.md"].read_text()
    assert f"| trained on | {dev['batch']:,} of {dev['batch']:,} batches" in card
    assert "| on dev | Accuracy " in card and "| base model | model, sha256 " in card
    inputs = tokenizer("gen " * 500, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 64 and model(**inputs).logits.isfinite().all()
    files["head.safetensors"].write_bytes(files["head.safetensors"].read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BadInput, match=r"head\.safetensors was altered"):
        heads.load(tmp_path / "run/model")


@pytest.mark.chaos
def test_shuffled_labels_give_chance(configure: Configure, tmp_path: Path) -> None:
    write_choice(tmp_path / "data", 100, shuffled=True)
    cfg = configure("medmcqa", "max_duration=20ep")
    training.finetune(cfg)
    assert 0.1 < scores_of(tmp_path / "run")["test"]["acc"]["value"] < 0.42, "a quarter, within three deviations"


@pytest.mark.chaos
def test_shuffled_tags_give_chance(configure: Configure, tmp_path: Path) -> None:
    write_tags(tmp_path / "data", 100, shuffled=True)
    training.finetune(configure("ner", "task=toy", "max_duration=30ep"))
    assert scores_of(tmp_path / "run")["test"]["f1"]["value"] < 0.35, "a quarter of the words, by chance"


@pytest.mark.parametrize(
    ("yaml", "write", "duration", "more"),
    [
        ("medmcqa", write_choice, "120ep", ()),
        ("pubmedqa", write_verdict, "40ep", ()),
        ("meqsum", write_pairs, "100ep", ("task=mine",)),
        ("ner", write_tags, "60ep", ("task=toy",)),
        ("medmcqa", write_choice, "100ep", ("lora={r: 8, lora_alpha: 32, lora_dropout: 0.0}", "optimizer.lr=2e-2")),
    ],
    ids=["choice", "verdict", "pairs", "tags", "lora"],
)
def test_32_examples_are_learned_by_heart(
    yaml: str, write: Callable[[Path, int], None], duration: str, more: tuple[str, ...], configure: Configure,
    tmp_path: Path,
) -> None:  # fmt: skip
    write(tmp_path / "data", 32)
    cfg = configure(yaml, f"max_duration={duration}", *more)
    assert training.finetune(cfg)
    assert train_accuracy(cfg) == 1.0
    if yaml == "meqsum":
        records = map(json.loads, (tmp_path / "run/predictions-test.jsonl").read_text().splitlines())
        assert all(record["ended"] for record in records), "the model has learned to stop"
    if yaml == "pubmedqa":
        assert json.loads((tmp_path / "run/model/task.json").read_text())["labels"] == list(LABELS)
    if yaml == "ner":
        assert json.loads((tmp_path / "run/model/task.json").read_text())["labels"] == list(TAGS)
        scores = scores_of(tmp_path / "run")
        assert scores["test"]["f1"]["value"] > 0.9, "held-out sentences"
        lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
        meanwhile = [line["metrics/eval/F1"] for line in lines if "metrics/eval/F1" in line]
        assert meanwhile[-1] == pytest.approx(scores["dev"]["f1"]["value"])


@pytest.mark.parametrize(
    ("yaml", "write", "task", "metric"),
    [("medmcqa", write_choice, "medmcqa", "acc"), ("ner", partial(write_tags, shuffled=True), "toy", "f1")],
    ids=["choice", "tags"],
)
def test_seeds_are_put_together(
    yaml: str, write: Callable[[Path, int], None], task: str, metric: str, configure: Configure, tmp_path: Path
) -> None:
    write(tmp_path / "data", 32)
    runs = []
    for seed in (1, 2):
        runs.append(tmp_path / f"seed-{seed}")
        training.finetune(configure(yaml, f"task={task}", "max_duration=4ep", f"seed={seed}", f"run_dir={runs[-1]}"))
    evaluate.main(["--runs", *map(str, runs), "--out", str(tmp_path / "scores")])
    results = json.loads((tmp_path / "scores/results.json").read_text())["scores"][metric]
    each = [scores_of(run)["test"][metric]["value"] for run in runs]
    assert list(results["seeds"].values()) == pytest.approx(each) and each[0] != each[1]
    assert results["value"] == pytest.approx(sum(each) / 2) and results["low"] <= results["value"] <= results["high"]
    assert results["standard_deviation"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert "mean of 2 seeds" in (tmp_path / "scores/table.md").read_text()
    for again, says in ((runs[0], "a seed comes twice among 1, 1"), (tmp_path / "data", "no finished fine-tuning run")):
        with pytest.raises(BadInput, match=says):
            evaluate.main(["--runs", str(runs[0]), str(again), "--out", str(tmp_path / "other")])
    training.finetune(configure(yaml, f"task={task}", "max_duration=5ep", "seed=3", f"run_dir={tmp_path / 'longer'}"))
    with pytest.raises(BadInput, match=r"(?s)more than its seed:.*schedule.batches"):
        evaluate.main(["--runs", str(runs[0]), str(tmp_path / "longer"), "--out", str(tmp_path / "other")])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For each run, the model that it trains and the model of its export, in their final state."""
    models: list[Any] = []

    def build(*arguments: Any) -> Any:
        made = build_model(*arguments)
        models.append(made[0])
        return made

    build_model = release.build_model
    for module in (training, release):
        monkeypatch.setattr(module, "build_model", build)
    return models


def test_a_run_that_another_process_runs_is_refused(configure: Configure, tmp_path: Path) -> None:
    """Folder and exported model of a run, copied because another command may write there meanwhile."""
    write_choice(tmp_path / "data", 32)
    with Holder(tmp_path / "run") as holder, pytest.raises(BadInput, match=holder.says):
        training.finetune(configure("medmcqa", "max_duration=4ep"))
    with Holder(tmp_path / "run/model") as holder, pytest.raises(BadInput, match=holder.says):
        training.finetune(configure("medmcqa", "max_duration=4ep"))
    assert training.finetune(configure("medmcqa", "max_duration=4ep", "score_test=false"))
    with Holder(tmp_path / "run") as holder, pytest.raises(BadInput, match=holder.says):
        training.finetune(configure("medmcqa", "max_duration=4ep"))  # it would score test


def test_lora_leaves_the_weights_alone(configure: Configure, tmp_path: Path, base: Path, built: list[Any]) -> None:
    write_choice(tmp_path / "data", 32)
    training.finetune(configure("medmcqa", "max_duration=4ep", "lora={}"))
    state = built[0]
    names = {name for name, parameter in state.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name or name == "head.weight" for name in names)
    weight = state.model.transformer.h[0].mlp.c_fc.base_layer.weight
    original = GPT2LMHeadModel.from_pretrained(base).state_dict()["transformer.h.0.mlp.c_fc.weight"]
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "run/model").state_dict()["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(weight, original) and not torch.equal(merged, weight)


@pytest.mark.parametrize(
    ("yaml", "write", "task"),
    [("medmcqa", write_choice, "medmcqa"), ("ner", write_tags, "toy")],
    ids=["choice", "tags"],
)
def test_a_resumed_run_is_the_run(
    yaml: str, write: Callable[[Path, int], None], task: str, make_base: Callable[..., Path],
    configure: Configure, tmp_path: Path, built: list[Any],
) -> None:  # fmt: skip
    """With dropout, in the middle of a pass."""
    write(tmp_path / "data", 100)
    model = make_base(tmp_path / "dropout", resid_pdrop=0.1, embd_pdrop=0.1)
    settings = [f"model={model}", f"task={task}", "max_duration=10ba", "save_interval=4ba"]
    settings.append("save_num_checkpoints_to_keep=-1")
    assert training.finetune(configure(yaml, *settings))
    run = tmp_path / "run"
    for batch in (8, 10):
        checkpoint.remove(next((run / "checkpoints").glob(f"ep*-ba{batch}")))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "finished": False}))
    assert training.finetune(configure(yaml, *settings))
    whole, _, resumed, _ = built
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("lora", ["null", "{}"])
def test_nothing_of_the_training_is_left_when_it_is_scored(
    lora: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer, model and moments are freed before the export, and the exported model before scoring."""
    from recipes.training import trainer

    write_choice(tmp_path / "data", 32)
    left: dict[str, list[str]] = {}
    seen: dict[str, weakref.ref[Any]] = {}

    class Trainer(trainer.Trainer):
        def fit(self, *arguments: Any, **given: Any) -> None:
            super().fit(*arguments, **given)
            (optimizer,) = self.state.optimizers
            for name, part in (("Trainer", self), ("model", self.state.model), ("optimizer", optimizer)):
                seen[name] = weakref.ref(part)
            moments = next(iter(optimizer.state.values()))
            seen["moment"] = weakref.ref(moments["exp_avg"])

    def build(*arguments: Any) -> Any:
        model, merge = build_model(*arguments)
        seen["built"] = weakref.ref(model)
        return model, merge

    def load_tuned(*arguments: Any) -> Any:
        left["loaded"] = [name for name, part in seen.items() if part() is not None]
        return load_folder(*arguments)

    def first_look(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            left[name] = [name for name, part in seen.items() if part() is not None]
            return action(*arguments)

        return act

    build_model, load_folder = release.build_model, heads.load
    monkeypatch.setattr(trainer, "Trainer", Trainer)
    for module in (training, release):
        monkeypatch.setattr(module, "build_model", build)
    monkeypatch.setattr(heads, "load", load_tuned)
    monkeypatch.setattr(training, "export", first_look("export", export))
    monkeypatch.setattr(training, "score", first_look("score", score))
    training.finetune(configure("medmcqa", "max_duration=2ep", f"lora={lora}"))
    assert len(seen) == 5
    assert left == {"export": [], "loaded": [], "score": []}


def test_two_ranks_give_the_losses_of_one(configure: Configure, base: Path, tmp_path: Path) -> None:
    """A run sharded by FSDP2 is exported and scored at its end, and has the batches of one rank."""
    write_choice(tmp_path / "data", 100)
    settings = ["max_duration=6ba", "gradient_clipping_norm=0.1"]
    training.finetune(configure("medmcqa", *settings))
    cfg = configure("medmcqa", *settings, "fsdp={}", f"run_dir={tmp_path / 'two'}", "save_interval=3ba")
    (tmp_path / "two.yaml").write_text(to_yaml(cfg))
    done = warm.run([warm.COMPOSER, "-n", "2", "recipes/finetune.py", tmp_path / "two.yaml"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert next_command(done.stdout, ROOT)[1:4] == ["recipes/evaluate.py", "--model", str(tmp_path / "two/model")]

    def losses(folder: Path) -> list[float]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss/train/total"] for line in lines if "loss/train/total" in line]

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), rel=1e-4)
    assert scores_of(tmp_path / "two")["test"]["acc"] == scores_of(tmp_path / "run")["test"]["acc"]


@pytest.fixture
def encoders(tiny_tokenizer: Path) -> Callable[..., Encoder]:
    def make(kind: str, seq_len: int = 64) -> Encoder:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
        KINDS[kind].add_tokens(tokenizer)
        return Encoder(tokenizer, KINDS[kind], seq_len, TAGS)

    return make


def test_sequences_are_those_of_the_published_formats(encoders: Callable[..., Encoder]) -> None:
    question = Question("1", "cyt hep?", ("gen", "lip"), 1, "f, line 1", context="neu neu.")
    encoder = encoders("choice")
    texts = [encoder.tokenizer.decode(sequence) for sequence in encoder(question).sequences]
    assert texts == ["neu neu.\ncyt hep?[SEP] gen[SEP]", "neu neu.\ncyt hep?[SEP] lip[SEP]"]
    encoder = encoders("verdict")
    (sequence,) = encoder(question).sequences
    assert encoder.tokenizer.decode(sequence) == "<|CONTEXT|>neu neu.<|QUESTION|>cyt hep?<|ANSWER|>"
    encoder = encoders("pairs")
    encoded = encoder(Pair("1", "cyt hep", "gen", "f, line 1"))
    assert encoder.tokenizer.decode(encoded.sequences[0]) == "cyt hep<|startoftext|>gen<|endoftext|>"
    assert encoder.tokenizer.decode(encoded.sequences[0][encoded.label :]) == "gen<|endoftext|>"


SPECIAL = ("<|endoftext|>", "[PAD]", "[SEP]", "<|startoftext|>", "<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>")


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_users_text_is_text(token: str, encoders: Callable[..., Encoder]) -> None:
    """Special tokens are text; otherwise a question would end at a typed end-of-text, or have a second answer."""
    text = f"cyt {token} hep"
    examples: dict[str, Any] = {
        "choice": Question("1", text, (f"gen{token}", f"{token} lip"), 1, "f, line 1"),
        "verdict": Question("1", text, ("yes", "no"), 1, "f, line 1", context=f"{token}neu"),
        "pairs": Pair("1", text, f"{token} gen", "f, line 1"),
        "tags": Sentence("1", ("cyt", token), ("O", "O"), "f, line 1"),
    }
    for kind, example in examples.items():
        encoder = encoders(kind, 256)
        special = {encoder.tokenizer.convert_tokens_to_ids(token) for token in encoder.tokenizer.all_special_tokens}
        plain = encoder(
            Question("1", "cyt hep", ("gen", "lip"), 1, "f, line 1", context="neu") if isinstance(example, Question)
            else Pair("1", "cyt hep", "gen", "f, line 1") if kind == "pairs"
            else Sentence("1", ("cyt", "hep"), ("O", "O"), "f, line 1")
        )  # fmt: skip
        for sequence, without in zip(encoder(example).sequences, plain.sequences, strict=True):
            assert [n for n in sequence if n in special] == [n for n in without if n in special], kind
            assert token in encoder.tokenizer.decode([n for n in sequence if n not in special]), kind


@pytest.mark.parametrize("kind", ["choice", "pairs", "tags"])
def test_what_is_cut_of_test_is_said_and_kept(
    kind: str, base: Path, encoders: Callable[..., Encoder], configure: Configure, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Cut examples are counted for the split that is scored, not only for train and dev."""
    tokenizer = encoders(kind).tokenizer
    heads.save(small(base, kind, len(tokenizer)), tokenizer, tmp_path / "run/model")
    short, long = "cyt hep", " ".join(WORDS * 20)
    examples: dict[str, Any] = {
        "choice": [Question(text, text, ("gen", "lip"), 0, "f, line 1") for text in (short, long)],
        "pairs": [Pair(text, text, "gen", "f, line 1") for text in (short, long)],
        "tags": [
            Sentence(text, tuple(text.split()), ("O",) * len(text.split()), "f, line 1") for text in (short, long)
        ],
    }
    parts: Any = {"dev": examples[kind][:1], "test": examples[kind]}
    score(configure("medmcqa"), parts, ("dev", "test"))
    done = "are read in windows" if kind == "tags" else "were cut"
    printed = capsys.readouterr().out
    assert f"test: 1 of 2 examples are longer than seq_len and {done}\n" in printed and "dev: 1 of" not in printed
    assert json.loads((tmp_path / "run/scores.json").read_text())["cut"] == {"dev": 0, "test": 1}
    lines = (tmp_path / "run/predictions-test.jsonl").read_text().splitlines()
    assert [json.loads(line)["cut"] for line in lines] == [False, True]


def test_truncation_keeps_what_decides(encoders: Callable[..., Encoder]) -> None:
    long = " ".join(f"{word}{n}" for n, word in enumerate(WORDS * 10))
    question = Question("1", f"{long} end?", ("gen lip", "hep"), 0, "f, line 7", context=f"{long} last.")
    whole, short = encoders("choice", 2000), encoders("choice", 20)
    for sequence, full in zip(short(question).sequences, whole(question).sequences, strict=True):
        assert len(sequence) == 20 and sequence == full[-20:]
    assert short(question).truncated and not whole(question).truncated
    verdict = encoders("verdict", 400)(question).sequences[0]
    text = encoders("verdict").tokenizer.decode(verdict)
    assert len(verdict) == 400 and text.startswith("<|CONTEXT|>") and f"last.<|QUESTION|>{long} end?<|ANSWER|>" in text
    pair = Pair("1", long, "gen lip", "f, line 7")
    written = encoders("pairs").tokenizer.decode(encoders("pairs", 20)(pair).sequences[0])
    assert written.startswith("cyt0") and written.endswith("<|startoftext|>gen lip<|endoftext|>")
    for kind, example in (("choice", Question("1", "q", (long, "b"), 0, "f, line 7")), ("verdict", question),
                          ("pairs", Pair("1", "q", long, "f, line 7"))):  # fmt: skip
        with pytest.raises(BadInput, match=r"f, line 7: its .* seq_len = 20"):
            encoders(kind, 20)(example)


AWKWARD = [
    "The", "p53", "(", "TNF-α", ")", "β₂-agonist", "5′-UTR", "µg", "0.05", "1,25-(OH)2D3", "don't", "'s", "#", "-",
    "😀", "e\u0301", "\u00a0", "in vivo", "<|endoftext|>", "≤", "ⅷ", "naïve", "日本語", "x\u200by", "--", "10%",
    "A" * 30,
]  # fmt: skip


def awkward_sentence(draw: random.Random, n_words: int) -> Sentence:
    words = tuple(draw.choice(AWKWARD) for _ in range(n_words))
    return Sentence("1", words, tuple(draw.choices(TAGS, k=n_words)), "f, line 1")


def test_each_tag_is_told_at_the_last_token_of_its_word(encoders: Callable[..., Encoder]) -> None:
    """By the offsets of the whole text, encoded at once."""
    encoder, draw = encoders("tags", 4000), random.Random(5)
    for n_words in range(1, 60):
        sentence = awkward_sentence(draw, n_words)
        encoded = encoder(sentence)
        (sequence,), (tags,) = encoded.sequences, encoded.label
        assert sequence[0] == 599 and tags[0] == NO_TAG and not encoded.truncated
        ends, text = [], ""
        for word in sentence.words:
            text += f" {word}"
            ends.append(len(text))
        whole = encoder.tokenizer(text, **AS_TEXT, return_offsets_mapping=True)
        if not {"\u00a0", "in vivo"} & set(sentence.words):  # a blank inside a word may be joined to its neighbours
            assert list(sequence[1:]) == whole["input_ids"]
            tag_ends = [whole["offset_mapping"][n - 1][1] for n, tag in enumerate(tags) if tag != NO_TAG]
            assert tag_ends == ends
        assert [TAGS[tag] for tag in tags if tag != NO_TAG] == list(sentence.tags)
        begin = 1
        for n in [n for n, tag in enumerate(tags) if tag != NO_TAG]:
            word = sentence.words[sum(tag != NO_TAG for tag in tags[:n])]
            assert encoder.tokenizer.decode(sequence[begin : n + 1], clean_up_tokenization_spaces=False) == f" {word}"
            begin = n + 1
        assert begin == len(sequence)


def test_every_word_of_a_long_sentence_is_tagged_once(encoders: Callable[..., Encoder]) -> None:
    draw, cut = random.Random(6), 0
    whole = encoders("tags", 4000)
    for seq_len in (45, 64, 100, 200):
        encoder = encoders("tags", seq_len)
        for n_words in (1, 5, 30, 90, 150):
            sentence = awkward_sentence(draw, n_words)
            encoded, (full,), (full_tags,) = encoder(sentence), whole(sentence).sequences, whole(sentence).label
            assert encoded.truncated == (len(encoded.sequences) > 1)
            cut += encoded.truncated
            ends = [0, *(n for n, tag in enumerate(full_tags) if tag != NO_TAG)]  # of end-of-text and each word
            done = 0  # words that are tagged so far
            for sequence, tags in zip(encoded.sequences, encoded.label, strict=True):
                assert len(sequence) == len(tags) <= seq_len and sequence[0] == 599
                predicted = [tag for tag in tags if tag != NO_TAG]
                assert predicted == [TAGS.index(tag) for tag in sentence.tags[done : done + len(predicted)]]
                last = done + len(predicted)
                first = ends.index(ends[last] - len(sequence) + 1)  # whole words before this window
                assert sequence[1:] == full[ends[first] + 1 : ends[last] + 1], "without a gap"
                if done:
                    assert len(predicted) == 1 or ends[last] - ends[done] <= (seq_len - 1) // 2, (
                        "half of the window is context"
                    )
                    assert first == 0 or len(sequence) + ends[first] - ends[first - 1] > seq_len, "all that fits"
                done = last
            assert done == n_words
    assert cut > 5
    with pytest.raises(BadInput, match=r"f, line 3: its word 'A{30}' takes \d+ tokens, but seq_len = 8"):
        encoders("tags", 8)(Sentence("1", ("a", "b", "A" * 30), TAGS, "f, line 1"))


def test_a_word_without_tokens_is_refused(encoders: Callable[..., Encoder]) -> None:
    from tokenizers.normalizers import Strip

    encoder = encoders("tags")
    encoder.tokenizer.backend_tokenizer.normalizer = Strip()
    with pytest.raises(BadInput, match="f, line 2: the tokenizer gives no token for"):
        encoder(Sentence("1", ("a", "\u00a0"), ("O", "O"), "f, line 1"))


def small(base: Path, kind: str, n_entries: int) -> FineTuned:
    torch.manual_seed(1)
    model = GPT2LMHeadModel.from_pretrained(base, attn_implementation="sdpa")
    model.config.pad_token_id = None
    heads.resize(model, n_entries)
    return FineTuned(model, TaskHead("toy", kind, {"verdict": LABELS, "tags": TAGS}.get(kind, ()), 64)).eval()


@torch.no_grad()
def by_hand(trained: FineTuned, sequence: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden state and logits of one sequence alone, by transformers' eager path in fp64."""
    config = GPT2Config(**{**trained.model.config.to_dict(), "attn_implementation": "eager"})
    stock = GPT2LMHeadModel._from_config(config, attn_implementation="eager").double().eval()
    stock.load_state_dict(trained.model.state_dict())
    ids = torch.tensor([sequence])
    return stock.transformer(input_ids=ids).last_hidden_state[0, -1], stock(input_ids=ids).logits[0]


def test_the_hidden_state_is_the_last_of_all(base: Path, encoders: Callable[..., Encoder]) -> None:
    """Equal bit for bit, with gradients, also without any of the others."""
    encoder = encoders("choice")
    trained = small(base, "choice", len(encoder.tokenizer))
    ids = encoder.collate([(0, encoder(QUESTIONS[0]))])["input_ids"][0]
    ours = trained.model(input_ids=ids, use_cache=False, hidden_alone=True)
    theirs = trained.model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states
    assert torch.equal(ours, theirs[-1])
    weight = trained.model.transformer.wte.weight
    assert torch.equal(*(torch.autograd.grad(hidden.square().sum(), weight)[0] for hidden in (ours, theirs[-1])))


QUESTIONS = [
    Question("1", "cyt hep?", ("gen", "lip myo neu"), 1, ""),
    Question("2", "cyt " * 8, ("gen", "lip", "ro", "thro thro"), 0, ""),
    Question("3", "a", ("hep ro", "myo", "b"), 2, ""),
]


def test_choice_scores_by_hand(base: Path, encoders: Callable[..., Encoder]) -> None:
    encoder = encoders("choice")
    trained = small(base, "choice", len(encoder.tokenizer))
    assert trained.head is not None
    batch = encoder.collate([(n, encoder(question)) for n, question in enumerate(QUESTIONS)])
    with torch.no_grad():
        answers = trained.answers(batch)
        loss = float(trained(batch)["loss"])
    losses = []
    for question, row in zip(QUESTIONS, answers, strict=True):
        hidden = [by_hand(trained, sequence)[0] for sequence in encoder(question).sequences]
        expected = torch.stack(hidden) @ trained.head.weight[0].double()
        n = len(question.options)
        assert torch.allclose(row[:n].double(), expected, rtol=1e-4, atol=1e-6)
        assert torch.isinf(row[n:]).all(), "options that a question does not have"
        losses.append(-float(torch.log_softmax(expected, 0)[question.answer]))
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_verdict_scores_by_hand(base: Path, encoders: Callable[..., Encoder]) -> None:
    encoder = encoders("verdict")
    trained = small(base, "verdict", len(encoder.tokenizer))
    assert trained.head is not None
    batch = encoder.collate([(n, encoder(question)) for n, question in enumerate(QUESTIONS)])
    with torch.no_grad():
        answers = trained.answers(batch)
    for question, row in zip(QUESTIONS, answers, strict=True):
        expected = trained.head.weight.double() @ by_hand(trained, encoder(question).sequences[0])[0]
        assert torch.allclose(row.double(), expected, rtol=1e-4, atol=1e-6)


def test_target_losses_by_hand(base: Path, encoders: Callable[..., Encoder]) -> None:
    encoder = encoders("pairs")
    trained = small(base, "pairs", len(encoder.tokenizer))
    pairs = [
        Pair("1", "cyt hep", "gen", ""),
        Pair("2", "a", "lip myo neu ro thro vas", ""),
        Pair("3", "ro " * 9, "x", ""),
    ]
    batch = encoder.collate([(n, encoder(pair)) for n, pair in enumerate(pairs)])
    with torch.no_grad():
        answers = trained.answers(batch)
    for pair, loss in zip(pairs, answers, strict=True):
        sequence, first = encoder(pair).sequences[0], encoder(pair).label
        log_probs = torch.log_softmax(by_hand(trained, sequence)[1], 1)
        expected = -sum(float(log_probs[i - 1, sequence[i]]) for i in range(first, len(sequence)))
        assert float(loss) == pytest.approx(expected / (len(sequence) - first), rel=1e-4)
        assert sequence[-1] == 599, "end-of-text is a target"


SENTENCES = [
    Sentence("1", ("cyt", "hepthro", "gen"), ("O", "B-Gene", "I-Gene"), "f, line 1"),
    Sentence("2", ("lip", "myothro") * 20, ("B-Gene", "O") * 20, "f, line 5"),
    Sentence("3", ("a",), ("O",), "f, line 46"),
]


def test_tag_scores_by_hand(base: Path, encoders: Callable[..., Encoder]) -> None:
    """Each word is computed alone from the tokens up to its last one; the long sentence in windows."""
    encoder = encoders("tags", 40)
    trained = small(base, "tags", len(encoder.tokenizer))
    assert trained.head is not None
    batch = encoder.collate([(n, encoder(sentence)) for n, sentence in enumerate(SENTENCES)])
    assert batch["labels"].shape == batch["input_ids"].shape and batch["lengths"].count_nonzero(1).tolist()[1] > 1
    with torch.no_grad():
        answers, each = trained.answers(batch), Tags().losses(trained.answers(batch), batch)
        loss, parts = float(trained(batch)["loss"]), trained.eval_forward(batch)
    losses = []
    for sentence, row, labels, part in zip(SENTENCES, answers, batch["labels"], parts, strict=True):
        encoded = encoder(sentence)
        expected = torch.stack([
            trained.head.weight.double() @ by_hand(trained, sequence[: n + 1])[0]
            for sequence, tags in zip(encoded.sequences, encoded.label, strict=True)
            for n, tag in enumerate(tags) if tag != NO_TAG
        ])  # fmt: skip
        assert len(expected) == len(sentence.words)
        assert torch.allclose(row[labels != NO_TAG].double(), expected, rtol=1e-4, atol=1e-6)
        right = torch.tensor([TAGS.index(tag) for tag in sentence.tags])
        losses.append(float(torch.nn.functional.cross_entropy(expected, right)))
        given = [TAGS[n] for n in expected.argmax(1).tolist()]
        assert tagged(row, labels, TAGS) == (given, list(sentence.tags))
        counts = entities(sentence.tags, given, TAGS).get("Gene", [0, 0, 0])
        assert part.tolist() == [2 * counts[0], counts[1] + counts[2]]
    assert each.tolist() == pytest.approx(losses, rel=1e-4)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_neighbours_matter(kind: str, base: Path, encoders: Callable[..., Encoder]) -> None:
    encoder = encoders(kind)
    trained = small(base, kind, len(encoder.tokenizer))
    examples = [ASKED[kind].of_card, *ASKED[kind].others]

    def answers(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One row per example; for `tags`, the scores at tagged tokens, then NaN."""
        with torch.no_grad():
            if kind != "tags":
                return trained.answers(batch).reshape(len(batch["labels"]), -1)
            tagged = batch["labels"] != NO_TAG
            rows = [row[where].flatten() for row, where in zip(trained.answers(batch), tagged, strict=True)]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))

    together = answers(encoder.collate([(n, encoder(example)) for n, example in enumerate(examples)]))
    for row, example in zip(together, examples, strict=True):
        batch = encoder.collate([(0, encoder(example))])
        alone = answers(batch)[0]
        wider = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 20), value=7)}  # not even [PAD]
        if kind == "tags":
            wider["labels"] = torch.nn.functional.pad(batch["labels"], (0, 20), value=NO_TAG)
        for other in (row[: len(alone)], answers(wider)[0]):
            assert torch.allclose(alone, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["cpu", "full", "one-gpu-80gb", "one-gpu-24gb"])
def test_every_yaml_fits_every_preset(yaml: Path, preset: str, tmp_path: Path) -> None:
    """The planned memory of the 2.7B model."""
    cfg = load_finetune_config(yaml, [f"preset={preset}", "model=m", "task=mine"])
    model = ModelConfig(vocab_size=28896, n_positions=1024, n_embd=2560, n_layer=32, n_head=20)
    write_choice(tmp_path, 64)
    task = load("medmcqa", tmp_path)
    plan = make_finetune_plan(cfg, model, task, 64, cfg.world_size)
    assert plan.parameters == 2_594_247_680
    assert list(plan.fullest_bytes)[1:3] == ["export", "scoring"] and max(plan.fullest_bytes.values()) > 10e9
    if preset == "one-gpu-24gb":
        assert cfg.gpu_memory_gb == 23.6 and plan.memory_bytes <= 23.6e9
        larger = replace(cfg, device_train_microbatch_size=8, device_eval_batch_size=16)
        with pytest.raises(BadInput, match=r"gpu_memory_gb = 23\.6: lower device_train_microbatch_size"):
            make_finetune_plan(larger, model, task, 64, 1)
    assert (cfg.lora is not None) == (preset == "one-gpu-24gb") and cfg.run_name == f"{cfg.task}-17"
    if preset == "one-gpu-80gb":
        with pytest.raises(BadInput, match="gpu_memory_gb = 40: lower device_train_microbatch_size"):
            make_finetune_plan(
                load_finetune_config(yaml, [f"preset={preset}", "model=m", "task=mine", "gpu_memory_gb=40"]),
                model,
                task,
                64,
                1,
            )


def test_there_are_six_yamls() -> None:
    assert len(YAMLS) == 6


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["presett=cpu"], "unknown key 'presett'; did you mean 'preset'"),
        (["preset=tpu"], "preset = 'tpu' is not one of cpu, full, one-gpu-24gb, one-gpu-80gb"),
        (["lora.rank=4"], "unknown key 'lora.rank'"),
        (["warmup_share=1.5"], "warmup_share = 1.5, but it must be a number at least 0 and below 1"),
        (["max_duration=1e6tok"], "a duration from 1ba to 1e9ba or from 1ep"),
        (["generation.top_p=0"], "generation.top_p = 0"),
    ],
)
def test_bad_configurations(overrides: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_finetune_config(YAMLS[0], ["model=m", *overrides])


def test_bad_runs_are_refused_before_they_start(configure: Configure, tmp_path: Path) -> None:
    write_choice(tmp_path / "data", 40)
    for changes, says in (
        (("global_train_batch_size=64",), "fewer than one batch of 64"),
        (("seq_len=65",), "seq_len = 65, but the model reads at most 64"),
        (("model=nowhere",), "does not exist"),
        (("task=medqa",), "medqa does not exist"),
    ):
        with pytest.raises(BadInput, match=says):
            training.finetune(configure("medmcqa", *changes))
    assert not (tmp_path / "run").exists()

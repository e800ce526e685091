"""Commands that users type, on one and on two no-op CUDA devices. They are not GPUs: no number here was computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.exit_codes import PREEMPTED
from recipes.checkpointing.checkpoint import complete_checkpoints

WAITS_OF_A_BATCH = 10  # Composer's Trainer and SpeedMonitor have eight of them
OUR_WAITS = ("rank_sums.py", "preemption.py")
TASKS = {"medmcqa": "choice", "pubmedqa": "verdict", "mine": "pairs", "toy": "tags"}
Settings = Callable[..., list[str]]
Command = dict[str, Any]
Run = Callable[[Sequence[Command]], dict[str, str]]


@pytest.fixture
def settings(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Settings:
    """`settings(name, key=value, …)`: smoke-gpu.yaml on the tiny shards, with its head dim of 128 and bf16."""

    def make(name: str, *more: str, yaml: str = "smoke-gpu") -> list[str]:
        return [
            f"yamls/{yaml}.yaml", f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}",
            f"run_dir={tmp_path / name}", "data.seq_len=64", "data.num_workers=1", "model.vocab_size=600",
            "model.n_positions=64", "model.n_embd=256", "model.n_head=2", "model.n_layer=3", "max_duration=6ba",
            "global_train_batch_size=8", "device_train_microbatch_size=2", "scheduler.t_warmup=2ba",
            "eval_interval=4ba", "save_interval=4ba", "callbacks.generate_samples.prompts=[ba]",
            "callbacks.generate_samples.max_new_tokens=4", "loggers.wandb=null", *more,
        ]  # fmt: skip

    return make


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def batches_of(folder: Path) -> list[int]:
    """Numbers of the trained batches, in the order of the file."""
    return [int(line["batch"]) for line in lines_of(folder) if "loss/train/total" in line]


def preempted(name: str, settings: list[str], batch: int, ranks: int = 1) -> Command:
    argv = ["tests/helpers/inject.py", f"SIGTERM:0:{batch}", "--", *settings]
    return {"name": name, "argv": argv, "ranks": ranks, "code": PREEMPTED}


def recipe(name: str, script: str, *arguments: str, **more: Any) -> Command:
    return {"name": name, "argv": [f"recipes/{script}.py", *arguments], **more}


def waits_of(printed: str) -> dict[str, int]:
    return {line: int(times) for times, line in re.findall(r"^wait: (\d+) (.*)$", printed, re.MULTILINE)}


def write_tasks(data: Path) -> None:
    """A set of each kind, as published."""
    for name in TASKS:
        (data / name).mkdir(parents=True)
    words = ["cyt", "gen", "hep", "lip"]
    options = dict(zip(("opa", "opb", "opc", "opd"), words, strict=True))
    for split, n in (("train", 40), ("dev", 6)):
        questions = [{"id": f"{split}{i}", "question": "Which?", "cop": i % 4 + 1, **options} for i in range(n)]
        (data / f"medmcqa/{split}.json").write_text("".join(json.dumps(q) + "\n" for q in questions))
    for split in ("train", "dev", "test"):
        pairs = [{"source": " ".join(words), "target": words[i % 4]} for i in range(8)]
        (data / f"mine/{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for split in ("train", "devel", "test"):
        (data / f"toy/{split}.tsv").write_text(f"{split}\tB-Gene\nro\tI-Gene\nlip\tO\n\n" * 8)
    (data / "pubmedqa/pqal_fold0").mkdir()
    answers = {str(i): ("yes", "no", "maybe")[i % 3] for i in range(24)}
    records = {i: {"QUESTION": "Does it?", "CONTEXTS": ["gen"], "final_decision": a} for i, a in answers.items()}
    for name, content in {
        "ori_pqal.json": records,
        "test_ground_truth.json": {i: answers[i] for i in list(answers)[16:]},
        "pqal_fold0/train_set.json": {i: {} for i in list(answers)[:12]},
        "pqal_fold0/dev_set.json": {i: {} for i in list(answers)[12:16]},
    }.items():
        (data / "pubmedqa" / name).write_text(json.dumps(content))


def finetune(name: str, tmp_path: Path, *more: str, ranks: int = 1) -> Command:
    yaml = {"mine": "meqsum", "toy": "ner"}.get(name, name)
    arguments = [
        f"yamls/finetune/{yaml}.yaml", f"task={name}", f"model={tmp_path / 'exported'}",
        f"data={tmp_path / 'data'}", f"run_dir={tmp_path / name}", "seq_len=64", "max_duration=2ba",
        "global_train_batch_size=4", "gpu_memory_gb=null", "generation.max_new_tokens=4", "eval_interval=1ba",
        "save_interval=1ba", *more,
    ]  # fmt: skip
    return recipe(name, "finetune", *arguments, ranks=ranks)


def test_one_device_from_training_to_text(run_all: Run, settings: Settings, tmp_path: Path) -> None:
    """A run is trained, stopped, resumed and exported; its model is fine-tuned; both models are used."""
    write_tasks(tmp_path / "data")
    run = settings("run")
    logged = [*run, "loggers.wandb={mode: offline}", "loggers.tensorboard={}"]
    exported = str(tmp_path / "exported")
    printed = run_all(
        [
            preempted("left", run, 2),
            recipe("resumed", "train", *logged, count_waits=True),
            recipe("export", "export", "--checkpoint", str(tmp_path / "run"), "--out", exported),
            recipe("generate", "generate", "--model", exported, "--prompt", "ba", "--temperature", "0"),
            finetune("pubmedqa", tmp_path, "preset=one-gpu-24gb"),
        ]
    )
    folder = tmp_path / "run"
    assert batches_of(folder) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in complete_checkpoints(folder / "checkpoints")] == ["ep0-ba2", "ep0-ba4", "ep0-ba6"]
    last = [line for line in lines_of(folder) if "memory/peak_allocated_mem" in line]
    assert last, "Composer's MemoryMonitor, which logs nothing on a CPU"
    assert "no-op CUDA, not a GPU" in (folder / "run.json").read_text()
    assert "only works on CUDA" not in printed["left"] and "attention parity" in printed["resumed"]
    assert len((folder / "texts.jsonl").read_text().splitlines()) == 2
    assert list(folder.glob("tensorboard/**/events*")) and list(folder.glob("wandb/offline-run-*"))
    assert len({line["data/batch_fingerprint"] for line in lines_of(folder) if "data/batch_fingerprint" in line}) == 6
    assert "[ba]" in printed["generate"]
    assert (tmp_path / "pubmedqa/scores.json").is_file()
    waits = waits_of(printed["resumed"])
    ours = [line for line in waits if line.startswith("/")]  # the installed package has lost its folder
    assert ours and len(ours) <= 2 and all(any(file in line for file in OUR_WAITS) for line in ours), waits
    assert sum(waits.values()) <= WAITS_OF_A_BATCH, waits


def test_two_devices_save_and_resume_sharded(run_all: Run, settings: Settings, tmp_path: Path) -> None:
    """FSDP2: rank 0 sends its weights, DCP saves and resumes, and messages between ranks arrive."""
    run = settings("run")
    run_all([preempted("left", run, 5, ranks=2), recipe("resumed", "train", *run, ranks=2)])
    folder = tmp_path / "run"
    assert batches_of(folder) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in complete_checkpoints(folder / "checkpoints")] == ["ep0-ba4", "ep0-ba5", "ep0-ba6"]
    assert len(list((folder / "checkpoints/ep0-ba6").glob("__1_*.distcp"))) > 0


@pytest.mark.nocuda
def test_every_sharding_and_switch(run_all: Run, settings: Settings, tmp_path: Path) -> None:
    """Two ranks each; FSDP1 with its optimizer step and its own checkpoint; a run resumes after SIGKILL."""
    short = ["max_duration=4ba", "loggers.wandb=null"]
    changes = {
        "full": ["fsdp.mixed_precision=FULL"],
        "pure": ["fsdp.mixed_precision=PURE"],
        "zero2": ["fsdp.reshard_after_forward=false", "activation_checkpointing=true"],
        "hsdp": ["fsdp.data_parallel_replicate_degree=2"],
        "ddp": ["fsdp=null"],
        "ddp-recomputed": ["fsdp=null", "activation_checkpointing=true"],
        "compiled": ["kernels.compile=true"],
        "blocks": ["activation_checkpointing=true", "activation_checkpointing_blocks=2"],
        "efficient": ["kernels.sdpa_backend=efficient"],
        "no-kernels": ["kernels.fused_gelu=false", "kernels.loss_chunk_tokens=null"],
    }
    fsdp1 = settings("fsdp1", "fsdp.version=1")
    killed = settings("killed", "save_interval=2ba")
    kill = ["tests/helpers/inject.py", "kill-all:0:4", "--", *killed]
    commands = [recipe(name, "train", *settings(name, *short, *more), ranks=2) for name, more in changes.items()]
    commands += [
        preempted("fsdp1-left", fsdp1, 5, ranks=2),
        recipe("fsdp1", "train", *fsdp1, ranks=2),
        {"name": "killed", "argv": kill, "ranks": 2, "code": -9},
        recipe("killed-resumed", "train", *killed, ranks=2),
        recipe("one-compiled", "train", *settings("one-compiled", *short, "kernels.compile=true")),
        recipe("one-recomputed", "train", *settings("one-recomputed", *short, "activation_checkpointing=true")),
    ]
    run_all(commands)
    for name in changes:
        assert batches_of(tmp_path / name) == [1, 2, 3, 4], name
        assert [path.name for path in complete_checkpoints(tmp_path / name / "checkpoints")] == ["ep0-ba4"], name
    assert batches_of(tmp_path / "fsdp1") == [1, 2, 3, 4, 5, 6]
    assert batches_of(tmp_path / "killed") == [1, 2, 3, 3, 4, 5, 6], "batch 3 was lost with the process"


@pytest.mark.nocuda
@pytest.mark.parametrize(
    ("ranks", "key", "was", "becomes"),
    [(1, "precision", "fp32", "amp_bf16"), (2, "fsdp.mixed_precision", "FULL", "PURE")],
)
def test_an_allowed_precision_acts_on_resuming(
    ranks: int, key: str, was: str, becomes: str, run_all: Run, settings: Settings, tmp_path: Path
) -> None:
    """The precision is seen in the output dtypes of modules, which one or two ranks train in."""
    name = key.rpartition(".")[2]
    run = settings("run", f"{key}={was}", "max_duration=4ba", "save_interval=2ba")
    changed = [*run, f"{key}={becomes}"]
    printed = run_all(
        [
            {**preempted("left", run, 2, ranks), "say_dtypes": True},
            recipe("refused", "train", *changed, ranks=ranks, code=2),
            recipe("changed", "train", *changed, f"resume.allow=[{name}]", ranks=ranks, say_dtypes=True),
        ]
    )
    assert f"{name}: '{was}' -> '{becomes}'" in printed["refused"]
    before, after = (set(re.findall("^dtype: (.*)$", printed[name], re.MULTILINE)) for name in ("left", "changed"))
    module = "Conv1D" if ranks == 1 else "FSDPGPT2Block"
    assert f"{module} torch.float32" in before and f"{module} torch.bfloat16" not in before, before
    assert f"{module} torch.bfloat16" in after and f"{module} torch.float32" not in after, after


@pytest.mark.nocuda
def test_every_kind_of_task_and_every_other_command(
    run_all: Run, settings: Settings, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Four kinds of task, each preset for GPUs, sharded fine-tuning; scores and perplexity; preflight; a rung."""
    write_tasks(tmp_path / "data")
    exported = str(tmp_path / "exported")
    run = settings("run")
    ask = ["--model", exported, "--data", str(tmp_path / "data"), "--out"]
    perplexity = ["--corpus", str(tiny_corpus), "--text-documents", "3"]
    tuned = ["--model", str(tmp_path / "medmcqa/model"), "--data", str(tmp_path / "data"), "--out"]
    printed = run_all(
        [
            recipe("train", "train", *run),
            recipe("export", "export", "--checkpoint", str(tmp_path / "run"), "--out", exported),
            finetune("medmcqa", tmp_path, "preset=one-gpu-80gb"),
            finetune("pubmedqa", tmp_path, "preset=full", "device_train_microbatch_size=1", ranks=2),
            finetune("mine", tmp_path, "preset=one-gpu-24gb"),
            finetune("toy", tmp_path, "preset=one-gpu-80gb"),
            recipe("few-shot", "evaluate", *ask, str(tmp_path / "few-shot"), "--tasks", "medmcqa", "--shots", "1"),
            recipe("head", "evaluate", *tuned, str(tmp_path / "head"), "--tasks", "medmcqa"),
            recipe("perplexity", "evaluate", *ask, str(tmp_path / "perplexity"), "--tasks", "medmcqa", *perplexity),
            recipe("rung", "train", *settings("rung", yaml="ladder/20m")),
            recipe("ladder", "ladder", *map(str, sorted(Path("yamls/ladder").glob("*.yaml"))), "--dry-run"),
            recipe("preflight", "preflight", *settings("preflight")),
            recipe("preflight-2", "preflight", *settings("preflight-2"), ranks=2),
        ]
    )
    for name in TASKS:
        assert (tmp_path / name / "scores.json").is_file() and (tmp_path / name / "model/config.json").is_file(), name
    for name in ("few-shot", "head", "perplexity"):
        assert (tmp_path / name / "results.json").is_file(), name
    assert batches_of(tmp_path / "rung") == [1, 2, 3, 4, 5, 6]
    assert all("ready: smoke-gpu can start" in printed[name] for name in ("preflight", "preflight-2"))
    assert "tensors of weights and moments are restored bit for bit" in printed["preflight"]

"""An export computes the same as the trained model, in any version of transformers, and generates text."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import save
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, modeling_utils
from transformers.utils.hub import convert_file_size_to_int

from bin_weights import save_as_bin
from data_prep.common.errors import BadInput
from layer_scaling import without_layer_scaling
from project import ROOT
from recipes import export, generate, report
from recipes.checkpointing import checkpoint as checkpoints
from recipes.checkpointing.safe_loading import load_model_weights, refuse_unsafe
from recipes.config.loading import load_config
from recipes.generation import sampling
from recipes.generation.samples import generate as continue_prompt
from recipes.modeling import model_folder
from recipes.runs.names import CONFIG, RECORD
from recipes.runs.reading import SAMPLES
from recipes.runs.report_page import REPORT
from recipes.training import pretraining


@pytest.fixture(scope="module")
def finished_run(tiny_shards: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    cfg = load_config(
        ROOT / "yamls/smoke-cpu.yaml",
        [f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={folder}", "data.seq_len=64",
         "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=64", "model.n_layer=4",
         "max_duration=40ba", "global_train_batch_size=8", "scheduler.t_warmup=5ba", "eval_interval=40ba",
         "save_interval=20ba", "loggers.wandb=null", "optimizer.lr=1e-2"],
    )  # fmt: skip
    pretraining.train(cfg)
    return folder


@pytest.fixture(scope="module")
def exported(finished_run: Path) -> Path:
    out = finished_run.with_name("model")
    export.main(["--checkpoint", str(finished_run), "--out", str(out)])
    return out


@pytest.fixture
def original_style(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A folder like the published BioMedLM: with the flag for layer scaling, no cache, pytorch_model.bin."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600, n_positions=64, n_embd=64, n_layer=6, n_head=4, scale_attn_by_inverse_layer_idx=True,
        use_cache=False, initializer_range=0.15, bos_token_id=599, eos_token_id=599,
    )  # fmt: skip
    folder = tmp_path / "original"
    save_as_bin(GPT2LMHeadModel(config), folder)
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(folder)
    return folder


def test_stock_transformers_computes_the_trained_model(exported: Path, finished_run: Path) -> None:
    """Compare with the checkpoint by an independent path: its weights in transformers' eager attention."""
    checkpoint = torch.load(finished_run / "checkpoints/ep0-ba40/rank0.pt", weights_only=False)  # made above
    cfg = load_config(finished_run / "config.yaml")
    config = GPT2Config(
        vocab_size=600, n_positions=64, n_embd=64, n_layer=4, n_head=cfg.model.n_head,
        scale_attn_by_inverse_layer_idx=True, attn_implementation="eager",
    )  # fmt: skip
    trained = GPT2LMHeadModel(config).eval()
    trained.load_state_dict({k.removeprefix("model."): v for k, v in checkpoint["state"]["model"].items()})
    tokens = torch.randint(0, 599, (2, 50), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = trained(input_ids=tokens).logits
        for implementation in ("eager", "sdpa"):
            model = AutoModelForCausalLM.from_pretrained(exported, attn_implementation=implementation).eval()
            assert (model(input_ids=tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        unfolded = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="sdpa").eval()
        unfolded.load_state_dict(trained.state_dict())
        assert (unfolded(input_ids=tokens).logits - expected).abs().max() > 1e-3 * expected.abs().max()


def test_the_folder_is_a_release(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["scale_attn_by_inverse_layer_idx"] is False and config["use_cache"] is True
    assert config["bos_token_id"] == config["eos_token_id"] == config["pad_token_id"] == 599
    names = set(load_file(exported / "model.safetensors"))
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    assert not any(name.endswith((".attn.bias", "masked_bias")) for name in names)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert len(tokenizer) == 600 and tokenizer.eos_token_id == 599
    card = (exported / "README.md").read_text()
    for fact in (
        "license: bigscience-bloom-rail-1.0",
        "medical advice",
        "bits per byte",
        "40 batches",
        "DecoupledAdamW",
    ):
        assert fact in card, fact
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_model_of_any_size_is_saved_as_one_file(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would divide the 2.7B into parts, which evaluate.py, generate.py and finetune.py do not read."""
    cut_bytes: list[int] = []
    real = modeling_utils.split_torch_state_dict_into_shards

    def spy(state: Any, filename_pattern: str, max_shard_size: int | str) -> Any:
        cut_bytes.append(convert_file_size_to_int(max_shard_size))
        return real(state, filename_pattern=filename_pattern, max_shard_size=max_shard_size)

    monkeypatch.setattr(modeling_utils, "split_torch_state_dict_into_shards", spy)
    export.export(finished_run, tmp_path / "model")
    assert cut_bytes and min(cut_bytes) > 2 * 4 * 2_594_247_680  # twice the 2.7B in fp32


def test_a_folder_in_parts_is_read_whole(exported: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(exported, parts, ignore=shutil.ignore_patterns("model.safetensors", "manifest.json"))
    model = GPT2LMHeadModel.from_pretrained(exported)
    model.save_pretrained(parts, max_shard_size="200KB")
    index, first, *others = model_folder.weight_files(parts)
    assert index.name == "model.safetensors.index.json" and others
    loaded, _ = model_folder.load_pretrained(parts)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    export.export(parts, tmp_path / "again")
    weights = load_file(exported / "model.safetensors")
    again = load_file(tmp_path / "again/model.safetensors")
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    before = model_folder.folder_sha256(parts)
    changed = {name: value + 1 for name, value in load_file(others[-1]).items()}
    save_file(changed, others[-1], {"format": "pt"})
    assert model_folder.folder_sha256(parts) != before
    first.unlink()
    with pytest.raises(BadInput, match=f"lacks {first.name}, which model.safetensors.index.json names"):
        model_folder.check_folder(parts)


def test_exporting_again_does_no_work(exported: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    export.main(["--checkpoint", str(finished_run), "--out", str(exported)])
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    with pytest.raises(BadInput, match="another build"):
        export.main(["--checkpoint", str(finished_run / "checkpoints/ep0-ba20"), "--out", str(exported)])


def test_an_original_style_folder_is_repaired(original_style: Path, tmp_path: Path) -> None:
    tokens = torch.arange(100).view(2, 50)
    eager = GPT2LMHeadModel.from_pretrained(original_style, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = eager(input_ids=tokens).logits
        stock = (
            without_layer_scaling(AutoModelForCausalLM.from_pretrained(original_style)).eval()(input_ids=tokens).logits
        )
        assert (stock - expected).abs().max() > 1e-2 * expected.abs().max(), (
            "transformers' fast attention leaves out the scale"
        )
        export.main(["--checkpoint", str(original_style), "--out", str(tmp_path / "fixed")])
        fixed = AutoModelForCausalLM.from_pretrained(tmp_path / "fixed").eval()
        assert (fixed(input_ids=tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert fixed.config.use_cache


def test_folding_twice_does_nothing(original_style: Path, tmp_path: Path) -> None:
    export.main(["--checkpoint", str(original_style), "--out", str(tmp_path / "once")])
    export.main(["--checkpoint", str(tmp_path / "once"), "--out", str(tmp_path / "twice")])
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_bf16_export_is_close(finished_run: Path, tmp_path: Path) -> None:
    export.main(["--checkpoint", str(finished_run), "--out", str(tmp_path / "bf16"), "--dtype", "bfloat16"])
    assert load_file(tmp_path / "bf16/model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16


def test_an_export_that_computes_another_model_leaves_no_folder(
    original_style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_the_bias(model: Any) -> None:
        for layer, block in enumerate(model.transformer.h):
            block.attn.c_attn.weight.data[:, :64] /= layer + 1.5
        model.config.scale_attn_by_inverse_layer_idx = False

    monkeypatch.setattr(export, "fold_layer_scaling", forget_the_bias)
    with pytest.raises(BadInput, match="does not compute the trained model"):
        export.main(["--checkpoint", str(original_style), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "does not exist"), ("empty", "not a finished checkpoint folder"), ("bert", "only gpt2"),
     ("no-weights", "neither model.safetensors nor")],
)  # fmt: skip
def test_unusable_sources_are_refused(name: str, says: str, tmp_path: Path) -> None:
    configs = {"empty": None, "bert": '{"model_type": "bert"}', "no-weights": GPT2Config().to_json_string()}
    for folder, config in configs.items():
        (tmp_path / folder).mkdir()
        if config:
            (tmp_path / folder / "config.json").write_text(config)
    (tmp_path / "bert/model.safetensors").write_bytes(b"")
    (tmp_path / "bert/vocab.json").write_text("{}")
    with pytest.raises(BadInput, match=says):
        export.main(["--checkpoint", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_of_something_else_is_kept(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BadInput, match="was not made by this stage"):
        export.main(["--checkpoint", str(finished_run), "--out", str(tmp_path)])
    assert (tmp_path / "precious.txt").read_text() == "mine"


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


def test_a_checkpoint_that_would_run_code_is_refused(finished_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in (RECORD, CONFIG):
        (run / name).write_text((finished_run / name).read_text())
    (run / "tokenizer").symlink_to(finished_run / "tokenizer")
    partial = run / "checkpoints/ep0-ba20.partial"
    partial.mkdir()
    torch.save({"state": {"model": {}}, "rng": Payload(target)}, partial / "rank0.pt")
    checkpoints.publish(partial, run / "checkpoints/ep0-ba20", {"batch": 20, "epoch": 0, "sample_in_epoch": 0}, {})
    with pytest.raises(BadInput, match="would run code"):
        export.main(["--checkpoint", str(run), "--out", str(tmp_path / "out")])
    sharded = tmp_path / "ep0-ba10"
    sharded.mkdir()
    (sharded / ".metadata").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(BadInput, match="would run code"):
        load_model_weights(sharded, torch.nn.Linear(2, 2))
    # An index that declares a weight as bytes, which would be unpickled.
    save(
        {"state": {"model": {"model.weight": Payload(target), "model.bias": Payload(target)}}},
        checkpoint_id=str(tmp_path / "ep0-ba11"),
        no_dist=True,
    )
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model_weights(tmp_path / "ep0-ba11", torch.nn.Linear(2, 2))
    assert not target.exists()
    refuse_unsafe(finished_run / "checkpoints/ep0-ba40/rank0.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="run on Linux: it reads /proc")
def test_reading_a_checkpoint_holds_the_model_once(tmp_path: Path) -> None:
    """The mapped pages of the file do not stay in memory beside the model of 100 MB."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(24)))
    torch.save({"state": {"model": model.state_dict()}}, tmp_path / checkpoints.MONOLITH)

    def status_mb(key: str) -> float:
        text = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1e3 for line in text.splitlines() if line.startswith(f"{key}:"))

    load_model_weights(tmp_path, model, prefix="")  # import all modules that are imported late
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before_mb = status_mb("VmRSS")
    load_model_weights(tmp_path, model, prefix="")
    assert status_mb("VmHWM") - before_mb < 40


def test_generate_talks_and_says_what_for(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(exported), "--max-new-tokens", "8", "--out", str(tmp_path / "samples.json")]
    generate.main(command)
    printed = capsys.readouterr()
    assert "research only" in printed.err and "medical advice" in printed.err
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert len(samples) == 3 and all(sample["prompt"] and 1 <= sample["tokens"] <= 8 for sample in samples)
    generate.main(command)
    assert "up to date" in capsys.readouterr().out


def test_generate_stops_at_end_of_text(exported: Path) -> None:
    model, tokenizer = sampling.load_model(exported, "cpu")
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[tokenizer.eos_token_id] * 100)
    settings = {"max_new_tokens": 30, "temperature": 0.0, "repetition_penalty": 1.0, "seed": 1}
    sample = continue_prompt(model, tokenizer, "batoma", settings)
    assert sample["stopped"] and sample["tokens"] == 1 and sample["text"] == ""


def test_greedy_text_is_the_same_with_and_without_cache(exported: Path) -> None:
    model, tokenizer = sampling.load_model(exported, "cpu")
    inputs = tokenizer("Cytgenase", return_tensors="pt")
    runs = [model.generate(**inputs, do_sample=False, max_new_tokens=20, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*runs)


def test_generate_refuses_what_it_cannot_continue(exported: Path) -> None:
    with pytest.raises(BadInput, match="not a Hugging Face folder"):
        generate.main(["--model", "nowhere"])
    with pytest.raises(BadInput, match="context holds 64"):
        generate.main(["--model", str(exported), "--prompt", "batoma " * 100])
    with pytest.raises(BadInput, match=r"--top-p: '2' must be a number from 0\.01"):
        generate.main(["--model", str(exported), "--top-p", "2"])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_is_read_on_a_phone(
    finished_run: Path, exported: Path, visit: Callable[[str, int], Any], width: int
) -> None:
    generate.main(["--model", str(exported), "--max-new-tokens", "60", "--out", str(finished_run / SAMPLES)])
    report.main([str(finished_run)])
    page = visit((finished_run / REPORT).as_uri(), width)
    assert page.get_by_role("img", name="Loss").bounding_box()["width"] > 0.8 * min(width, 400)
    assert page.get_by_text("Photosynthesis is the process by which").is_visible()
    assert "research only" in page.inner_text("body")

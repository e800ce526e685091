"""A folder that is damaged, or mixed from two, is refused with the reason, or computes the same."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import save
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bin_weights import save_as_bin
from data_prep.common.errors import BadInput
from layer_scaling import without_layer_scaling
from project import ROOT
from recipes import evaluate, export, generate
from recipes.checkpointing.checkpoint import MONOLITH
from recipes.checkpointing.origin import read_origin
from recipes.checkpointing.safe_loading import load_model_weights
from recipes.checkpointing.trained_model import find_source, load_trained
from recipes.finetuning import heads
from recipes.finetuning.heads import FineTuned
from recipes.finetuning.task_head import TaskHead, read_task
from recipes.finetuning.verdict import Verdict
from recipes.generation.sampling import Continuation, load_model
from recipes.modeling.model_folder import check_folder, load_pretrained
from recipes.modeling.release import logits

SETTINGS: dict[str, Any] = {
    "vocab_size": 600, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "initializer_range": 0.3,
    "bos_token_id": 599, "eos_token_id": 599,
}  # fmt: skip
FILE, BIN = "model.safetensors", "pytorch_model.bin"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def honest(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("folder") / "honest"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SETTINGS)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which transformers 5 leaves out
    return folder


@pytest.fixture(scope="module")
def exported(honest: Path) -> Path:
    export.main(["--checkpoint", str(honest), "--out", str(honest.with_name("exported"))])
    return honest.with_name("exported")


@pytest.fixture(scope="module")
def tuned(honest: Path) -> Path:
    folder, tokenizer = honest.with_name("tuned"), AutoTokenizer.from_pretrained(honest)
    Verdict().add_tokens(tokenizer)
    model = GPT2LMHeadModel.from_pretrained(honest)
    heads.resize(model, len(tokenizer))
    heads.save(FineTuned(model, TaskHead("pubmedqa", "verdict", ("yes", "no"), 16)), tokenizer, folder)
    return folder


def opened(folder: Path) -> torch.Tensor:
    """Logits of the model for a text."""
    model, tokenizer = load_pretrained(folder)
    with torch.no_grad():
        direct = model(input_ids=tokenizer("Cytase is 5", return_tensors="pt")["input_ids"]).logits
    assert direct.isfinite().all()
    return torch.cat([direct.flatten(), logits(model).flatten()])


def scores(folder: Path) -> torch.Tensor:
    model, _ = heads.load(folder)
    batch = {"input_ids": torch.arange(5).view(1, 1, 5), "lengths": torch.tensor([[5]])}
    with torch.no_grad():
        return model.answers(batch)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = FILE) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file, {"format": "pt"})

    return apply


def with_json(file: str, key: str, *value: Any) -> Change:
    """Set a key of a JSON file, or remove it if there is no value."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        content.pop(key)
        (folder / file).write_text(json.dumps({**content, **dict.fromkeys([key] * len(value), *value)}))

    return apply


def overwrite(file: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def damages_of_tensors(file: Path) -> Iterator[tuple[str, Change, str]]:
    for name, value in load_file(file).items():
        for number in ("nan", "-inf"):
            put = with_tensors(lambda t, n=name, x=float(number): t[n].view(-1)[-1:].fill_(x), file.name)
            yield f"{name} {number}", put, name
        changes: dict[str, Callable[[Any, Any, Any], Any]] = {
            "missing": lambda t, n, v: t.pop(n),
            "longer": lambda t, n, v: t.update({n: torch.cat([v, v[:1]])}),
            "turned": lambda t, n, v: t.update({n: v[None]}),
            "int64": lambda t, n, v: t.update({n: v.to(torch.int64)}),
            "float8": lambda t, n, v: t.update({n: v.to(torch.float8_e4m3fn)}),
            "renamed": lambda t, n, v: t.update({f"{n}_": t.pop(n)}),
        }
        for damage, change in changes.items():
            yield f"{name} {damage}", with_tensors(lambda t, c=change, n=name, v=value: c(t, n, v), file.name), name


def damages_of_bytes(file: Path) -> Iterator[tuple[str, Change, str]]:
    size = file.stat().st_size
    for length in sorted({0, 1, 9, size // 2, size - 1}):
        yield f"{file.name} cut to {length}", overwrite(file.name, lambda b, n=length: b[:n]), file.name
    yield f"{file.name} of noise", overwrite(file.name, lambda b: bytes(range(256)) * 9), file.name
    for text in (b"null", b"[]", b"7", b'"text"', b"{}"):
        yield f"{file.name} = {text.decode()}", overwrite(file.name, lambda b, t=text: t), file.name
    yield f"{file.name} removed", lambda folder: (folder / file.name).unlink(), ""


def damages(folder: Path) -> Iterator[tuple[str, Change, str]]:
    """Name, change, and the expected message."""
    yield from damages_of_tensors(folder / FILE)
    for name in ("extra.weight", "transformer.h.2.ln_1.weight", "transformer.h.0.attn.c_attn.lora_A.weight"):
        yield f"{name} added", with_tensors(lambda t, n=name: t.update({n: torch.ones(2)})), ""
    unlike = with_tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    yield "another head beside a tied one", unlike, "lm_head.weight"
    for name in json.loads((folder / "config.json").read_text()):
        for value in ((), (None,), ("no such value",), (-1,)):
            yield f"config.json {name} {value}", with_json("config.json", name, *value), ""
    for name, value in (
        ("n_layer", 1),
        ("n_layer", 10**9),
        ("n_head", [1]),
        ("n_inner", 0),
        ("n_embd", True),
        ("n_layer", 3),
        ("n_positions", 8),
        ("n_embd", 4),
        ("vocab_size", 599),
    ):
        yield f"{name} = {value}", with_json("config.json", name, value), name
    yield "n_head = 3", with_json("config.json", "n_head", 3), "n_head"
    yield "an adapter", lambda at: (at / "adapter_config.json").write_text("{}"), "adapter_config.json"
    for file in sorted(folder.iterdir()):
        for damage, change, names in damages_of_bytes(file):
            yield damage, change, names if file.name != "merges.txt" else ""
    for damage, change, _ in damages_of_bytes(folder / "merges.txt"):
        yield f"{damage}, alone", lambda at, c=change: ((at / "tokenizer.json").unlink(), c(at)), "merges.txt"


def test_a_damaged_folder_is_refused_by_name_or_computes_the_same(honest: Path, tmp_path: Path) -> None:
    expected, refused, same = opened(honest), 0, []
    for damage, change, names in damages(honest):
        folder = tmp_path / "m"
        shutil.copytree(honest, folder)
        change(folder)
        try:
            computed = opened(folder)
        except BadInput as error:
            refused += 1
            assert names in str(error), f"{damage}: {error}"
        else:
            assert torch.equal(computed, expected), f"{damage}: loaded, but computes another model"
            same.append(damage)
        shutil.rmtree(folder)
    assert refused > 250
    # No damage to a weight may be among these.
    assert not [damage for damage in same if damage.startswith(("transformer.", "model.safetensors", "another"))], same


def test_a_folder_that_we_wrote_is_opened_as_it_was_written(exported: Path, tmp_path: Path) -> None:
    """The manifest has the hash of each file, so changes without effect on shapes are found, such as another n_head."""
    expected = opened(exported)
    changes: list[tuple[str, Change]] = [
        ("config.json", with_json("config.json", "n_head", 4)),
        ("config.json", with_json("config.json", "activation_function", "relu")),
        (FILE, with_tensors(lambda t: t["transformer.ln_f.bias"].add_(1e-3))),
    ]
    files = [path.name for path in exported.iterdir() if path.name not in ("README.md", "manifest.json")]
    assert {"config.json", FILE, "vocab.json", "merges.txt", "tokenizer.json"} <= {*files}
    for name in files:
        changes.append((name, lambda folder, n=name: (folder / n).unlink()))
        changes.append((name, overwrite(name, lambda b: b + b" ")))
    for name, change in changes:
        shutil.copytree(exported, tmp_path / "m")
        change(tmp_path / "m")
        with pytest.raises(BadInput, match=name):
            opened(tmp_path / "m")
        shutil.rmtree(tmp_path / "m")
    for name in ("README.md", "manifest.json"):
        shutil.copytree(exported, tmp_path / "m")
        (tmp_path / "m" / name).unlink()
        assert torch.equal(opened(tmp_path / "m"), expected)
        shutil.rmtree(tmp_path / "m")
    shutil.copytree(exported, tmp_path / "m")
    with_json("manifest.json", "outputs", {})(tmp_path / "m")
    with pytest.raises(BadInput, match=r"manifest\.json was altered"):
        opened(tmp_path / "m")


def old_masks(tensors: dict[str, torch.Tensor]) -> None:
    """The attention masks that transformers up to 4.26 saved with a GPT-2."""
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def bare(tensors: dict[str, torch.Tensor]) -> None:
    """The names of GPT2Model, as in openai-community/gpt2."""
    old_masks(tensors)
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


def to_bin(remove: bool = True) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]  # one storage, as torch saves tied weights
        torch.save(tensors, folder / BIN)
        if remove:
            (folder / FILE).unlink()

    return apply


def in_parts(safe: bool) -> Change:
    def apply(folder: Path) -> None:
        model = GPT2LMHeadModel.from_pretrained(folder)
        (folder / FILE).unlink()
        if safe:
            model.save_pretrained(folder, max_shard_size="5KB")
        else:
            save_as_bin(model, folder, max_shard_size="5KB")

    return apply


def untied(folder: Path) -> None:
    with_tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))(folder)
    with_json("config.json", "model_type", "gpt2")(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


HONEST: dict[str, Change] = {
    "names of GPT2Model": with_tensors(bare),
    "causal masks": with_tensors(old_masks),
    "tied head": with_tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()})),
    "untied head": untied,
    "fp64": with_tensors(lambda t: t.update({n: v.double() for n, v in t.items()})),
    "bin": to_bin(),
    "both": to_bin(remove=False),
    "parts": in_parts(True),
    "parts of bin": in_parts(False),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_folders_load(name: str, honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "m")
    HONEST[name](folder)
    assert torch.equal(opened(folder), opened(honest))
    export.export(folder, tmp_path / "again")
    assert torch.equal(opened(tmp_path / "again"), opened(honest))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_width_are_read_as_they_are(dtype: torch.dtype, honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "m")
    with_tensors(lambda t: t.update({n: v.to(dtype) for n, v in t.items()}))(folder)
    stock = GPT2LMHeadModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    assert torch.equal(logits(stock).flatten(), opened(folder)[-logits(stock).numel() :])


@pytest.mark.parametrize("name", [f"{FILE}.index.json", f"{BIN}.index.json"])
def test_parts_that_their_index_does_not_describe_are_refused(name: str, honest: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(honest, tmp_path / "whole")
    in_parts(name.startswith(FILE))(whole)
    places = json.loads((whole / name).read_text())["weight_map"]
    tensor, part = next(iter(places.items()))
    other = next(file for file in places.values() if file != part)

    def places_are(**changes: Any) -> Change:
        return with_json(name, "weight_map", {**places, **{k.replace("__", "."): v for k, v in changes.items()}})

    wrong = {key.replace(".", "__"): other for key in [tensor]}
    cases: list[tuple[Change, str]] = [
        (lambda folder: (folder / part).unlink(), part),
        (places_are(**wrong), tensor),
        (places_are(made__up=part), "made.up"),
        (with_json(name, "weight_map", {k: v for k, v in places.items() if k != tensor}), tensor),
        (places_are(**{tensor.replace(".", "__"): f"../{part}"}), "names a file outside its folder"),
        (places_are(**{tensor.replace(".", "__"): 7}), "names a file outside its folder"),
        (with_json(name, "weight_map", []), "weight_map"),
        (with_json(name, "weight_map"), "weight_map"),
        (overwrite(name, lambda b: b[:-9]), name),
        (overwrite(name, lambda b: b"[]"), name),
        (overwrite(part, lambda b: b[:-9]), part),
    ]
    for change, names in cases:
        folder = shutil.copytree(whole, tmp_path / "m")
        change(folder)
        with pytest.raises(BadInput, match=names.replace(".", r"\.")):
            opened(folder)
        shutil.rmtree(folder)


def test_a_bin_that_would_run_code_or_holds_something_else_is_refused(honest: Path, tmp_path: Path) -> None:
    for content in ({"wte": Path}, [torch.ones(2)], {"state_dict": {"wte.weight": torch.ones(2)}}, torch.ones(2)):
        folder = shutil.copytree(honest, tmp_path / "m")
        (folder / FILE).unlink()
        torch.save(content, folder / BIN)
        with pytest.raises(BadInput, match=r"pytorch_model\.bin"):
            opened(folder)
        shutil.rmtree(folder)


def test_a_bin_is_not_read_beyond_its_records(honest: Path, tmp_path: Path) -> None:
    """torch before 2.10 reads the bytes after a record that is too short as weights."""
    folder = shutil.copytree(honest, tmp_path / "m")
    to_bin()(folder)
    with ZipFile(folder / BIN) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with ZipFile(folder / BIN, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content[:-4] if name.endswith("/data/0") else content)
    with pytest.raises(
        BadInput, match=r"pytorch_model\.bin cannot be read as weights .*claims \d+ bytes of storage '0'"
    ):
        opened(folder)


def test_a_bin_that_torch_would_not_read_as_an_archive_is_refused(honest: Path, tmp_path: Path) -> None:
    """torch before 1.6 wrote bare pickles, which nothing here follows; an archive behind one would pass for it."""
    folder = shutil.copytree(honest, tmp_path / "m")
    to_bin()(folder)
    weights = torch.load(folder / BIN)
    archive = (folder / BIN).read_bytes()
    torch.save(weights, folder / BIN, _use_new_zipfile_serialization=False)
    old = (folder / BIN).read_bytes()
    for content in (old, old + archive, b"\0" + archive, b"PK\x05\x06" + archive, b"PK\x03", b""):
        (folder / BIN).write_bytes(content)
        with pytest.raises(BadInput, match=r"pytorch_model\.bin: .* of torch before 1\.6, .* save it again"):
            opened(folder)


@pytest.mark.parametrize("value", ["owner/name", {"": "owner/name"}, ["a"], "sdpa", 1])
@pytest.mark.parametrize(
    "name",
    ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
     "_experts_implementation_internal", "some_implementation_to_come", "auto_map", "custom_pipelines",
     "transformers_weights"],
)  # fmt: skip
def test_a_configuration_that_names_code_or_an_implementation_is_refused(
    name: str, value: Any, honest: Path, tmp_path: Path
) -> None:
    """CVE-2026-4372 and its kin: a name of a repository on the hub, whose code would be fetched and run."""
    folder = shutil.copytree(honest, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(BadInput, match=f"config.json asks for {name}, which this recipe does not read"):
        check_folder(folder)
    harmless = {name: None, "_attn_implementation_autoset": True}  # as transformers 4.48 wrote
    (folder / "config.json").write_text(json.dumps({**config, **harmless}))
    check_folder(folder)


def test_a_tokenizer_of_another_model_is_refused(honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["quite-new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="has 601 entries, its model 600, and 'quite-new' is id 600"):
        opened(folder)
    with pytest.raises(BadInput, match="quite-new"):
        generate.main(["--model", str(folder), "--prompt", "x"])


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize("count", [1, 5000])
def test_added_tokens_that_would_take_minutes_are_refused(name: str, count: int, honest: Path, tmp_path: Path) -> None:
    """The library's time grows with the square of the length: a token of 200,000 characters took 20 minutes."""
    folder = shutil.copytree(honest, tmp_path / "long")
    (folder / "manifest.json").unlink(missing_ok=True)
    texts = ["x" * 200_000] if count == 1 else [f"<{n}>" + "x" * 240 for n in range(count)]
    path = folder / name
    whole = json.loads(path.read_text()) if path.is_file() else {}
    if name == "tokenizer.json":
        whole["added_tokens"] += [
            {**whole["added_tokens"][0], "id": 700 + n, "content": t} for n, t in enumerate(texts)
        ]
    else:
        whole |= {"chat_template": "y" * 5000, "additional_special_tokens": texts}
    path.write_text(json.dumps(whole))
    message = "the token 'x+'… has 200,000 characters" if count == 1 else "its added tokens have more than 1,048,576"
    with pytest.raises(BadInput, match=f"{name}: {message}"):
        check_folder(folder)


def test_a_long_template_is_no_token(honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "long")
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "y" * 5000}))
    check_folder(folder)


def test_a_damaged_fine_tuned_folder_is_refused_by_name_or_answers_the_same(tuned: Path, tmp_path: Path) -> None:
    expected = scores(tuned)
    cases = [*damages_of_tensors(tuned / "head.safetensors")]
    for name in ("head.safetensors", "task.json"):
        cases += [(damage, change, names or name) for damage, change, names in damages_of_bytes(tuned / name)]
    for name in ("task", "kind", "labels", "seq_len"):
        for value in ((), (None,), (7.5,), ("x",), ([],), ([1, 2],), (["yes"],), (17,), (-1,)):
            if (name, value) not in (("task", ("x",)), ("seq_len", (7,))):
                cases.append((f"{name} {value}", with_json("task.json", name, *value), ""))
    cases.append(("more", overwrite("task.json", lambda b: b.replace(b"{", b'{"more": 1,', 1)), "more"))
    cases.append(("pairs", with_json("task.json", "kind", "pairs"), "head"))
    for damage, change, names in cases:
        folder = shutil.copytree(tuned, tmp_path / "m")
        change(folder)
        try:
            answers = scores(folder)
        except BadInput as error:
            assert names in str(error), f"{damage}: {error}"
        else:
            assert torch.equal(answers, expected), f"{damage}: loaded, but answers in another way"
        shutil.rmtree(folder)
    folder = shutil.copytree(tuned, tmp_path / "m")
    (folder / "task.json").unlink()
    with pytest.raises(BadInput, match=r"lacks task\.json"):
        generate.main(["--model", str(folder), "--prompt", "x"])
    assert read_task(tuned)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_of_other_weights_is_refused(sharded: bool, honest: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(**SETTINGS))
    whole = {
        f"model.{name}": value.clone() for name, value in GPT2LMHeadModel.from_pretrained(honest).state_dict().items()
    }
    name = "model.transformer.h.1.mlp.c_fc.bias"
    changes: dict[str, dict[str, torch.Tensor]] = {
        "": whole,
        name: {key: value for key, value in whole.items() if key != name},
        "model.transformer.h.2.ln_1.weight": {**whole, "model.transformer.h.2.ln_1.weight": torch.ones(8)},
        f"{name} holds NaN or Inf": {**whole, name: torch.full((32,), torch.inf)},
        "transformer.h.1.mlp.c_fc.bias|[Ss]ize": {**whole, name: torch.zeros(31)},
    }
    for number, (names, weights) in enumerate(changes.items()):
        folder = tmp_path / str(number)
        if sharded:
            save({"state": {"model": weights}}, checkpoint_id=str(folder), no_dist=True)
        else:
            folder.mkdir()
            torch.save({"state": {"model": weights}}, folder / MONOLITH)
        if names:
            with pytest.raises(BadInput, match=names):
                load_model_weights(folder, model)
        else:
            load_model_weights(folder, model)
            assert all(torch.equal(value, whole[f"model.{key}"]) for key, value in model.state_dict().items())


def test_every_command_refuses_a_folder_that_lacks_a_tensor(honest: Path, tuned: Path, tmp_path: Path) -> None:
    """transformers would initialize it at random, differently each time."""
    name = "transformer.h.1.ln_2.weight"
    folder, answers = shutil.copytree(honest, tmp_path / "m"), shutil.copytree(tuned, tmp_path / "tuned")
    for place in (folder, answers):
        with_tensors(lambda t: t.pop(name))(place)
    ways: dict[str, Callable[[], object]] = {
        "export": lambda: export.main(["--checkpoint", str(folder), "--out", str(tmp_path / "out")]),
        "generate": lambda: generate.main(["--model", str(folder), "--prompt", "x"]),
        "evaluate": lambda: load_pretrained(folder),
        "evaluate a head": lambda: heads.load(answers),
        "finetune": lambda: load_trained(find_source(folder, None)),
    }
    for way in ways.values():
        with pytest.raises(BadInput, match=f"lacks {name}"):
            way()
    assert not (tmp_path / "out").exists()


def unusable(folder: Path) -> Iterator[tuple[str, Change]]:
    """Reasons why a folder is not a model, all noticed before its weights are read."""
    yield "nothing in it", lambda m: [path.unlink() for path in m.iterdir()]
    for name in ("config.json", FILE):
        yield f"no {name}", lambda m, name=name: (m / name).unlink()
    yield "no tokenizer", lambda m: [path.unlink() for path in m.iterdir() if path.name not in ("config.json", FILE)]
    yield "an adapter", lambda m: (m / "adapter_config.json").write_text("{}")
    yield (
        "an adapter alone",
        lambda m: [
            *(path.unlink() for path in m.iterdir()),
            (m / "adapter_config.json").write_text("{}"),
        ],
    )
    yield "another model", with_json("config.json", "model_type", "llama")
    yield "no size", with_json("config.json", "n_embd")
    yield "quantized", overwrite("config.json", lambda b: b.replace(b"{", b'{"quantization_config": {"bits": 4},', 1))
    yield "not JSON", overwrite("config.json", lambda b: b[:-9])
    yield "half a tokenizer", overwrite("tokenizer_config.json", lambda b: b[:-9])


def test_every_command_names_what_a_folder_lacks_alike(honest: Path, tmp_path: Path) -> None:
    """One function checks this; commands that accept a run or a checkpoint also accept such folders without a model."""
    for reason, change in unusable(honest):
        folder = shutil.copytree(honest, tmp_path / "m")
        change(folder)
        ways: dict[str, Callable[[], object]] = {
            "export": lambda folder=folder: export.main(["--checkpoint", str(folder), "--out", str(tmp_path / "out")]),
            "generate": lambda folder=folder: generate.main(["--model", str(folder), "--prompt", "x"]),
            "the page": lambda folder=folder: load_model(folder, "cpu"),
            "evaluate": lambda folder=folder: evaluate.main(
                ["--model", str(folder), "--tasks", "medqa", "--out", str(tmp_path / "scores")]
            ),
            "finetune": lambda folder=folder: find_source(folder, None),
            "init_from": lambda folder=folder: read_origin(folder),
        }
        messages = {}
        for name, way in ways.items():
            with pytest.raises(BadInput) as refused:
                way()
            messages[name] = str(refused.value).removeprefix(f"init_from = {folder}: ")
        if reason == "nothing in it":
            messages = {name: text for name, text in messages.items() if name in ("generate", "the page", "evaluate")}
            assert f"python recipes/export.py --checkpoint {folder} --out " in messages["generate"]
        assert len(set(messages.values())) == 1 and str(folder) in messages["generate"], f"{reason}: {messages}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_command_computes_attention_scaled_by_layer(dtype: str, honest: Path, tmp_path: Path) -> None:
    """For a folder like the published BioMedLM, transformers' fast attention would silently leave out the scale."""
    folder, exported = tmp_path / "m", tmp_path / "exported"
    model = GPT2LMHeadModel.from_pretrained(honest, scale_attn_by_inverse_layer_idx=True, attn_implementation="eager")
    model.to(getattr(torch, dtype)).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    AutoTokenizer.from_pretrained(honest).save_pretrained(folder)
    export.main(["--checkpoint", str(folder), "--out", str(exported)])
    expected = logits(model.float().eval())
    plain, _ = load_model(exported, "cpu")
    drawn, tokenizer = load_model(folder, "cpu")
    assert drawn.dtype == getattr(torch, dtype)
    bound = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}[dtype] * expected.abs().max()
    for computed in (logits(plain), logits(drawn), logits(load_pretrained(folder)[0])):
        assert (computed - expected).abs().max() <= bound
    assert (logits(without_layer_scaling(drawn)) - expected).abs().max() > 2 * bound, (
        "otherwise the test would not notice a missing scale"
    )
    assert sample_text(load_pretrained(folder)[0], tokenizer) == sample_text(plain.float(), tokenizer)


def sample_text(model: Any, tokenizer: Any) -> str:
    """Text that a model generates with its cache."""
    settings = {"max_new_tokens": 12, "temperature": 0.0, "repetition_penalty": 1.0, "seed": 1}
    return "".join(Continuation(model, tokenizer, "ba", settings))


def calls(*names: str) -> Iterator[tuple[str, str, dict[str | None, str]]]:
    """Find the calls of functions with these names: the file, the function as it is written, the named arguments."""
    for folder in ("callbacks", "data_prep", "recipes", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                # In a call of `partial`, the function is the first argument.
                if isinstance(node, ast.Call):
                    partial = ast.unparse(node.func) == "partial" and node.args
                    function = ast.unparse(node.args[0] if partial else node.func)
                    if function.rpartition(".")[2] in names:
                        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                        yield path.relative_to(ROOT).as_posix(), function, given


def test_no_tokenizer_is_saved_with_files_of_its_templates() -> None:
    """Whoever made the tokenizer's folder chooses the names of these files."""
    saved = [(where, given) for where, function, given in calls("save_pretrained") if "tokenizer" in function.lower()]
    assert len(saved) == 3
    for where, given in saved:
        assert given.get("save_jinja_files") == "False", where


def test_no_pickle_is_loaded_without_a_check() -> None:
    """Each of these places calls `check_archive` or `refuse_unsafe` first, and a new place has to do so too."""
    loaded = [(where, given) for where, function, given in calls("load") if function == "torch.load"]
    assert [where for where, _ in sorted(loaded, key=str)] == [
        "recipes/checkpointing/safe_loading.py",
        "recipes/checkpointing/safe_loading.py",
        "recipes/modeling/weights.py",
    ]
    assert all(given["weights_only"] == given["mmap"] == "True" for _, given in loaded)


def test_there_is_one_way_to_open_a_folder() -> None:
    """transformers' own functions would fill in missing weights at random, ask the hub, and run a folder's code."""
    opened = {f"{where}: {function}": given for where, function, given in calls("from_pretrained")}
    assert set(opened) == {
        "recipes/modeling/model_folder.py: AutoModelForCausalLM.from_pretrained",  # the export compares with it
        "recipes/modeling/tokenizer_folder.py: AutoTokenizer.from_pretrained",
        # Another project's tool, in its own environment.
        "benchmarks/peers/with_datasets.py: AutoTokenizer.from_pretrained",
    }
    for where, given in opened.items():
        assert (given["local_files_only"], given["trust_remote_code"]) == ("True", "False"), where

"""No pickle of a checkpoint runs code or reads beyond its bytes: each instruction, name and size is checked."""

from __future__ import annotations

import datetime
import importlib
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._utils
from torch.distributed.checkpoint import save
from torch.torch_version import TorchVersion

from data_prep.common.errors import BadInput
from recipes.checkpointing.safe_loading import load_model_weights, refuse_unsafe
from recipes.modeling import pickle_check
from recipes.modeling.pickle_check import IN_INDEX, Part, check_archive, follow_pickle

TABLES = [pickle_check._IN_ARCHIVES, IN_INDEX]
named: list[tuple[str, str]] = []  # names that any unpickler has looked up, reported by Python itself
sys.addaudithook(lambda event, arguments: named.append(arguments) if event == "pickle.find_class" else None)


def global_of(module: str, name: str, stacked: bool) -> bytes:
    """Instructions that push a global: GLOBAL, or two strings and STACK_GLOBAL."""
    if not stacked:
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    texts = (b"X" + struct.pack("<I", len(text.encode())) + text.encode() for text in (module, name))
    return b"".join(texts) + b"\x93"


def unknown_names() -> Iterator[tuple[str, str]]:
    """Names that can be reached from the modules of the tables, but are in neither table."""
    for module in sorted({module for table in TABLES for module, _ in table}):
        try:
            names = vars(importlib.import_module(module))
        except ImportError:
            continue  # of another Python or NumPy
        for name, value in list(names.items()):
            yield module, name
            if type(value) is type(os) or isinstance(value, type):
                yield from ((module, f"{name}.{inner}") for inner in ("system", "__init__", "__subclasses__"))
    yield from [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("", ""), ("pathlib", "PosixPath.unlink")]


def test_no_name_but_those_of_the_tables_is_taken() -> None:
    tried = 0
    for table in TABLES:
        for module, name in unknown_names():
            if (module, name) in table:
                continue
            for stacked in (False, True):
                with pytest.raises(BadInput, match="would run code"):
                    follow_pickle(b"\x80\x04" + global_of(module, name, stacked) + b".", table)
                tried += 1
    assert tried > 5000


def test_a_name_that_is_put_together_while_it_is_read() -> None:
    """`torch.serialization.get_unsafe_globals_in_checkpoint` misses it, because the strings come from the memo."""
    memo = b"\x80\x04" + b"X\x02\0\0\0os" + b"\x94" + b"X\x06\0\0\0system" + b"\x94" + b"00" + b"h\x00h\x01\x93."
    assert pickle.loads(memo) is os.system
    for table in TABLES:
        with pytest.raises(BadInput, match=r"os\.system"):
            follow_pickle(memo, table)


COMMON = [b")", b"(", b"]", b"}", b"K\x01", b"\x85", b"\x86", b"R", b"\x81", b"b", b"s", b"a", b"t", b"\x94"]
LINES = [b"0\n", b"1\n", b"'a'\n", b"os\nsystem\n"]


def random_pickle(draw: random.Random) -> bytes:
    """Some instructions with valid arguments, and names of all kinds; most results are not valid pickles."""
    out = bytearray(b"\x80\x04")
    names = [*IN_INDEX, ("os", "system"), ("builtins", "print")]
    for _ in range(draw.randint(1, 25)):
        operation = draw.choice(pickletools.opcodes)
        if draw.random() < 0.3:
            out += global_of(*draw.choice(names), stacked=draw.random() < 0.5)
        elif draw.random() < 0.3:
            out += draw.choice(COMMON)
        elif operation.name not in ("PROTO", "FRAME", "STOP"):
            out += operation.code.encode("latin-1")
            if operation.arg is not None:
                size = operation.arg.n
                out += draw.randbytes(size) if size >= 0 else draw.choice(LINES)
    return bytes(out) + b"."


@pytest.mark.parametrize("pickles", [1_500, pytest.param(30_000, marks=pytest.mark.chaos)])
def test_what_is_followed_to_its_end_looks_up_nothing_else(pickles: int) -> None:
    """Each pickle that passes is then really read, while Python reports each name that it looks up."""
    draw, passed, called = random.Random(7), 0, 0
    for _ in range(pickles):
        data = random_pickle(draw)
        named.clear()
        try:
            follow_pickle(data, IN_INDEX)
        except Exception:
            assert not named, "checking a pickle looks up no name"
            continue
        passed += 1
        with suppress(Exception):  # a class of the table takes other arguments
            pickle.loads(data)
        called += len(named)
        assert {*named} <= {*IN_INDEX}
    assert passed > pickles // 200 and called > pickles // 600, "the generator makes pickles that pass"


def honest() -> dict[str, Any]:
    """One of each kind of value in a run's checkpoint."""
    weights = OrderedDict(a=torch.arange(12.0).reshape(3, 4), b=torch.ones(5), half=torch.ones(4, dtype=torch.bfloat16))
    return {
        "state": {"model": weights, "view": weights["a"].t()[1:], "empty": torch.empty(0, 3)},
        "rng": [np.random.RandomState(3).get_state(), torch.get_rng_state(), random.Random(3).getstate()],
        "clock": datetime.timedelta(seconds=3),
        "torch": TorchVersion("2.7.0"),
        "numbers": (1, 2.5, None, True, "text", b"bytes", [1], 10**30),
    }


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def check(data: bytes) -> None:
    check_archive(io.BytesIO(data))
    inside = io.BytesIO(b"before" + data + b"behind")  # as in a file with many tensors
    check_archive(Part(inside, 6, len(data)))


def repickled(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another pickle, written again by torch's own writer."""
    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(data))
    file = io.BytesIO()
    writer: Any = torch._C.PyTorchFileWriter(file)
    for name in reader.get_all_records():
        if name in (".format_version", ".storage_alignment", ".data/serialization_id", "version"):
            continue
        record = reader.get_record(name)
        record = change(record) if name == "data.pkl" else record
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return file.getvalue()


def test_honest_checkpoints_pass() -> None:
    check(saved(honest()))
    check(repickled(saved(honest()), lambda pickled: pickled))
    for kind in pickle_check._STORAGES:
        check(saved(torch.ones(3, dtype=getattr(torch, kind[1]).dtype)))


def one_storage(elements: int, offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)) -> bytes:
    """A pickle that describes a tensor of four floats in one record of sixteen bytes."""

    class Claim:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(obj, Storage) else None

    def change(_: bytes) -> bytes:
        file = io.BytesIO()
        Pickler(file, 2).dump({"state": {"model": {"weight": Claim()}}})
        return file.getvalue()

    return repickled(saved(torch.ones(4)), change)


@pytest.mark.parametrize(
    ("elements", "offset", "size", "stride"),
    [
        (4_000_000, 0, (4_000_000,), (1,)), (5, 0, (4,), (1,)), (3, 0, (3,), (1,)), (4, 1, (4,), (1,)),
        (4, 0, (5,), (1,)), (4, 0, (2, 3), (2, 1)), (4, 0, (4,), (2,)), (4, -1, (4,), (1,)), (4, 0, (4,), (-1,)),
        (4, 0, (2, 2), (1,)), (-4, 0, (4,), (1,)), (4, 0, (2**62, 2), (1, 1)),
    ],
)  # fmt: skip
def test_a_tensor_beyond_its_bytes_is_refused(
    tmp_path: Path, elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """CVE-2026-24747 and similar attacks, in a whole file and in a sharded one, read no memory of the process."""
    check(one_storage(4))
    data = one_storage(elements, offset, size, stride)
    (tmp_path / "rank0.pt").write_bytes(data)
    with pytest.raises(BadInput, match="is not a readable checkpoint"):
        refuse_unsafe(tmp_path / "rank0.pt")
    model = torch.nn.Linear(4, 1, bias=False)
    sharded = tmp_path / "sharded"
    save({"state": {"model": {"weight": model.weight.detach()}}}, checkpoint_id=str(sharded), no_dist=True)
    load_model_weights(sharded, model, prefix="")
    (part,) = sharded.glob("*.distcp")
    index = pickle.loads((sharded / ".metadata").read_bytes())  # made above
    (place,) = (place for key, place in index.storage_data.items() if "weight" in key.fqn)
    place.offset, place.length = 0, len(data)
    part.write_bytes(data)
    (sharded / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(BadInput, match="is not a readable checkpoint"):
        load_model_weights(sharded, model, prefix="")


def test_flipped_and_cut_archives_are_refused_or_the_same() -> None:
    data, draw = saved(honest()), random.Random(5)
    refused = 0
    for _ in range(600):
        bad = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.2:
            del bad[draw.randrange(len(bad)) :]
        named.clear()
        try:
            check_archive(io.BytesIO(bytes(bad)))
        except Exception:
            refused += 1
        assert not named
    assert refused > 100


def test_a_pickle_with_an_archive_behind_it_is_refused(tmp_path: Path) -> None:
    """torch.load, and Composer, which trusts what has passed here, would read the pickle and run what it names."""
    for pickled in (pickle.dumps(print), b"\x80\x02.", b"\0", b"\0PK\x03\x04"):
        # The archive's own directory says where it begins, as in any self-extracting file.
        file = io.BytesIO(pickled)
        with zipfile.ZipFile(io.BytesIO(saved(honest()))) as old, zipfile.ZipFile(file, "a") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
        (tmp_path / "rank0.pt").write_bytes(file.getvalue())
        with pytest.raises(BadInput, match=r"rank0\.pt: it does not begin like a file of torch\.save"):
            refuse_unsafe(tmp_path / "rank0.pt")


def test_an_archive_of_two_ends_or_packed_records_is_refused(tmp_path: Path) -> None:
    data = saved(torch.ones(4))
    with pytest.raises(ValueError, match="end of the archive"):
        check_archive(io.BytesIO(data + b"x"))
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, b"\0" * entry.file_size if "/data/" in entry.filename else old.read(entry))
    with pytest.raises(ValueError, match="as it was written"):
        check_archive(packed)
    script = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    with pytest.raises(BadInput, match="TorchScript"):
        refuse_unsafe(script)


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    save({"state": {"model": {"weight": model.weight.detach()}}}, checkpoint_id=str(tmp_path / "a"), no_dist=True)
    for name in ("../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\nb", "a\x1b[31mb"):
        index = pickle.loads((tmp_path / "a/.metadata").read_bytes())  # made above
        for place in index.storage_data.values():
            place.relative_path = name
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b/.metadata").write_bytes(pickle.dumps(index))
        with pytest.raises(BadInput, match="names a file outside its folder"):
            load_model_weights(tmp_path / "b", model, prefix="")

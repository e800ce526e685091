"""Runs commands of the recipe under the no-op CUDA: `drive.py COMMANDS.json FOLDER PATIENCE_S`.

The file lists `{"argv": ["recipes/train.py", …], "ranks": 2, "env": {…}, "count_waits": true}`. Everything is imported
once; each rank of each command is then forked off. FOLDER gets NUMBER-rankRANK.log, and NUMBER.json: the exit codes.

Replaced are only kernels whose numbers decide how a run goes on: a few integers are added, compared and joined on the
host (Composer ends an epoch by adding 1 to a tensor on the device; torch adds up and joins the sizes of the objects
that ranks send; transformers asks whether all texts have ended), and the parity gate is given numbers that let it pass,
as all logits are 0 here. `count_waits` prints which lines of one batch wait for the device,
`say_dtypes` which dtypes each kind of module gives out.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from torch.utils._pytree import tree_leaves, tree_map_only

import recipes.modeling.attention
import recipes.training.trainer
from warm import ended, leave

SMALL = 1 << 16  # entries
COUNTS = (torch.bool, torch.uint8, torch.int32, torch.int64)
HOST_OPERATIONS = {  # and the same with an argument `out`
    "add.Tensor": "add.out",
    "add_.Tensor": "add.out",
    "any": "any.all_out",
    "bitwise_not": "bitwise_not.out",
    "cat": "cat.out",
    "isin.Tensor_Tensor": "isin.Tensor_Tensor_out",
    "max": "max.unary_out",
    "mul.Tensor": "mul.out",
    "sub.Tensor": "sub.out",
    "sum.dim_IntList": "sum.IntList_out",
    **{f"{name}.{other}": f"{name}.{other}_out" for name in ("eq", "ge", "gt", "ne") for other in ("Scalar", "Tensor")},
    **{f"bitwise_{name}.Tensor": f"bitwise_{name}.Tensor_out" for name in ("and", "or")},
}
WATCHED = ("/composer/", "/recipes/", "/callbacks/", "/torch/nn/utils/", "/torch/optim/")
COUNTED_BATCH = 3  # the first two compile, connect and fill caches; monitors are due later


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor on the device as a CPU tensor: the no-op CUDA's memory is the host's."""
    if tensor.device.type == "cpu" or not tensor.numel():
        return tensor.cpu()
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def is_small(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.dtype in COUNTS and tensor.numel() <= SMALL


def done_on_host(name: str, out: str) -> Callable[..., torch.Tensor]:
    """An operation on the device that a few integers go through on the host.

    Args:
        name: the operation, such as `gt.Tensor`.
        out: the same with an argument `out`, whose kernel on the device is left as it is.
    """
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    out_packet, _, out_overload = out.partition(".")
    of_device = getattr(getattr(torch.ops.aten, out_packet), out_overload)

    def run(*arguments: Any, **more: Any) -> torch.Tensor:
        if overload == "Tensor":
            arguments = tuple(torch.tensor(value) if isinstance(value, bool) else value for value in arguments)
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        if all(is_small(tensor) for tensor in tensors):
            found = operation(*tree_map_only(torch.Tensor, on_host, arguments), **more)
            if packet.endswith("_"):
                return arguments[0]
            result = torch.empty_like(found, device="cuda")
            if found.numel():
                on_host(result).copy_(found)
            return result
        if packet.endswith("_"):
            return of_device(*arguments, **more, out=arguments[0])
        planned = operation(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), arguments), **more)
        return of_device(*arguments, **more, out=torch.empty_like(planned, device="cuda"))

    return run


def fill_(own: torch.Tensor, value: float) -> torch.Tensor:
    """As `done_on_host`, of an operation whose form with `out` comes back to it."""
    if is_small(own):
        on_host(own).fill_(value)
        return own
    aten: Any = torch.ops.aten
    return aten.fill_.Tensor(own, torch.tensor(value))


def parity(model: Any, *arguments: Any) -> Any:
    """The comparison as it is computed, and then numbers that let the run start."""
    return replace(compared(model, *arguments), difference=1e-7, unscaled=1.0)


class Waits:
    """Prints which lines wait for the device from one batch of a run to the next."""

    def __init__(self) -> None:
        self.batch = 0
        self.seen: collections.Counter[str] = collections.Counter()

    def note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            frame = [f for f in traceback.extract_stack() if any(part in f.filename for part in WATCHED)][-1]
            self.seen[f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.line}"] += 1

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """In the place of Trainer._train_batch."""
        self.batch += 1
        if self.batch == COUNTED_BATCH:
            warnings.simplefilter("always")
            warnings.showwarning = self.note
            torch.cuda.set_sync_debug_mode("warn")
        elif self.batch == COUNTED_BATCH + 1:
            torch.cuda.set_sync_debug_mode("default")
            for line, times in self.seen.most_common():
                print(f"wait: {times} {line}", flush=True)
        return train_batch(*arguments, **more)


def say_dtype(seen: set[str], module: torch.nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook of all modules."""
    first = output[0] if isinstance(output, tuple) else output
    line = f"dtype: {type(module).__name__} {getattr(first, 'dtype', None)}"
    if line not in seen:
        seen.add(line)
        print(line, flush=True)


def run(argv: Sequence[str], count_waits: bool = False, say_dtypes: bool = False) -> int:
    """One command as it would be typed, in this process; its exit code."""
    if say_dtypes:
        torch.nn.modules.module.register_module_forward_hook(partial(say_dtype, set()))
    if count_waits:
        waits = Waits()
        Trainer._train_batch = lambda *a, **k: waits(*a, **k)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = list(argv)
    return ended(lambda: runpy.run_path(sys.argv[0], run_name="__main__"))


def start(command: dict[str, Any], port: int, rank: int, ranks: int, log: Path) -> int:
    """A rank as a process of its own, forked off with everything imported; its process id."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if ranks > 1:  # as Composer's launcher says it
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(command.get("env", {}))
    leave(run(command["argv"], command.get("count_waits", False), command.get("say_dtypes", False)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    """All commands, one after another; what each printed and how it ended goes into the folder."""
    commands, folder, patience_s = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), float(sys.argv[3])
    for number, command in enumerate(commands):
        ranks, port, begin_s = command.get("ranks", 1), free_port(), time.monotonic()
        logs = [folder / f"{number}-rank{rank}.log" for rank in range(ranks)]
        processes = [start(command, port, rank, ranks, log) for rank, log in enumerate(logs)]
        codes: dict[int, int | None] = dict.fromkeys(processes)
        while None in codes.values():
            process, status = os.waitpid(-1, os.WNOHANG)
            if process in codes:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - begin_s > patience_s:
                for process in [process for process, code in codes.items() if code is None]:
                    os.kill(process, signal.SIGABRT)  # faulthandler tells where it stands
            time.sleep(0.05)
        ended = {"codes": list(codes.values()), "seconds": round(time.monotonic() - begin_s, 1)}
        (folder / f"{number}.json").write_text(json.dumps(ended))
        print(command["argv"][0], command.get("name", ""), ended, flush=True)


if __name__ == "__main__":
    compared, recipes.modeling.attention.attention_parity = recipes.modeling.attention.attention_parity, parity
    train_batch = Trainer._train_batch
    kernels = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        for name, out in HOST_OPERATIONS.items():
            kernels.impl(name, done_on_host(name, out), "CUDA")
        kernels.impl("fill_.Scalar", fill_, "CUDA")
    faulthandler.enable()
    main()

"""Runs commands of the recipe under the no-op CUDA: `drive.py COMMANDS.json FOLDER PATIENCE_S`.

The file lists `{"argv": ["recipes/train.py", …], "ranks": 2, "env": {…}, "count_waits": true}`. All modules are
imported once; then each rank of each command is forked. FOLDER gets NUMBER-rankRANK.log, and NUMBER.json with the exit
codes.

Only kernels whose results decide how a run continues are replaced. A few integers are added, compared and joined on the
host: Composer ends an epoch by adding 1 to a tensor on the device, torch adds and joins the sizes of objects that ranks
send, and transformers checks whether all texts have ended. The check of attention gets numbers that let it pass,
because all logits are 0 here. `count_waits` prints which lines of one batch wait for the device, and `say_dtypes` the
output dtypes of each kind of module.
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
    """The memory of a contiguous tensor on the device as a CPU tensor; the no-op CUDA allocates host memory."""
    if tensor.device.type == "cpu" or not tensor.numel():
        return tensor.cpu()
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def is_small(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.dtype in COUNTS and tensor.numel() <= SMALL


def done_on_host(name: str, out: str) -> Callable[..., torch.Tensor]:
    """Compute an operation on the host, if its result has only a few integers.

    Args:
        name: the operation, such as `gt.Tensor`.
        out: whether it has an argument `out`; its kernel on the device is left as it is.
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
            host_result = operation(*tree_map_only(torch.Tensor, on_host, arguments), **more)
            if packet.endswith("_"):
                return arguments[0]
            result = torch.empty_like(host_result, device="cuda")
            if host_result.numel():
                on_host(result).copy_(host_result)
            return result
        if packet.endswith("_"):
            return of_device(*arguments, **more, out=arguments[0])
        planned = operation(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), arguments), **more)
        return of_device(*arguments, **more, out=torch.empty_like(planned, device="cuda"))

    return run


def fill_(own: torch.Tensor, value: float) -> torch.Tensor:
    """Like `done_on_host`, for an operation whose form with `out` calls this form again."""
    if is_small(own):
        on_host(own).fill_(value)
        return own
    aten: Any = torch.ops.aten
    return aten.fill_.Tensor(own, torch.tensor(value))


def parity(model: Any, *arguments: Any) -> Any:
    """Compute the comparison, and return numbers that let the run start."""
    return replace(compared(model, *arguments), difference=1e-7, unscaled=1.0)


class Waits:
    """Prints which lines wait for the device between two batches of a run."""

    def __init__(self) -> None:
        self.batch = 0
        self.seen: collections.Counter[str] = collections.Counter()

    def note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            frame = [f for f in traceback.extract_stack() if any(part in f.filename for part in WATCHED)][-1]
            self.seen[f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.line}"] += 1

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Replaces Trainer._train_batch."""
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
    """Run a command in this process as a user would type it; its exit code."""
    if say_dtypes:
        torch.nn.modules.module.register_module_forward_hook(partial(say_dtype, set()))
    if count_waits:
        waits = Waits()
        Trainer._train_batch = lambda *a, **k: waits(*a, **k)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = list(argv)
    return ended(lambda: runpy.run_path(sys.argv[0], run_name="__main__"))


def start(command: dict[str, Any], port: int, rank: int, ranks: int, log: Path) -> int:
    """Fork a rank with everything imported; its process id."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if ranks > 1:  # as Composer's launcher sets it
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(command.get("env", {}))
    leave(run(command["argv"], command.get("count_waits", False), command.get("say_dtypes", False)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    """Run all commands one after another; their outputs and exit codes go into the folder."""
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
                    os.kill(process, signal.SIGABRT)  # faulthandler prints where it stands
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

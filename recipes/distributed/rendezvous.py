"""Connect the ranks of a run: check that all are there, are equal and can exchange data; report a lost rank."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore

from data_prep.common.errors import BadInput
from data_prep.common.exit_codes import BAD_INPUT, RESUMES
from data_prep.common.files import JsonDict
from data_prep.common.manifest import difference
from data_prep.common.world import world

NEWS_S = 30.0  # interval at which rank 0 prints which ranks are still missing
CHECKS = "MASTER_ADDR (--master_addr), the number of hosts that were started, and that no firewall is between them"


def meet(facts: JsonDict, timeout_s: float) -> TCPStore | None:
    """Wait for all ranks, and compare their facts. All ranks must call it.

    Args:
        facts: values that must be equal on all ranks, and that JSON can hold.
        timeout_s: longest time, in seconds, that rank 0 waits for the others, and the others for rank 0.

    Returns:
        The store through which the ranks connected. If torch's process group is started while the store is alive, it
        uses the same store. None if there is only one rank.

    Raises:
        BadInput: on all ranks that are connected: a rank is missing or differs.
        LostPeers: rank 0 has ended meanwhile.
    """
    world_size, rank = world().size, world().rank
    if world_size == 1:
        return None
    deadline_s = time.monotonic() + timeout_s
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank != 0:
        _await_listener(rank, address, port, deadline_s)
    store = _open_store(rank, address, port, timeout_s, deadline_s)
    try:
        store.set(f"met/{rank}", json.dumps({"host": socket.gethostname(), **facts}))
        if rank == 0:
            verdict = _judge(store, world_size, deadline_s)
            store.set("met/verdict", verdict)
            read_by_s = time.monotonic() + 5
            while verdict and store.add("met/read", 0) < world_size - 1 and time.monotonic() < read_by_s:
                time.sleep(0.05)  # the store ends with this process, so the others must read the verdict first
        else:
            while not _holds(store, "met/verdict"):  # during wait(), no signal could be handled
                time.sleep(0.1)
            verdict = store.get("met/verdict").decode()
            store.add("met/read", 1)
    except DistError as error:
        reason = str(error).splitlines()[0]
        raise LostPeers(
            f"rank {rank}: rank 0 at {address}:{port} was there and is gone ({reason}); {RESUMES}"
        ) from None
    if verdict:
        raise BadInput(verdict)
    return store


def _open_store(rank: int, address: str, port: int, timeout_s: float, deadline_s: float) -> TCPStore:
    """Open the store on rank 0, or connect to it on the other ranks.

    This runs in a thread, because torch waits without limit for a service that accepts the connection and stays silent.

    Raises:
        BadInput: rank 0 cannot listen at the address, or another service answers there.
    """
    outcome: list[TCPStore | Exception] = []

    def open_it() -> None:
        try:
            outcome.append(
                TCPStore(
                    address,
                    port,
                    world().size,
                    rank == 0,
                    timedelta(seconds=timeout_s),
                    wait_for_workers=False,
                    multi_tenant=True,
                )
            )
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < deadline_s:
        thread.join(0.05)  # short, because no signal can be handled meanwhile
    opened = outcome[0] if outcome else None
    if isinstance(opened, TCPStore):
        return opened
    reason = str(opened).splitlines()[0] if opened else "it accepts and is silent"
    if rank == 0:
        raise BadInput(
            f"rank 0 cannot listen at {address}:{port}, or not reach itself there: {reason}. If another service "
            "listens there, give another MASTER_PORT (--master_port)"
        )
    raise BadInput(
        f"rank {rank} on {socket.gethostname()}: something else than rank 0 listens at {address}:{port} ({reason}), or "
        "rank 0 has ended meanwhile. Look whether rank 0 has said why; give another MASTER_PORT (--master_port)"
    )


def _await_listener(rank: int, address: str, port: int, deadline_s: float) -> None:
    """Wait until a process listens at the address."""
    start_s = time.monotonic()
    while True:
        try:
            return socket.create_connection((address, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise BadInput(
                    f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} since "
                    f"{time.monotonic() - start_s:.0f} s: {error.strerror or error}. Look whether rank 0 has said why; "
                    f"check {CHECKS}"
                ) from None
        time.sleep(0.5)


def _judge(store: TCPStore, world_size: int, deadline_s: float) -> str:
    """Describe missing or differing ranks; empty if all ranks are there and equal."""
    start_s = news_s = time.monotonic()
    while missing := [rank for rank in range(world_size) if not _holds(store, f"met/{rank}")]:
        now_s = time.monotonic()
        if now_s > deadline_s:
            return (
                f"{_name(missing)} of {world_size} did not come to rank 0 on {socket.gethostname()} in "
                f"{now_s - start_s:.0f} s. Look whether they have said why; check {CHECKS}"
            )
        if now_s > news_s + NEWS_S:
            news_s = now_s
            print(f"waiting for {_name(missing)} of {world_size}", flush=True)
        time.sleep(0.1)
    first, *others = (json.loads(store.get(f"met/{rank}")) for rank in range(world_size))
    host = first.pop("host")
    differing: dict[str, list[int]] = {}
    hosts: dict[int, str] = {}
    for rank, facts in enumerate(others, 1):
        hosts[rank] = facts.pop("host")
        if lines := difference(first, facts):
            differing.setdefault("\n  ".join(lines), []).append(rank)
    if not differing:
        return ""
    messages = [
        f"rank 0 on {host} -> {_name(ranks)} on {', '.join(sorted({hosts[rank] for rank in ranks}))}:\n  {lines}"
        for lines, ranks in differing.items()
    ]
    return (
        "the ranks would not compute the same run:\n" + "\n".join(messages) + "\n"
        "Start all of them from the same checkout and environment, with the same command"
    )


def _holds(store: Any, key: str) -> bool:
    return store.check([key])  # torch's type stubs lack this method


def _name(ranks: Sequence[int]) -> str:
    """Name ranks for a message: `rank 3`, `ranks 3, 4`, `ranks 3, …, 15 (13)`."""
    if len(ranks) > 4:
        return f"ranks {ranks[0]}, …, {ranks[-1]} ({len(ranks)})"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


class LostPeers(Exception):
    """Another rank has ended, or the network to it has failed."""


@contextmanager
def peers_may_be_lost() -> Iterator[None]:
    """Context that replaces the errors of gloo and NCCL after the loss of a rank by a clear message.

    Raises:
        LostPeers: a collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        raise LostPeers(
            f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}: another rank has gone, or the network to "
            f"it: {str(error).splitlines()[0]}. The first that ended says why; {RESUMES}"
        ) from None


def _of_the_network(error: RuntimeError) -> bool:
    return isinstance(error, DistError) or "gloo" in str(error)


@contextmanager
def data_must_pass(timeout_s: float) -> Iterator[None]:
    """Context for the first data that the ranks exchange: it limits the time, and explains errors.

    gloo and NCCL open their own ports. A firewall or a wrong network interface may block these ports, although the
    store can be reached.

    Raises:
        BadInput: the exchange fails. If it takes longer than `timeout_s`, the process ends with the same message and
            exit code BAD_INPUT.
    """

    def message(reason: str) -> str:
        return (
            f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()} has met the others and no data passes "
            f"between them: {reason}. The hosts must reach each other on all ports; if they have several networks, "
            "name the one to use with NCCL_SOCKET_IFNAME or, on CPUs, GLOO_SOCKET_IFNAME"
        )

    def leave() -> None:
        print(f"error: {message(f'nothing in {timeout_s:.0f} s')}", file=sys.stderr, flush=True)
        os._exit(BAD_INPUT)

    watch = threading.Timer(timeout_s, leave)
    watch.daemon = True
    watch.start()
    try:
        yield
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        raise BadInput(message(str(error).splitlines()[0])) from None
    finally:
        watch.cancel()

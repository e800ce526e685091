"""Show the progress of long work: a bar on a terminal, a line per minute in a log, a message if nothing moves."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tqdm import tqdm

LINE_S = 60.0  # between two lines if stderr is no terminal
STALL_S = 60.0  # time without a change before a message says so
REFRESH_S = 1.0


class Done(NamedTuple):
    """An amount of work."""

    bytes: int = 0
    documents: int = 0
    tokens: int = 0


NOTHING = Done()


class Progress:
    """A context manager that reports progress from its own thread, so that it reports even while the work hangs.

    Args:
        name: name of the work.
        total_bytes: size of all the work, for the estimate of the time left.
        begun: work that an earlier start had done; it does not count for the rates.

    Attributes:
        done: work done so far.
        waiting_for: names of the tasks that are running.
    """

    def __init__(self, name: str, total_bytes: int, begun: Done = NOTHING):
        self.name, self.total_bytes, self.begun = name, total_bytes, begun
        self.done = begun
        self.waiting_for: list[str] = []
        self._start_s = self._moved_s = self._said_s = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)
        # disable=None shows no bar if stderr is not a terminal.
        self._bar = tqdm(
            desc=name, total=total_bytes, initial=begun.bytes, unit="B", unit_scale=True, disable=None, miniters=1
        )

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._show()
        self._bar.close()

    def tick(self, bytes: int = 0, documents: int = 0, tokens: int = 0) -> None:
        """Add to the work done."""
        self.set(*(a + b for a, b in zip(self.done, (bytes, documents, tokens), strict=True)))

    def set(self, bytes: int, documents: int, tokens: int) -> None:
        """Set the total work done so far."""
        if (done := Done(bytes, documents, tokens)) != self.done:
            self.done, self._moved_s = done, time.monotonic()

    @contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Name the task that is running."""
        self.waiting_for = [name]
        yield
        self.waiting_for = []

    def line(self) -> str:
        """Such as `encode: 1.20 of 117.60 GB (1 %), 25.10 MB/s, 12,000 documents/s, 6.10 Mtok/s, 1:17:03 left`."""
        seconds = max(1e-9, time.monotonic() - self._start_s)
        rate = Done(*(round((a - b) / seconds) for a, b in zip(self.done, self.begun, strict=True)))
        parts = [f"{rate.bytes / 1e6:,.2f} MB/s"]
        if rate.documents:
            parts.append(f"{rate.documents:,} documents/s")
        if rate.tokens:
            parts.append(f"{rate.tokens / 1e6:,.2f} Mtok/s")
        if rate.bytes:
            left_s = max(0, self.total_bytes - self.done.bytes) / rate.bytes
            parts.append(f"{tqdm.format_interval(left_s)} left")
        share = 100 * self.done.bytes / max(1, self.total_bytes)
        amount = f"{self.done.bytes / 1e9:,.2f} of {self.total_bytes / 1e9:,.2f} GB ({share:.0f} %)"
        return ", ".join([f"{self.name}: {amount}", *parts])

    def _report(self) -> None:
        while not self._end.wait(REFRESH_S):
            self._show()
            now_s = time.monotonic()
            if now_s - max(self._moved_s, self._said_s) > STALL_S:
                names = ", ".join(self.waiting_for[:8]) or "the next task"
                self._say(f"{self.name}: nothing has moved for {now_s - self._moved_s:.0f} s; under way: {names}")
            elif self._bar.disable and now_s - self._said_s > LINE_S:
                self._say(self.line())

    def _show(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._start_s)
        documents, tokens = self.done.documents - self.begun.documents, self.done.tokens - self.begun.tokens
        if documents and not self._bar.disable:
            rates = f"{documents / seconds:,.0f} documents/s" + (
                f", {tokens / seconds / 1e6:.2f} Mtok/s" * bool(tokens)
            )
            self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(self.done.bytes - self._bar.n)
        self._bar.refresh()

    def _say(self, line: str) -> None:
        self._said_s = time.monotonic()
        self._bar.write(line, file=sys.stderr)

"""A limit on the memory of this process, for libraries that allocate as much memory as a file demands."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATM = Path("/proc/self/statm")  # on Linux; the sixth number is the number of data pages


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Let this process allocate at most `size_bytes` more than it has now; beyond that, it gets a MemoryError.

    The Linux kernel enforces the limit (RLIMIT_DATA), so it also holds for libraries that are not written in Python.
    Other systems have no such limit, and none is set there.
    """
    if not STATM.exists():
        yield
        return
    data_pages = int(STATM.read_text().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data_pages * os.sysconf("SC_PAGE_SIZE") + size_bytes
    for other in before:
        limit = limit if other == resource.RLIM_INFINITY else min(limit, other)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)

"""A bound on the memory of this process, for libraries that take as much as a file tells them to."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATM = Path("/proc/self/statm")  # Linux's; the sixth number: pages of data


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Let this process take so much memory more than it has now; what asks for more than that gets a MemoryError.

    The kernel holds it (RLIMIT_DATA of Linux), so it holds for libraries that are not written in Python as well.
    Elsewhere there is no such limit, and none is set.
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

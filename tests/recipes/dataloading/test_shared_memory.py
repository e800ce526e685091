"""Two users on one machine take turns with its shared memory, with any umasks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from recipes.dataloading import shared_memory

NOBODY = 65534


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of /dev/shm, as the first user, whose umask shares nothing."""
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(shared_memory, "MACHINE_MEMORY", folder)
    before = os.umask(0o077)
    yield folder
    os.umask(before)


def test_the_lock_of_a_user_with_umask_077_is_open_to_others(memory: Path) -> None:
    held = shared_memory._claim_machine()
    assert held is not None
    (lock,) = memory.iterdir()
    assert stat.S_IMODE(lock.stat().st_mode) == 0o644
    assert shared_memory._claim_machine() is None, "it is held"
    os.close(held)
    again = shared_memory._claim_machine()
    assert again is not None
    os.close(again)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is played by root alone, so run as root")
def test_another_user_waits_for_it_and_takes_it(memory: Path) -> None:
    held = shared_memory._claim_machine()
    assert held is not None
    assert as_another_user(memory) == "held"
    os.close(held)
    assert as_another_user(memory) == "taken"
    (memory / "token-shards.lock").chmod(0o600)  # as an earlier version created it
    assert as_another_user(memory).startswith(
        f"{memory / 'token-shards.lock'}, the lock file for runs on this machine, belongs to"
    )


def as_another_user(memory: Path) -> str:
    """The result of claiming the machine as another user, in a process of its own."""
    reading_end, writing_end = os.pipe()
    if os.fork() == 0:
        try:
            os.chdir(memory)  # the parent folders belong to this user alone
            shared_memory.MACHINE_MEMORY = Path()
            os.setuid(NOBODY)
            answer = "held" if shared_memory._claim_machine() is None else "taken"
        except BadInput as error:
            answer = str(error).replace("token-shards.lock", str(memory / "token-shards.lock"))
        except BaseException as error:
            answer = repr(error)
        os.write(writing_end, answer.encode())
        os._exit(0)
    os.close(writing_end)
    os.wait()
    with os.fdopen(reading_end) as pipe:
        return pipe.read()

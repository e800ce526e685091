"""Two users on one machine take turns with its shared memory, whatever their umasks."""

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
    """A folder in the place of /dev/shm, for the first user, who shares nothing by default."""
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
    (memory / "token-shards.lock").chmod(0o600)  # of a version that knew no better
    assert as_another_user(memory).startswith(f"{memory / 'token-shards.lock'}, by which")


def as_another_user(memory: Path) -> str:
    """What a claim of the machine gives somebody else, in a process of their own."""
    here, there = os.pipe()
    if os.fork() == 0:
        try:
            os.chdir(memory)  # below folders that are this user's alone
            shared_memory.MACHINE_MEMORY = Path()
            os.setuid(NOBODY)
            said = "held" if shared_memory._claim_machine() is None else "taken"
        except BadInput as error:
            said = str(error).replace("token-shards.lock", str(memory / "token-shards.lock"))
        except BaseException as error:
            said = repr(error)
        os.write(there, said.encode())
        os._exit(0)
    os.close(there)
    os.wait()
    with os.fdopen(here) as said:
        return said.read()

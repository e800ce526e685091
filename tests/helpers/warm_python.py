"""A `python` and a `composer` for a scratch clone, which mostly ask the tests' warm process to fork.

`Warm` serves the programs that it has written into a folder: each sends its words, folder, environment and output over
a socket, and ends with the exit code that it receives. `warm.py` says what is the same as in a process that a user
starts.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

from warm import COMPOSER, Started

# Other commands start in the usual way: they are fast, or use the path of their own file (a log of runs, the commands
# that they start).
RECIPES, DATA_PREP = ("train", "finetune", "export", "generate", "evaluate"), ("corpus", "tokenizer", "shards", "look")
_PROGRAM = """#!{base} -IS
import json, os, socket, sys
words = [{real!r}, *sys.argv[1:]]
if not any(word in {warm!r} for word in sys.argv[1:3]):
    os.execv(words[0], words)
with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    said = json.dumps({{"argv": words, "cwd": os.getcwd(), "env": dict(os.environ)}}).encode()
    socket.send_fds(there, [len(said).to_bytes(4, "big")], [1, 2])
    there.sendall(said)
    sys.exit(int(there.makefile().readline()))
"""


class Warm:
    """Serves programs that `write` has written, until it is closed.

    Args:
        folder: folder of the socket, with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "warm")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address)
        self._socket.listen()
        threading.Thread(target=self._answer, daemon=True).start()

    def write(self, folder: Path) -> None:
        """Write the programs `python` and `composer` in place of the existing ones."""
        warm = [f"recipes/{name}.py" for name in RECIPES] + [f"data_prep/{name}.py" for name in DATA_PREP]
        for name, real in (("python", sys.executable), ("composer", COMPOSER)):
            base = os.path.realpath(sys.executable)
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_text(_PROGRAM.format(base=base, real=real, warm=warm, address=self.address))
            (folder / name).chmod(0o755)

    def close(self) -> None:
        """Stop serving."""
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                asked, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._run, args=(asked,), daemon=True).start()

    def _run(self, asked: socket.socket) -> None:
        with asked, asked.makefile("rb") as file:
            size, fds, *_ = socket.recv_fds(asked, 4, 2)
            request = json.loads(file.read(int.from_bytes(size, "big")))
            with os.fdopen(fds[0], "wb") as out, os.fdopen(fds[1], "wb") as errors:
                command = Started(request["argv"], Path(request["cwd"]), request["env"], out, errors)
            asked.sendall(f"{command.wait()}\n".encode())

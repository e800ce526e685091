"""A process that locks an output like a command that writes it, until it is told to end or killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from project import ROOT

HOLD = """
import sys
from pathlib import Path
from data_prep.common.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Locks an output at once; a context manager that kills the process at its end."""

    def __init__(self, output: Path | str, cwd: Path = ROOT) -> None:
        command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}\n{HOLD}", str(output)]
        self.process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "held\n"
        self.says = rf"another process is writing \S+ \(pid {self.process.pid} on host \S+ since .*: python.*-c"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def let_go(self) -> None:
        self.process.communicate("")
        assert self.process.returncode == 0

"""The software and hardware of a run.

They are read before the work begins, so that an error of git cannot end a run after it has computed something.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import JsonDict
from data_prep.common.manifest import library_versions
from data_prep.common.redaction import redacted

HERE = Path(__file__).parent
NO_REPOSITORY = "not a git repository"


@dataclass(frozen=True)
class Code:
    """The code of this process, as git describes it.

    Attributes:
        commit: hash of the commit; empty if git does not give one.
        no_commit: git's message if it does not give a commit; otherwise empty.
        uncommitted: changed files, as `git status --porcelain` lists them.
        diff: difference from the commit, as bytes, because files may be in any encoding.
    """

    commit: str
    no_commit: str
    uncommitted: tuple[str, ...] = ()
    diff: bytes = b""

    @property
    def diff_sha256(self) -> str:
        """Hash of the difference."""
        return hashlib.sha256(self.diff).hexdigest()


def read_code() -> Code:
    """Read the state of the repository that contains this file."""
    commit, no_commit = _output("git", "rev-parse", "HEAD")
    if no_commit:
        return Code("", no_commit)
    status, _ = _output("git", "status", "--porcelain", "--untracked-files=no")
    diff, _ = _output("git", "diff", "--no-ext-diff", "--no-color", "HEAD")
    return Code(_text(commit), "", tuple(_text(status).splitlines()), diff)


def software(code: Code | None = None) -> JsonDict:
    """Commit and versions of this process.

    Args:
        code: result of `read_code`; None: read it now.
    """
    import torch
    import torch.cuda.nccl
    import torch.version

    code = code or read_code()
    return {
        "commit": code.commit,
        "uncommitted": list(code.uncommitted),
        "uncommitted_sha256": code.diff_sha256,
        "python": platform.python_version(),
        "versions": library_versions("mosaicml", "mosaicml-streaming", "torch", "transformers", "tokenizers"),
        "cuda": torch.version.cuda,
        "nccl": list(torch.cuda.nccl.version()) if torch.cuda.is_available() else None,
    }


def environment(world_size: int, code: Code | None = None) -> JsonDict:
    """Software, hardware and command of this process.

    Environment variables are left out, because they may hold secrets; credentials in the command are removed. If git
    refuses to read the repository, for example because another user owns it, a warning is printed.

    Args:
        world_size: number of ranks.
        code: result of `read_code`; None: read it now.
    """
    import torch

    code = code or read_code()
    if code.no_commit and NO_REPOSITORY not in code.no_commit:
        print(f"warning: the commit of the code is not recorded: {code.no_commit}", file=sys.stderr, flush=True)
    driver, _ = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        **software(code),
        "no_commit": code.no_commit,
        "command": [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "driver": _text(driver).split("\n")[0],
        "world_size": world_size,
        "time_s": round(time.time(), 3),
    }


def _output(*command: str) -> tuple[bytes, str]:
    """Run a command in the folder of this file. Return its output and "", or b"" and the first line of its error."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, check=False)
    except OSError as error:
        return b"", f"{command[0]}: {error.strerror}"
    if done.returncode:
        errors = _text(done.stderr).splitlines()
        return b"", errors[0] if errors else f"{command[0]} ended with exit code {done.returncode}"
    return done.stdout, ""


def _text(printed: bytes) -> str:
    """Decode output to text that JSON can hold, even if file names in it are not valid UTF-8."""
    return printed.decode(errors="backslashreplace").strip()

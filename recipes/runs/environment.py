"""The software and hardware that a run is made with.

It is asked for before the work that it is recorded with: nothing that git prints may end what has been computed.
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
    """The code of this process, as git has it.

    Attributes:
        commit: its hash; empty where git does not say.
        no_commit: why git does not say, in its words; empty where it does.
        uncommitted: changed files, as `git status --porcelain` lists them.
        diff: what they differ in from the commit, byte for byte: files may be in any encoding.
    """

    commit: str
    no_commit: str
    uncommitted: tuple[str, ...] = ()
    diff: bytes = b""

    @property
    def diff_sha256(self) -> str:
        """Names the difference."""
        return hashlib.sha256(self.diff).hexdigest()


def read_code() -> Code:
    """The repository that this file lies in."""
    commit, no_commit = _output("git", "rev-parse", "HEAD")
    if no_commit:
        return Code("", no_commit)
    status, _ = _output("git", "status", "--porcelain", "--untracked-files=no")
    diff, _ = _output("git", "diff", "--no-ext-diff", "--no-color", "HEAD")
    return Code(_text(commit), "", tuple(_text(status).splitlines()), diff)


def software(code: Code | None = None) -> JsonDict:
    """Commit and versions of this process.

    Args:
        code: as `read_code` found it; None: it is read now.
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
    """Software, hardware and command of this process. No environment variables: they hold secrets; so may the command.

    Where there is a repository and git refuses to read it, as one of another owner, a warning is printed.

    Args:
        world_size: ranks.
        code: as `read_code` found it; None: it is read now.
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
    """What a command prints, run where this file lies; or nothing, and the first line of why."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, check=False)
    except OSError as error:
        return b"", f"{command[0]}: {error.strerror}"
    if done.returncode:
        said = _text(done.stderr).splitlines()
        return b"", said[0] if said else f"{command[0]} ended with exit code {done.returncode}"
    return done.stdout, ""


def _text(printed: bytes) -> str:
    """As text that JSON can hold, whatever bytes the names of files are made of."""
    return printed.decode(errors="backslashreplace").strip()

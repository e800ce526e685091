"""The software and hardware that a run is made with."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from pathlib import Path

from data_prep.common.files import JsonDict
from data_prep.common.manifest import library_versions


def software() -> JsonDict:
    """Commit and versions of this process."""
    import torch
    import torch.cuda.nccl
    import torch.version

    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": git("status", "--porcelain", "--untracked-files=no").splitlines(),
        "uncommitted_sha256": hashlib.sha256(git("diff", "HEAD").encode()).hexdigest(),
        "python": platform.python_version(),
        "versions": library_versions("mosaicml", "mosaicml-streaming", "torch", "transformers", "tokenizers"),
        "cuda": torch.version.cuda,
        "nccl": list(torch.cuda.nccl.version()) if torch.cuda.is_available() else None,
    }


def environment(world_size: int) -> JsonDict:
    """Software, hardware and command of this process. No environment variables: they hold secrets."""
    import torch

    return {
        **software(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "world_size": world_size,
        "time_s": round(time.time(), 3),
    }


def git(*arguments: str) -> str:
    """What git prints of the repository of this code; nothing outside of one."""
    return _output("git", *arguments)


def _output(*command: str) -> str:
    """What a command prints, run where this file lies; nothing if it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

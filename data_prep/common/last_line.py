"""The last line of a command: what it made, where, and what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from data_prep.common.redaction import redacted
from data_prep.common.world import world


def say_made(where: str | Path, what: str, *command: object) -> None:
    """Print the line, on rank 0 alone.

    Args:
        where: the file or folder.
        what: what is there now.
        command: the words of the next command; `python` and `composer` are those of this environment.
    """
    words = [str(redacted(str(word))) for word in command]  # an override may hold a URL with its password
    if words[0] in ("python", "composer"):
        words[0] = _in_this_environment(words[0])
    if world().rank == 0:
        print(f"{redacted(str(where))}: {what}; next: {shlex.join(words)}", flush=True)


def launcher() -> str:
    """What starts this machine's ranks: `composer` where it has started this command."""
    return "composer" if world().launched else "python"


def variable(name: str, value: object) -> str:
    """A variable on make's command line, whose sign of expansion is doubled; the shell's quotes are still to come."""
    return f"{name}={value}".replace("$", "$$")


def _in_this_environment(name: str) -> str:
    """The name, if a shell finds this environment's by it; else its path, from here where it lies below."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path):
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

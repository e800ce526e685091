"""The last line that a command prints: what it made, where that is, and what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from data_prep.common.redaction import redacted
from data_prep.common.world import world


def say_made(where: str | Path, what: str, *command: object) -> None:
    """Print the last line of a command, on rank 0 only.

    Args:
        where: file or folder that the command made.
        what: description of its content.
        command: words of the next command; `python` and `composer` mean those of this environment.
    """
    words = [str(redacted(str(word))) for word in command]  # an override may hold a URL with a password
    if words[0] in ("python", "composer"):
        words[0] = _in_this_environment(words[0])
    if world().rank == 0:
        print(f"{redacted(str(where))}: {what}; next: {shlex.join(words)}", flush=True)


def launcher() -> str:
    """The program that starts this machine's ranks: `composer` if a launcher started this command, else `python`."""
    return "composer" if world().launched else "python"


def variable(name: str, value: object) -> str:
    """A variable for make's command line, with each `$` doubled for make. The caller adds quotes for the shell."""
    return f"{name}={value}".replace("$", "$$")


def _in_this_environment(name: str) -> str:
    """The program's name if the shell finds this environment's program by it; else the path, relative if below here."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path):
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

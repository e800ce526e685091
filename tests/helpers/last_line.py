"""The last line of a command: it names an existing output, and a next command that is valid."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

from commands import Parsed, main_of
from data_prep.common.command_line import Parser
from project import COMMANDS, ROOT
from recipes.config.loading import load_config, load_finetune_config

LAUNCHER = "Waiting up to"  # printed by Composer's launcher after its ranks have ended


def next_command(stdout: str, folder: Path) -> list[str]:
    """Check the next command in the last line, and return its words; the first without its folder.

    Args:
        stdout: output of a command that has ended.
        folder: folder in which the command ran.
    """
    lines = [line for line in stdout.splitlines() if not line.startswith(LAUNCHER)]
    line = lines[-1] if lines else ""
    match = re.fullmatch(r"(.+?): (.+); next: (.+)", line)
    assert match, f"no last line that says what was made, where, and what is next: {line!r}"
    assert (folder / match[1]).exists() or (ROOT / match[1]).exists(), f"{line!r}: there is no {match[1]}"
    words = shlex.split(match[3])
    if words[0] == "make":
        done = subprocess.run(["make", "-n", "PYTHON=none", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "data_prep/corpus.py" in done.stdout, done.stderr
    else:
        assert Path(words[0]).name in ("python", "composer") and words[1] in COMMANDS, line
        accept(words[1], words[2:], folder)
    return [Path(words[0]).name, *words[1:]]


def accept(command: str, words: list[str], folder: Path) -> None:
    """Parse the words with the command's parser, and load the configuration if the command runs one."""

    def stop(method: str) -> Any:
        def parse(parser: Parser, argv: list[str]) -> None:
            raise Parsed(getattr(argparse.ArgumentParser, method)(parser, argv))

        return mock.patch.object(Parser, method, parse)

    before = Path.cwd()
    os.chdir(folder)
    try:
        with stop("parse_args"), stop("parse_intermixed_args"):
            main_of(command)(words)
    except Parsed as stopped:
        parsed = stopped.args[0]
    else:
        raise AssertionError(f"{command} has read no command line")
    finally:
        os.chdir(before)
    yaml = getattr(parsed, "yaml", None)
    if yaml and command != "recipes/sweep.py":
        path = folder / yaml if (folder / yaml).exists() else ROOT / yaml
        (load_finetune_config if command == "recipes/finetune.py" else load_config)(path, parsed.overrides)

"""The command line of every command: its `--help`, the types of its options, and what is refused before any work."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_prep.common.errors import BadInput
from data_prep.common.limits import FILE_NAME, PATH, Rule


class Parser(argparse.ArgumentParser):
    """A parser whose errors are bad input as all others are: one message, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput."""
        raise BadInput(f"{message}; {self.prog} --help says more")


def new_parser(doc: str | None) -> Parser:
    """A parser without arguments.

    Args:
        doc: docstring of the module: its first paragraph says what the command does; what follows are examples.
    """
    what, _, examples = (doc or "").strip().partition("\n\n")
    return Parser(description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)


@dataclass(frozen=True)
class Allowed:
    """The type of an option that a rule allows."""

    rule: Rule

    def __call__(self, text: str) -> Any:
        """Raises ArgumentTypeError, which names the option, unless the rule allows the value."""
        try:
            value = self.rule.read(text)
            good = self.rule.admits(value)
        except ValueError:
            value, good = text, False
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r} must be {self.rule}")
        return value


def names(text: str) -> list[str]:
    """The type of an option with names of folders, parted by commas and any blanks; none comes twice."""
    listed = [name.strip() for name in text.split(",")]
    for name in listed:
        Allowed(FILE_NAME)(name)
    return list(dict.fromkeys(listed))


def folder_to_make(text: str) -> Path:
    """The type of an option with a folder that the command makes, with the folders above it, or has made already."""
    path = Path(Allowed(PATH)(text))
    try:
        if path.is_dir() and any(path.iterdir()):
            return path  # what is in it, the command looks at
        if path.exists() and not path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a file, and a folder is to be made there")
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    _try_to_write(above, path)
    return path


@dataclass(frozen=True)
class FileToWrite:
    """The type of an option with a file that the command writes; its ending says the format.

    Attributes:
        endings: file endings that are known, such as `.png`.
    """

    endings: tuple[str, ...]

    def __call__(self, text: str) -> Path:
        """Raises ArgumentTypeError unless the file can be written."""
        path = Path(Allowed(PATH)(text))
        try:
            if path.is_dir():
                raise argparse.ArgumentTypeError(f"{path} is a folder, and a file is to be written there")
            if path.suffix.lower() not in self.endings:
                raise argparse.ArgumentTypeError(f"{path} must end in {' or '.join(self.endings)}")
            if not path.parent.exists():
                raise argparse.ArgumentTypeError(f"{path}: there is no folder {path.parent}; mkdir -p {path.parent}")
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
        _try_to_write(path.parent, path)
        return path


def _try_to_write(folder: Path, path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # what the permissions say is not all: read-only disks, quotas, root
            return
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written, as in {folder}: {error.strerror}") from None

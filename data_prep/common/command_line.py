"""Command-line parsing for all commands: `--help`, the types of options, the refusal of bad values before any work."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_prep.common.errors import BadInput
from data_prep.common.limits import FILE_NAME, PATH, Rule


class Parser(argparse.ArgumentParser):
    """An argument parser that raises BadInput, so that its errors are one message and exit code 2 like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput."""
        raise BadInput(f"{message}; see {self.prog} --help")


def new_parser(doc: str | None) -> Parser:
    """Make a parser that has no arguments yet.

    Args:
        doc: docstring of the command's module; the first paragraph describes the command, the rest gives examples.
    """
    what, _, examples = (doc or "").strip().partition("\n\n")
    return Parser(description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)


@dataclass(frozen=True)
class Allowed:
    """The type of an option whose values must satisfy a rule."""

    rule: Rule

    def __call__(self, text: str) -> Any:
        """Return the value; raise ArgumentTypeError, which names the option, if the rule does not allow it."""
        try:
            value = self.rule.read(text)
            good = self.rule.admits(value)
        except ValueError:
            value, good = text, False
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r} must be {self.rule}")
        return value


def names(text: str) -> list[str]:
    """The type of an option with a list of folder names, separated by commas; repeated names are kept once."""
    listed = [name.strip() for name in text.split(",")]
    for name in listed:
        Allowed(FILE_NAME)(name)
    return list(dict.fromkeys(listed))


def folder_to_make(text: str) -> Path:
    """The type of an option with an output folder, which may exist; the command makes missing parent folders too."""
    path = Path(Allowed(PATH)(text))
    try:
        if path.is_dir() and any(path.iterdir()):
            return path  # the command itself checks what is in the folder
        if path.exists() and not path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a file, but must be a folder")
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    _try_to_write(above, path)
    return path


@dataclass(frozen=True)
class FileToWrite:
    """The type of an option with an output file, whose ending gives the format.

    Attributes:
        endings: allowed file endings, such as `.png`.
    """

    endings: tuple[str, ...]

    def __call__(self, text: str) -> Path:
        """Return the path; raise ArgumentTypeError if the file cannot be written."""
        path = Path(Allowed(PATH)(text))
        try:
            if path.is_dir():
                raise argparse.ArgumentTypeError(f"{path} is a folder, but must be a file")
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
        # Permissions alone do not show it: disks can be read-only, users can have quotas, and root may write anywhere.
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written, because {folder} cannot be written to: {error.strerror}"
        ) from None

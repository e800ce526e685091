"""All commands as modules: what each is called by, its parser, its options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from data_prep.common.command_line import Parser


class Parsed(Exception):
    """The parser that a command has made, or what it has read of a command line."""


def main_of(command: str) -> Callable[[list[str]], object]:
    module = importlib.import_module(command.removesuffix(".py").replace("/", "."))
    return getattr(module, "main", None) or module.command_line


def parser_of(command: str) -> Parser:
    def stop(parser: Parser, *_: object, **__: object) -> None:
        raise Parsed(parser)

    with mock.patch.object(Parser, "parse_known_args", stop):
        try:
            main_of(command)([])
        except Parsed as found:
            return found.args[0]
    raise AssertionError(f"{command} has read no command line")


def options(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each option and argument that takes a value, behind the sub-command that it belongs to."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from options(sub, (*before, name))
        elif action.nargs != 0:
            yield before, action

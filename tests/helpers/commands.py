"""All commands as modules: the main function, the parser and the options of each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from data_prep.common.command_line import Parser


class Parsed(Exception):
    """Carries a command's parser, or its parsed command line, to the test."""


def main_of(command: str) -> Callable[[list[str]], object]:
    module = importlib.import_module(command.removesuffix(".py").replace("/", "."))
    return getattr(module, "main", None) or module.command_line


def parser_of(command: str) -> Parser:
    def stop(parser: Parser, *_: object, **__: object) -> None:
        raise Parsed(parser)

    with mock.patch.object(Parser, "parse_known_args", stop):
        try:
            main_of(command)([])
        except Parsed as stopped:
            return stopped.args[0]
    raise AssertionError(f"{command} has read no command line")


def options(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each option and argument that takes a value, after its sub-command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from options(sub, (*before, name))
        elif action.nargs != 0:
            yield before, action

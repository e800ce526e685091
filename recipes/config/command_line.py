"""The command line of every command that runs a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from data_prep.common.command_line import new_parser


def parse_run(
    doc: str | None,
    yaml: str,
    override: str,
    argv: Sequence[str] | None,
    add: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> argparse.Namespace:
    """Parse the command line of a command that runs a configuration: `yaml`, `overrides`, `dry_run`.

    Args:
        doc: docstring of the command's module. Its first line says what the command does; examples follow after an
            empty line.
        yaml: example of a configuration, for the help.
        override: example of an override, for the help.
        argv: arguments to parse; None: the arguments of the process.
        add: function that adds further arguments to the parser.
    """
    parser = new_parser(doc)
    parser.add_argument("yaml", help=f"configuration, such as {yaml}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to it, such as {override}")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, and stop")
    add(parser)
    return parser.parse_intermixed_args(argv)

"""The command line of what runs a configuration."""

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
    """The command line of what runs a configuration: `yaml`, `overrides`, `dry_run`.

    Args:
        doc: docstring of the module: its first line says what it does, what follows after an empty line are examples.
        yaml: a configuration to name in the help.
        override: a change to it to name there.
        argv: the arguments; None: the process' own.
        add: adds arguments to the parser.
    """
    parser = new_parser(doc)
    parser.add_argument("yaml", help=f"configuration, such as {yaml}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to it, such as {override}")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, and stop")
    add(parser)
    return parser.parse_intermixed_args(argv)

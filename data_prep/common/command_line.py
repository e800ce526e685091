"""The command line of every command: what its module's docstring says is its `--help`."""

from __future__ import annotations

import argparse


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser without arguments.

    Args:
        doc: docstring of the module: its first paragraph says what the command does; what follows are examples.
    """
    what, _, examples = (doc or "").strip().partition("\n\n")
    return argparse.ArgumentParser(
        description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )

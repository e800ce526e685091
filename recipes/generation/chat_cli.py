"""A dialogue in the terminal: a prompt, and what the model writes, as it is written; lines from a pipe all the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, cast

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.generation.sampling import NOTICE, SETTINGS, Continuation, printable

COMMANDS = {
    "/again": "the last prompt with the next seed",
    "/settings": "the settings as they are",
    "/help": "this list",
    "/quit": "leave, as Ctrl-D does",
}


def talk(model: Any, tokenizer: Any, settings: JsonDict) -> None:
    """Continue one line after the other until the input ends.

    What cannot be used is named, and the dialogue continues.

    Args:
        model: from `load_model`.
        tokenizer: from `load_model`.
        settings: to begin with.
    """
    settings, last = dict(settings), ""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type the beginning of a text. Ctrl-C stops the writing, Ctrl-D leaves, /help lists the commands.")
    for line in typed() if terminal else piped():
        command, _, value = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/again":
                if not last:
                    raise BadInput("there is no prompt yet")
                settings["seed"] += 1
            elif command.startswith("/"):
                obey(command, value.strip(), settings)
                continue
            elif command:
                last = line
            else:
                continue
            write(Continuation(model, tokenizer, last, settings), "" if terminal else f"[{last}]")
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(" [stopped]\n", flush=True)


def typed() -> Iterator[str]:
    """Lines of the terminal, with history and editing; a paste of several lines is one."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession("> ")
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:  # as in a shell: away with what was typed
            continue
        except EOFError:
            return
        yield line


def piped() -> Iterator[str]:
    """Lines of a pipe or a file; bytes that are not UTF-8 stay in them as lone surrogates, which are no prompt."""
    cast(TextIOWrapper, sys.stdin).reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        yield line.rstrip("\n")


def obey(command: str, value: str, settings: JsonDict) -> None:
    """Carry out a command; a setting is changed in place.

    Raises:
        BadInput: there is no such command, or the value is not one of the setting's.
    """
    by_command = {f"/{setting.words}": setting for setting in SETTINGS}
    if command == "/help":
        rows = [(f"{name} N", f"{s.help} ({s.rule})") for name, s in by_command.items()]
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in (*rows, *COMMANDS.items())), end="\n\n")
        print(NOTICE, end="\n\n", flush=True)
    elif command == "/settings":
        print("\n".join(f"  {name} {settings[s.name]}" for name, s in by_command.items()), end="\n\n", flush=True)
    elif setting := by_command.get(command.replace("_", "-")):
        settings[setting.name] = setting.read(value)
        print(f"{setting.words} is {settings[setting.name]}", flush=True)
    else:
        raise BadInput(f"{command} is not a command; /help lists them")


def write(continuation: Continuation, prompt: str) -> None:
    """Print a text as it is written, with a sign where it was cut off."""
    print(prompt, end="", flush=True)
    for piece in continuation:
        print(printable(piece), end="", flush=True)
    print("" if continuation.stopped else " …", end="\n\n", flush=True)

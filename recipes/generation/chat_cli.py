"""A dialogue in the terminal: the user types prompts, the model continues them. Prompts may also come from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, cast

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.generation.sampling import NOTICE, SETTINGS, Continuation, printable

COMMANDS = {
    "/again": "continue the last prompt with the next seed",
    "/settings": "show the current settings",
    "/help": "show this list",
    "/quit": "leave, like Ctrl-D",
}


def talk(model: Any, tokenizer: Any, settings: JsonDict) -> None:
    """Continue one line after another until the input ends.

    A line that cannot be used gives an error message, and the dialogue continues.

    Args:
        model: model of `load_model`.
        tokenizer: tokenizer of `load_model`.
        settings: initial settings.
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
    """Yield lines from the terminal, with history and editing. A paste of several lines counts as one line."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession("> ")
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:  # as in a shell, Ctrl-C discards the typed line
            continue
        except EOFError:
            return
        yield line


def piped() -> Iterator[str]:
    """Yield lines from a pipe or file. Bytes that are not UTF-8 become surrogates, which `check_prompt` refuses."""
    cast(TextIOWrapper, sys.stdin).reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        yield line.rstrip("\n")


def obey(command: str, value: str, settings: JsonDict) -> None:
    """Carry out a command. `settings` is changed in place.

    Raises:
        BadInput: there is no such command, or the value is not allowed.
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
    """Print a text while it is written. "…" at its end means that the model did not end the text itself."""
    print(prompt, end="", flush=True)
    for piece in continuation:
        print(printable(piece), end="", flush=True)
    print("" if continuation.stopped else " …", end="\n\n", flush=True)

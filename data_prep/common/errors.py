"""The exceptions that become a message and an exit code, and the function that every command runs in."""

from __future__ import annotations

from data_prep.common.script_folder import leave_at_once

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from data_prep.common.exit_codes import BAD_INPUT, BROKEN_PIPE, INTERRUPTED, UNAVAILABLE
from data_prep.common.redaction import redact_what_is_reported, redacted
from data_prep.common.world import world


class _Told(Exception):
    """An error whose message may be printed, stored and quoted: passwords and keys are removed from it."""

    def __init__(self, message: object) -> None:
        super().__init__(redacted(message))


class BadInput(_Told):
    """The user's input cannot be used. The message names the file, line, key or value, and says what to do."""


class Unavailable(_Told):
    """A server could not be reached, and a later attempt may succeed. The message names the endpoint."""


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command. BadInput becomes one message on stderr and exit code 2, without a traceback.

    Unavailable becomes one message and exit code 69 (EX_UNAVAILABLE of sysexits.h). Passwords and keys are removed from
    every error that is printed, also from errors of libraries.

    If a launcher started several ranks, most errors occur on all of them, and the launcher reports the first rank that
    ends. The other ranks therefore wait 10 s, so that the user gets the exit code of rank 0. A rank that is still alive
    after that is the only one with the error (for example a damaged shard) and reports it.
    """
    if signal.getsignal(signal.SIGINT) is leave_at_once:  # from here on, the command may have something to undo
        signal.signal(signal.SIGINT, signal.default_int_handler)
    redact_what_is_reported()
    try:
        main()
    except (BadInput, Unavailable) as error:
        _let_rank_zero_go_first()
        print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT if isinstance(error, BadInput) else UNAVAILABLE) from None
    except BrokenPipeError:  # the reader of the output, such as `… | head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as leaving:
        # Composer, once imported, turns Ctrl-C into SystemExit.
        if type(leaving) is SystemExit and leaving.code == INTERRUPTED:
            say_interrupted()
        raise
    except Exception:  # a traceback and code 1; a rank that gets a signal while it ends has another code
        _let_rank_zero_go_first()
        raise
    raise SystemExit(0)


def escaped(text: str) -> str:
    """Escape all unprintable characters except line ends, so that no text can move a terminal's cursor or colour it."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


def say_interrupted() -> None:
    """Print the last line after Ctrl-C, on rank 0 only."""
    if world().rank == 0:
        print("\ninterrupted: type the same command to resume", file=sys.stderr, flush=True)


def _let_rank_zero_go_first() -> None:
    if world().local_rank != 0:
        time.sleep(10)

"""What can go wrong, as exceptions and exit codes, and the wrapper that all commands run in."""

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
    """An error whose message is printed, stored and quoted in others: it holds no password or key."""

    def __init__(self, message: object) -> None:
        super().__init__(redacted(message))


class BadInput(_Told):
    """What the user gave cannot be used. The message names the file, line, key or value, and the way out."""


class Unavailable(_Told):
    """What is needed may be there and could not be reached. The message names the endpoint; later it may be well."""


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command line; bad input becomes one message on stderr and exit code 2, without a traceback.

    What is unavailable ends it with 69, EX_UNAVAILABLE of sysexits.h, in the same way. No error that is printed, of a
    library neither, holds a password or key.

    Under a launcher of several ranks most faults are all ranks' alike, and the launcher reports the first rank that it
    finds dead: the others wait for rank 0, so that its exit code is the one that the user gets. A rank that nobody has
    ended by then is alone with its fault, a damaged shard for one, and reports it.
    """
    if signal.getsignal(signal.SIGINT) is leave_at_once:  # from here on there may be something to undo
        signal.signal(signal.SIGINT, signal.default_int_handler)
    redact_what_is_reported()
    try:
        main()
    except (BadInput, Unavailable) as error:
        _let_rank_zero_go_first()
        print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT if isinstance(error, BadInput) else UNAVAILABLE) from None
    except BrokenPipeError:  # `… | head` closed its end: nothing left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as leaving:
        if type(leaving) is SystemExit and leaving.code == INTERRUPTED:  # what Composer, once imported, makes of Ctrl-C
            say_interrupted()
        raise
    except Exception:  # a traceback and code 1; a rank that is signalled while it leaves ends with another
        _let_rank_zero_go_first()
        raise
    raise SystemExit(0)


def escaped(text: str) -> str:
    """The text with what would move a terminal's cursor or colour it written out; line ends stay."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


def say_interrupted() -> None:
    """The last line after Ctrl-C, of rank 0 alone."""
    if world().rank == 0:
        print("\ninterrupted: type the same command to resume", file=sys.stderr, flush=True)


def _let_rank_zero_go_first() -> None:
    if world().local_rank != 0:
        time.sleep(10)

"""Fix the module search path, and let Ctrl-C end imports without a traceback. Every command imports this module first.

`python recipes/train.py` puts recipes/ first on `sys.path`, the module search path. transformers imports a package
`kernels` if there is one, other libraries import `evaluate` or `datasets`. Python would take a file of such a name in
recipes/ for the package, or for a module of the standard library. This module therefore removes the folder of the
commands from `sys.path`.
"""

import atexit
import os
import signal
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
_COMMANDS = {os.path.join(_ROOT, folder) for folder in ("data_prep", "recipes")}
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in _COMMANDS or not path]


def leave_at_once(*_: object) -> None:
    """End the process on Ctrl-C while there is nothing to undo; later, `errors.run` handles Ctrl-C in the same way."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"\ninterrupted: type the same command to resume\n")
    os._exit(130)


# Only if a command is the main script: a program that imports a command handles Ctrl-C itself.
_SCRIPT = os.path.dirname(os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or ""))
if _SCRIPT in _COMMANDS:
    # atexit calls handlers in reverse order, so this one is called last. From then on, Ctrl-C is ignored; by default,
    # Python would end the process by the signal, without a message.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # background jobs of a script ignore it
        signal.signal(signal.SIGINT, leave_at_once)

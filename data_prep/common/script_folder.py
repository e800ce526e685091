"""Every command imports this first: modules come from where they should, and Ctrl-C ends imports without a traceback.

`python recipes/train.py` puts recipes/ there, first. transformers imports `kernels` if it finds one, others `evaluate`
or `datasets`: a file of that name beside the commands would be taken for the package, or for a module of Python's own.
So that folder comes off the path on which Python looks for modules.
"""

import atexit
import os
import signal
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
_COMMANDS = {os.path.join(_ROOT, folder) for folder in ("data_prep", "recipes")}
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in _COMMANDS or not path]


def leave_at_once(*_: object) -> None:
    """Answer Ctrl-C while there is nothing to undo: as `errors.run` does later on, without its modules."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"\ninterrupted: type the same command to resume\n")
    os._exit(130)


# Of a command alone: what imports one has an answer of its own.
_SCRIPT = os.path.dirname(os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or ""))
if _SCRIPT in _COMMANDS:
    # Registered first, it is called last: from there on Python would end with the signal and without a word.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background of a script it is ignored
        signal.signal(signal.SIGINT, leave_at_once)

"""Every command imports this first: it takes the folder of the script off the path on which Python looks for modules.

`python recipes/train.py` puts recipes/ there, first. transformers imports `kernels` if it finds one, others `evaluate`
or `datasets`: a file of that name beside the commands would be taken for the package, or for a module of Python's own.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
_COMMANDS = {os.path.join(_ROOT, folder) for folder in ("data_prep", "recipes")}
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in _COMMANDS or not path]

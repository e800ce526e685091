"""Ask Weights & Biases once, before the ranks connect, whether it accepts the run (`loggers.wandb.mode=online` only).

Without this check, W&B's own client would try for 90 s and then end the run, at every restart.
"""

from __future__ import annotations

import functools
import netrc
import os
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput
from data_prep.common.location import Location
from data_prep.common.world import world
from recipes.config.schema import RunConfig

ANSWER_S = 10.0
ANSWER_BYTES = 1 << 16
WAY_OUT = "or set loggers.wandb.mode=offline (nothing leaves the machine) or loggers.wandb=null"


def check_account(cfg: RunConfig, resumed: bool) -> None:
    """Refuse to start a new run that W&B would stop. A run that is resumed gets a warning and logs offline.

    Only rank 0 asks the server, because only rank 0 logs to W&B.

    Args:
        cfg: configuration of the run.
        resumed: whether the run began earlier.

    Raises:
        BadInput: `loggers.wandb.mode` is `online`, and there is no key, or the server refuses it or does not answer.
    """
    if world().rank != 0 or not (problem := problem_online(cfg)):
        return
    if not resumed:
        raise BadInput(f"loggers.wandb.mode = 'online', and {problem}, {WAY_OUT}")
    print(
        f"warning: {problem}; until the next start the run logs offline, and `wandb sync {cfg.run_dir}/wandb/…` "
        "uploads the log",
        file=sys.stderr,
    )


def problem_online(cfg: RunConfig) -> str:
    """Why W&B would not accept the run, and what to do. Empty if it would, or if the run does not log online.

    A process sends at most one request; the answer is kept.
    """
    if not cfg.loggers.wandb or cfg.loggers.wandb.mode != "online":
        return ""
    base_url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlsplit(base_url).hostname or ""
    if not (key := os.environ.get("WANDB_API_KEY") or _key_of(host)):
        return f"there is no key for {host}: run `wandb login`, or set WANDB_API_KEY"
    return _problem(base_url, key)


@functools.cache
def _problem(base_url: str, key: str) -> str:
    answer: list[str] = []
    asking = threading.Thread(target=lambda: answer.append(_ask(base_url, key)), daemon=True)
    asking.start()
    asking.join(ANSWER_S)  # requests' own timeout starts anew with each byte that arrives
    return answer[0] if answer else f"{Location(base_url)} does not answer in {ANSWER_S:.0f} s: try again later"


def _ask(base_url: str, key: str) -> str:
    import requests

    try:
        with requests.post(
            f"{base_url}/graphql",
            json={"query": "query { viewer { id } }"},
            auth=("api", key),
            timeout=ANSWER_S,
            allow_redirects=False,  # so that no other server gets the key
            stream=True,
        ) as response:
            if response.status_code in (401, 403):
                return (
                    f"{Location(base_url)} refuses the key: run `wandb login --relogin`, or set another WANDB_API_KEY"
                )
            if response.status_code != 200:
                return f"{Location(base_url)} answers {response.status_code}: try again later"
            known = b'"viewer"' in (body := response.raw.read(ANSWER_BYTES, decode_content=True)) and b'"id"' in body
    except (requests.RequestException, OSError, ValueError) as error:
        return f"{Location(base_url)} does not answer ({type(error).__name__}): try again later"
    return "" if known else f"{Location(base_url)} does not know the key: run `wandb login --relogin`"


def _key_of(host: str) -> str:
    files = [Path(os.environ.get("NETRC", "~/.netrc")), Path("~/_netrc")]
    for file in filter(Path.is_file, (path.expanduser() for path in files)):
        try:
            if login := netrc.netrc(file).authenticators(host):
                return login[2] or ""
        except netrc.NetrcParseError:
            continue
    return ""

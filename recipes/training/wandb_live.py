"""Send a run to the Weights & Biases server during training, from a separate process that reads metrics.jsonl.

If the server is away for some thousand batches, wandb (0.18.7) accepts no further numbers, and `wandb.finish` waits for
the server without limit. Both only stop this process. The training itself writes W&B's files offline and is not
affected.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from data_prep.common.redaction import redacted

ROOT = Path(__file__).parents[2]
BEGIN_S = 60.0  # time limit for W&B to accept the run
LAST_S = 10.0  # time limit for sending the remaining lines when the run ends
READ_S = 1.0  # interval at which metrics.jsonl is read
PLACE = ("tokens", "time_s", "batch")  # keys of a line that are not metrics


@contextmanager
def redacted_command_line() -> Iterator[None]:
    """A context in which `sys.argv` contains no passwords. W&B records it as the command line of the run."""
    command_line = sys.argv
    sys.argv = [str(redacted(part)) for part in command_line]
    try:
        yield
    finally:
        sys.argv = command_line


class LiveRun:
    """Starts and ends the sending process, from the training process.

    Args:
        metrics: metrics.jsonl of the run. Lines that it already holds belong to an earlier start and are not sent.
        init: arguments of `wandb.init`, including `dir` and `settings`.

    Raises:
        ConnectionError: W&B has not accepted the run; the message gives the reason.
    """

    def __init__(self, metrics: Path, init: dict[str, Any]) -> None:
        folder = Path(init["dir"]).absolute() / "wandb"
        folder.mkdir(exist_ok=True)
        metrics.touch()
        self._files = TemporaryDirectory(prefix="live-", dir=folder, ignore_cleanup_errors=True)
        settings = {**init["settings"], "program": sys.argv[0], "_stats_pid": os.getpid()}
        asked = {
            "metrics": str(metrics.absolute()),
            "from_byte": metrics.stat().st_size,
            "command_line": [str(redacted(part)) for part in sys.argv],
            "begin_s": BEGIN_S,
            "last_s": LAST_S,
            "init": {**init, "dir": self._files.name, "settings": settings},
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            cwd=ROOT,
            # WANDB_SERVICE names the wandb-core of the training process, which the new process must not share.
            env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C only reaches the training
        )
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(asked), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or '{"problem": "its process has ended"}')
        except BrokenPipeError:
            answer = {"problem": "its process has ended"}
        if "url" not in answer:
            self.end()
            raise ConnectionError(redacted(answer["problem"]))
        self.url = redacted(answer["url"])

    def end(self) -> bool:
        """Wait at most `LAST_S` for the remaining lines to be sent. Return whether W&B has received everything."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(LAST_S) == 0
        except subprocess.TimeoutExpired:
            _kill(psutil.Process(self._process.pid))
            self._process.wait()
            return False
        finally:
            self._process.stdout.close()
            self._files.cleanup()


def _kill(process: psutil.Process) -> None:
    """Kill a process and its wandb-core, which would otherwise keep trying for minutes."""
    for one in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def main() -> None:
    """Start the run at W&B, print the result, and send metrics until the training closes our standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a scheduler signals every process of a job
        signal.signal(number, signal.SIG_IGN)
    asked = json.loads(sys.stdin.readline())
    begun, ended = threading.Event(), threading.Event()

    def leave_unless(event: threading.Event, wait_s: float) -> None:
        if not event.wait(wait_s):
            _answer({"problem": f"no answer in {wait_s:g} s"})
            _kill(psutil.Process())

    def leave_after_the_training() -> None:
        sys.stdin.read()
        ended.set()
        time.sleep(2 * asked["last_s"])  # in case the training was killed; otherwise it ends this process earlier
        _kill(psutil.Process())

    sys.argv = asked["command_line"]
    threading.Thread(target=leave_unless, args=(begun, asked["begin_s"]), daemon=True).start()
    threading.Thread(target=leave_after_the_training, daemon=True).start()
    import wandb

    try:
        run = wandb.init(**asked["init"])
    except Exception as error:
        _answer({"problem": " ".join(str(error).split()) or type(error).__name__})
        return _kill(psutil.Process())
    begun.set()
    _answer({"url": run.url or ""})
    with Path(asked["metrics"]).open("rb") as file:
        file.seek(asked["from_byte"])
        for line in _lines(file.readline, ended):
            if "event" not in line:
                metrics = {name: value for name, value in line.items() if name not in PLACE}
                run.log(metrics, step=line["batch"])
    run.finish()
    os._exit(0)


def _lines(readline: Callable[[], bytes], ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines of a growing file, until `ended` is set and all lines were read."""
    part = b""
    while True:
        last = ended.is_set()  # checked before the file is read, so that no line is missed
        while piece := readline():
            part += piece
            if part.endswith(b"\n"):
                yield json.loads(part)
                part = b""
        if last:
            return
        ended.wait(READ_S)


def _answer(answer: dict[str, str]) -> None:
    print(json.dumps(answer), flush=True)

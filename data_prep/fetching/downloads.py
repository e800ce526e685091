"""An HTTP client for bulk downloads. A request returns what was asked for, or raises an error that names the URL.

The client retries after 5xx, 429, timeouts and broken connections, with growing waits. It resumes a download where it
stopped if the server can confirm that the file is still the same (`If-Range`). It does not retry 403, 404 and other
errors that the request itself causes. Files arrive as they are stored: a `.gz` file stays compressed whatever the
server calls it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_prep.common.bounds import LEAST_BYTES_PER_S, RATE_WINDOW_S
from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.location import Location
from data_prep.files.inputs import Tick

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # time without a byte
ATTEMPTS = 6  # attempts in a row that make no progress
WAIT_S = 1.0  # before the second attempt; the wait doubles before each further one
MAX_WAIT_S = 60.0
PROGRESS_BYTES = 1 << 20  # an attempt that brings this much counts as progress
BLOCK_BYTES = 1 << 20
DOWNLOADS = 3  # downloads of a file whose content fails its checks
USER_AGENT = "biomedlm-recipe/data_prep/acquire.py"

T = TypeVar("T")
R = TypeVar("R")


class Missing(BadInput):
    """The server answers that it has no such file."""


class TooLong(BadInput):
    """A file is longer than its limit; another download would give the same."""


class Wrong(BadInput):
    """A file arrived and failed its checks; another download may be good."""


class _Passing(Exception):
    """A temporary failure; the next attempt waits at least `wait_s` seconds."""

    def __init__(self, what: str, wait_s: float = 0.0):
        super().__init__(what)
        self.wait_s = wait_s


class _Stopped(Exception):
    """Another thread is ending the command."""


@dataclass(frozen=True)
class Answer:
    """A server's response.

    Attributes:
        body: bytes of the file as the server stores them.
        headers: response headers; upper and lower case in their names do not matter.
    """

    body: bytes
    headers: Mapping[str, str]


class Web:
    """An HTTP client for several threads.

    Each method that fetches raises BadInput if the server refuses the request, Missing if the server has no such file,
    and Unavailable if `ATTEMPTS` attempts in a row bring no response.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._stop = threading.Event()

    def get(self, url: Location, limit_bytes: int) -> Answer:
        """Fetch a file into memory.

        Raises:
            TooLong: the file has more than `limit_bytes`.
        """
        return self._repeated(url, lambda: self._whole(url, limit_bytes), lambda: 0)

    def length(self, url: Location) -> int:
        """The size of a file in bytes, without fetching it; 0 if the server does not give the size."""

        def attempt() -> int:
            with self._opened("HEAD", url, {}) as response:
                return int(response.headers.get("Content-Length") or 0)

        return self._repeated(url, attempt, lambda: 0)

    def download(self, url: Location, part: Path, limit_bytes: int, tick: Tick = lambda _: None) -> Mapping[str, str]:
        """Download a file, or the rest of it, into `part`.

        An existing part is resumed if the server identified the file's version when the download began; a file beside
        the part with the ending `.etag` stores that version. The only check here is that the length is what the server
        announced.

        Args:
            url: URL of the file.
            part: path to write to; its folder must exist.
            limit_bytes: largest allowed size.
            tick: called with the number of new bytes, which includes those of an earlier call that are used again; the
                number is negative if bytes are discarded.

        Returns:
            The headers of the last response.

        Raises:
            TooLong: the file has more than `limit_bytes`; the part is removed.
            OSError: `part` cannot be written.
        """
        tick(_size(part))
        try:
            return self._repeated(url, lambda: self._continued(url, part, limit_bytes, tick), lambda: _size(part))
        except TooLong:
            discard(part)
            raise

    def each(
        self, todo: Iterable[T], work: Callable[[T], R], workers: int
    ) -> Generator[tuple[T, R | BadInput], None, None]:
        """Call `work` for many items in several threads; yield each item with its result, in order of completion.

        A BadInput is yielded as the item's result, because other items may succeed. After Unavailable, no new item is
        started, running ones are finished, and then Unavailable is raised.

        Args:
            todo: items; only a few more are taken than are in work.
            work: function that is called in other threads.
            workers: number of threads.
        """
        things = iter(todo)
        pending: dict[Future[R], T] = {}
        unavailable: Unavailable | None = None
        pool = ThreadPoolExecutor(workers)
        try:
            while True:
                while unavailable is None and len(pending) < 2 * workers:
                    try:
                        thing = next(things)
                    except StopIteration:
                        break
                    pending[pool.submit(work, thing)] = thing
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    thing = pending.pop(future)
                    result: R | BadInput
                    try:
                        result = future.result()
                    except BadInput as error:
                        result = error
                    except Unavailable as error:
                        unavailable = unavailable or error
                        pending = {future: thing for future, thing in pending.items() if not future.cancel()}
                        continue
                    yield thing, result
        except BaseException:
            self._stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if unavailable is not None:
            raise unavailable

    def _repeated(self, url: Location, attempt: Callable[[], T], bytes_here: Callable[[], int]) -> T:
        """Repeat `attempt` until it succeeds, or until `ATTEMPTS` attempts in a row have made no progress."""
        failures, most = 0, bytes_here()
        while True:
            try:
                return attempt()
            except _Passing as fault:
                if bytes_here() >= most + PROGRESS_BYTES:
                    failures, most = 0, bytes_here()
                failures += 1
                if failures >= ATTEMPTS:
                    raise Unavailable(
                        f"{url}: {fault}, in {ATTEMPTS} attempts in a row; type the same command later to resume"
                    ) from None
                if self._stop.wait(min(max(fault.wait_s, WAIT_S * 2 ** (failures - 1)), MAX_WAIT_S)):
                    raise _Stopped from None

    def _whole(self, url: Location, limit_bytes: int) -> Answer:
        with self._opened("GET", url, {}) as response:
            body = bytearray()
            for block in self._blocks(response, url, 0, limit_bytes):
                body += block
            return Answer(bytes(body), response.headers)

    def _continued(self, url: Location, part: Path, limit_bytes: int, tick: Tick) -> Mapping[str, str]:
        known = part.with_name(f"{part.name}.etag")
        part_bytes = _size(part)
        request: dict[str, str] = {}
        if part_bytes and known.is_file():
            # The last byte is requested again, so that the range is not empty if the part is complete.
            request = {"Range": f"bytes={part_bytes - 1}-", "If-Range": known.read_text(encoding="utf-8")}
        with self._opened("GET", url, request) as response:
            if response.status_code == 416 or (response.status_code == 206 and not _goes_on(response, request)):
                tick(-part_bytes)
                discard(part)
                raise _Passing(f"the existing part does not fit the file on the server ({response.status_code})")
            if response.status_code == 206:
                tick(-1)
                start = part_bytes - 1
            else:
                tick(-part_bytes)
                discard(part)
                start = 0
                if validator := _validator(response):
                    known.write_text(validator, encoding="utf-8")
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                file.truncate()
                for block in self._blocks(response, url, start, limit_bytes):
                    file.write(block)
                    tick(len(block))
            return response.headers

    def _blocks(self, response: Any, url: Location, start: int, limit_bytes: int) -> Iterator[bytes]:
        """The blocks of a response body as they arrive; urllib3 raises if there are fewer bytes than Content-Length.

        Args:
            response: response to read.
            url: URL for messages.
            start: position in the file at which the body begins.
            limit_bytes: largest allowed size of the file.

        Raises:
            TooLong: the file has more bytes.
            _Passing: the connection is too slow for too long.
        """
        size_bytes = start
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and len(announced) < 20:
            _check_length(start + int(announced), limit_bytes, url)
        window_s, window_bytes = time.monotonic(), 0
        while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
            if self._stop.is_set():
                raise _Stopped
            size_bytes += len(block)
            _check_length(size_bytes, limit_bytes, url)
            yield block
            window_bytes += len(block)
            if (passed_s := time.monotonic() - window_s) >= RATE_WINDOW_S:
                if window_bytes < LEAST_BYTES_PER_S * passed_s:
                    raise _Passing(f"only {window_bytes:,} bytes came in {passed_s:.0f} s")
                window_s, window_bytes = time.monotonic(), 0

    @contextmanager
    def _opened(self, method: str, url: Location, headers: Mapping[str, str]) -> Iterator[Any]:
        """Open a successful response; a temporary failure, also while the response is read, raises `_Passing`."""
        import requests
        import urllib3

        try:
            with self._session.request(
                method, url.typed, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                allow_redirects=True,
            ) as response:  # fmt: skip
                _check_status(url, response, ranged="Range" in headers)
                yield response
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
            raise _Passing("no answer in time") from None
        except (requests.ConnectionError, urllib3.exceptions.HTTPError, ConnectionError) as error:
            raise _Passing(f"the connection fails or breaks off ({_reason(error)})") from None
        except requests.RequestException as error:
            raise BadInput(f"{url} cannot be requested: {type(error).__name__}: {error}") from None

    @property
    def _session(self) -> Any:
        """The session of this thread; a requests session is not safe for several threads."""
        if not hasattr(self._local, "session"):
            from data_prep.fetching.connections import new_session

            self._local.session = new_session(USER_AGENT)
        return self._local.session


def until_right(what: Location, attempt: Callable[[], T]) -> T:
    """Call `attempt` until its download passes its checks, at most `DOWNLOADS` times, and return the result.

    Args:
        what: URL for the message.
        attempt: function that downloads and checks, and raises Wrong if a check fails.

    Raises:
        BadInput: every download failed its checks.
    """
    seen = None
    for _ in range(DOWNLOADS):
        try:
            return attempt()
        except Wrong as error:
            seen = error
    raise BadInput(f"{what} failed its checks in {DOWNLOADS} downloads: {seen}")


def discard(part: Path) -> None:
    """Remove the part that `download` left, and its `.etag` file."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.etag").unlink(missing_ok=True)


def _check_length(size_bytes: int, limit_bytes: int, url: Location) -> None:
    if size_bytes > limit_bytes:
        raise TooLong(
            f"{url} has more than the {limit_bytes:,} bytes that its source's listing allows; "
            "see what the server answers there, or omit the file"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_status(url: Location, response: Any, ranged: bool) -> None:
    status, answer = response.status_code, f"{response.status_code} {response.reason or ''}".strip()
    if status == 200 or (ranged and status in (206, 416)):
        return
    if status in (408, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Passing(f"the server answers {answer}", float(after) if after.isdecimal() else 0.0)
    if status in (404, 410):
        raise Missing(f"{url} is not there ({answer})")
    if status in (401, 403):
        raise BadInput(f"{url}: access denied ({answer})")
    raise BadInput(f"{url}: the server answers {answer}")


def _goes_on(response: Any, request: Mapping[str, str]) -> bool:
    """Whether a partial response is the requested part of the same file; some servers ignore If-Range."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return (
        start is not None
        and request["Range"] == f"bytes={start[1]}-"
        and _validator(response) in (None, request["If-Range"])
    )


def _validator(response: Any) -> str | None:
    """The value for `If-Range`: the response's entity tag unless it is weak, else the time of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, without the addresses of Python objects that libraries quote."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = re.sub(r"<[^>]*>:?", "", str(error)).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""HTTP sessions that limit the time until a response begins, whatever a server does with headers and redirects.

The timeout of requests applies between two bytes, so that a server that sends its headers byte by byte could delay a
request for ever. (A TLS handshake cannot: one timeout applies to all of it.) Moreover, requests reads the body of a
redirect into memory before it follows the redirect.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
import requests.adapters
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from data_prep.common.bounds import HEADERS_S, REDIRECTS


@contextmanager
def _in_time(connection: HTTPConnection) -> Iterator[None]:
    """Raise TimeoutError if the body of the `with` statement takes too long: a timer shuts the connection's socket."""
    is_late = threading.Event()

    def shut() -> None:
        is_late.set()
        if isinstance(connection.sock, socket.socket):
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(HEADERS_S, shut)
    timer.daemon = True
    timer.start()
    late = f"no headers within {HEADERS_S:g} s"
    try:
        yield
    except Exception:
        if is_late.is_set():
            raise TimeoutError(late) from None
        raise
    finally:
        timer.cancel()
    if is_late.is_set():  # http.client accepts headers that are cut off by the end of the connection
        raise TimeoutError(late)


class _Connection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:
        with _in_time(self):
            return super().getresponse()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType] (urllib3 does the same)


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection  # pyright: ignore[reportAssignmentType]


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **given: Any) -> None:
        """Make the manager of direct connections."""
        super().init_poolmanager(*arguments, **given)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **given: Any) -> Any:
        """Make the manager of connections through a proxy. SOCKS proxies keep their own classes, without the limit."""
        manager = super().proxy_manager_for(proxy, **given)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


def _without_body(response: requests.Response, *_: Any, **__: Any) -> None:
    """A response hook that closes a redirect without reading its body."""
    if response.is_redirect:
        response.raw.close()
        response.raw = HTTPResponse(io.BytesIO(), preload_content=False)


def new_session(user_agent: str) -> requests.Session:
    """Make a session for one thread; it asks for files without compression in transit."""
    session = requests.Session()
    session.mount("http://", _Adapter())
    session.mount("https://", _Adapter())
    session.hooks["response"].append(_without_body)
    session.max_redirects = REDIRECTS
    session.headers.update({"User-Agent": user_agent, "Accept-Encoding": "identity"})
    return session

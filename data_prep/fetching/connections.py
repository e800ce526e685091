"""Answers that begin in time, whatever a server does with its headers and its redirects.

requests' timeout is between two bytes, so a server that drips its headers is waited for without end (a TLS handshake is
not: its timeout is one for all of it). And requests reads the body of a redirect into memory before it follows it.
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
    """Raise TimeoutError where what is done meanwhile takes too long: the socket is shut under it."""
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
    if is_late.is_set():  # http.client takes headers that end with the connection for whole
        raise TimeoutError(late)


class _Connection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:
        with _in_time(self):
            return super().getresponse()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType] (as urllib3's own are)


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection  # pyright: ignore[reportAssignmentType]


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **given: Any) -> None:
        """The manager of connections to the addresses themselves."""
        super().init_poolmanager(*arguments, **given)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **given: Any) -> Any:
        """The manager of connections through a proxy; a SOCKS one has classes of its own, without this bound."""
        manager = super().proxy_manager_for(proxy, **given)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


def _without_body(response: requests.Response, *_: Any, **__: Any) -> None:
    """A hook: what comes with a redirect is not read."""
    if response.is_redirect:
        response.raw.close()
        response.raw = HTTPResponse(io.BytesIO(), preload_content=False)


def new_session(user_agent: str) -> requests.Session:
    """A session, for one thread, that takes files as they are stored."""
    session = requests.Session()
    session.mount("http://", _Adapter())
    session.mount("https://", _Adapter())
    session.hooks["response"].append(_without_body)
    session.max_redirects = REDIRECTS
    session.headers.update({"User-Agent": user_agent, "Accept-Encoding": "identity"})
    return session

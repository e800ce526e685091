"""Pass only requests of our own page to its server, and refuse all others.

Gradio 6.17 has routes for uploads, for files and for addresses on other hosts. This page does not need them, but any
other page in the user's browser could call them: in a test, 50 MB were written to the disk in this way, without a
session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Paths that the page requests, by method. A path that ends in "/" includes all paths below it.
PATHS = {
    "GET": (
        "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/pwa_icon", "/robots.txt", "/assets/", "/static/",
        "/svelte/", "/gradio_api/info", "/gradio_api/app_id", "/gradio_api/startup-events", "/gradio_api/heartbeat/",
        "/gradio_api/queue/data", "/gradio_api/theme.css",
    ),
    "POST": ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"),
}  # fmt: skip
MAX_BODY_BYTES = 1 << 20  # largest request: a prompt and the settings
HEADERS = [  # no other page may show this page in a frame, where it could misdirect the user's clicks
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class PageOnly:
    """ASGI middleware that refuses requests with another host name, from another page, for another path or too long.

    Args:
        app: server of the page.
        hosts: host names, without port, by which a request may address this machine. This prevents DNS rebinding, where
            a foreign name points to this machine. None: any name.
    """

    def __init__(self, app: App, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if scope["type"] != "http" or refusal:
            return await _answer(send, *(refusal or (404, "not a part of this page")))
        seen_bytes = 0

        async def bounded() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen_bytes > MAX_BODY_BYTES else message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, bounded, with_headers)

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.hosts is not None and host.rpartition(":")[0].lower() not in self.hosts:
            return 421, "this page is at another address"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "this request came from another page"
        path, method = str(scope.get("path")), str(scope.get("method")).replace("HEAD", "GET")
        known = (path in (prefix, f"{prefix}/") or (prefix[-1] == "/" and path.startswith(prefix))
                 for prefix in PATHS.get(method, ()))  # fmt: skip
        if not (method == "GET" and path == "/") and not any(known):
            return 404, "not a part of this page"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, "the request is too long"
        return None


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})

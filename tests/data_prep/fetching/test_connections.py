"""If a server never finishes what it begins to send, each attempt is ended in time."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.location import Location
from data_prep.fetching import connections, downloads

HEAD = b"HTTP/1.1 200 OK\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nLocation: /b\r\n"
LIMIT_BYTES = 1 << 20


def serve(
    answer: Callable[[bytes], Iterator[bytes]], pause_s: float, certificate: Path | None = None
) -> tuple[str, list[int]]:
    """A server that sends in pieces; its host and port, and the number of bytes that each connection received."""
    server, sent = socket.create_server(("127.0.0.1", 0)), []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        context.load_cert_chain(certificate)

    def talk(plain: socket.socket) -> None:
        number = len(sent)
        sent.append(0)
        with suppress(OSError), context.wrap_socket(plain, server_side=True) if certificate else plain as connection:
            request = connection.recv(65536)
            for piece in answer(request):
                connection.sendall(piece)
                sent[number] += len(piece)
                threading.Event().wait(pause_s)

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}", sent


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a self-signed certificate of 127.0.0.1."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + signed.public_bytes(Encoding.PEM))
    return path


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(connections, "HEADERS_S", 0.2)
    monkeypatch.setattr(downloads, "WAIT_S", 0.001)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)


@pytest.mark.parametrize(
    ("scheme", "pieces"),
    [
        ("http", lambda: repeat(b"H")),
        ("http", lambda: chain([HEAD], repeat(b"a"))),
        ("http", lambda: chain([HEAD], (b"x-%d: 1\r\n" % n for n in range(90)), repeat(b"a"))),
        ("http", lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
        ("https", lambda: chain([HEAD], repeat(b"a"))),
    ],
    ids=["a status", "a header", "many headers", "100 Continue", "a header over TLS"],
)
@pytest.mark.parametrize("method", ["get", "length"])
def test_a_beginning_without_end_is_given_up(
    method: str, scheme: str, pieces: Callable[[], Iterator[bytes]], certificate: Path
) -> None:  # fmt: skip
    host, sent = serve(lambda _: pieces(), 0.01, certificate if scheme == "https" else None)
    url = Location(f"{scheme}://{host}/a")
    web = downloads.Web()
    with pytest.raises(Unavailable, match="no answer in time, in 2 attempts in a row"):
        web.get(url, LIMIT_BYTES) if method == "get" else web.length(url)
    assert len(sent) == 2


def test_what_comes_with_a_redirect_is_not_read() -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        if request.startswith(b"GET /a "):
            return chain([MOVED + b"\r\n"], repeat(bytes(1 << 16)))
        return iter([HEAD + b"Content-Length: 2\r\n\r\nhi"])

    host, sent = serve(answer, 0)
    assert downloads.Web().get(Location(f"http://{host}/a"), LIMIT_BYTES).body == b"hi"
    assert len(sent) == 2


def test_redirects_end() -> None:
    host, sent = serve(lambda _: iter([MOVED + b"Content-Length: 0\r\n\r\n"]), 0)
    with pytest.raises(BadInput, match=rf"http://{host}/a cannot be requested: .*Exceeded 5 redirects"):
        downloads.Web().get(Location(f"http://{host}/a"), LIMIT_BYTES)
    assert len(sent) <= connections.REDIRECTS + 1

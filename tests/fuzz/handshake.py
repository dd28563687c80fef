"""Fuzz the responses to a handshake, from the server or a proxy: any bytes in pieces, then the end of the stream.

The first byte of an input selects who responds and the number of splits. Two bytes follow for each split. `{accept}`
stands for the correct Sec-WebSocket-Accept, `{key}` for the API key in a URL, `{KEY}` for the plain key, and `{pad}`
for 70 KB.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from urllib.parse import quote

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.proxy import Proxy
from finx_streamer.connection.http_response import HttpResponse
from finx_streamer.connection.tunnel import open_tunnel
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import AuthenticationError, ConnectionFailed, ProtocolError, RateLimited, StreamNotFound
from tests.fuzz.fake_server import (
    KEY,
    FakeServer,
    accept_value,
    check_error,
    check_secrecy,
    connected,
    contains_key,
    socket_pair,
    split_at,
)
from tests.support.peers import frame

_PAD = b"x" * 70_000
_KINDS = {401: AuthenticationError, 403: AuthenticationError, 404: StreamNotFound, 429: RateLimited}
#: The password for proxies. No error may show it.
_PASSWORD = "zass-w0rd"
_WHO = (f"user:{_PASSWORD}@", "")
_PROXIES = [Proxy.parse(f"{scheme}://{who}127.0.0.1:1") for scheme in ("http", "socks5h") for who in _WHO]


class Unexpected(AssertionError):
    """The client caught an exception of an unknown type."""


class _LogCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _checked_logs() -> Iterator[None]:
    """Check that the logs show no key and report no unknown exception."""
    collector, logger = _LogCollector(), logging.getLogger("finx_streamer")
    library, before = logging.getLogger("websocket"), logger.propagate
    logger.addHandler(collector)
    library.addHandler(collector)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(collector)
        library.removeHandler(collector)
        logger.propagate = before
    for text in collector.messages:
        check_secrecy(text)
        if text.startswith("unexpected"):
            raise Unexpected(text)


def run(data: bytes) -> None:
    """Try one input."""
    if contains_key(data):
        return
    options, data = (data[0] if data else 0), data[1:]
    splits = (options >> 3) & 0x07
    places, response = data[: 2 * splits], data[2 * splits :]
    with _checked_logs():
        if options & 0x04:
            _check_proxy(_PROXIES[options & 0x03], response, places)
        else:
            # With a callable, the client asks for another key after a refusal.
            keys = KeySource.from_argument(lambda: KEY) if options & 0x01 else KeySource.from_argument(KEY)
            whole, split = _connect(response, b"", keys), _connect(response, places, keys)
            # An error shows only as much of the body as has arrived.
            assert split == whole or b"{pad}" in response, (whole, split)


def _connect(response: bytes, places: bytes, keys: KeySource) -> tuple[object, ...]:
    """Return the facts about the outcome that must not depend on the splits."""

    def respond(request: bytes) -> list[bytes]:
        filled = response.replace(b"{accept}", accept_value(request).encode(), 1).replace(b"{pad}", _PAD, 1)
        filled = filled.replace(b"{key}", quote(KEY, safe="").encode()).replace(b"{KEY}", KEY.encode())
        _check_head(filled)
        return split_at(filled, places)

    with connected(respond, keys) as (outcome, server):
        assert server.request.startswith(f"GET /streaming/{quote(KEY, safe='')}/BTC:USDC HTTP/1.1\r\n".encode())
        if isinstance(outcome, ConnectionFailed):
            # With a wrong Content-Length, a server can always cut the key within the body.
            check_error(outcome, b"length" not in response.lower())
            assert "can't be resolved" not in str(outcome), outcome
            kind = _KINDS.get(outcome.status or 0, type(outcome))
            assert type(outcome) is kind, outcome
            return type(outcome), outcome.status, outcome.permanent
        _check_accepted(response)
        return Connection, _read_messages(outcome, server)


def _read_messages(connection: Connection, server: FakeServer) -> tuple[object, ...]:
    """Read the messages that follow the response."""
    messages, pieces = connection.messages(1 << 30), server.take_unsent()
    while connection.ended is None and pieces:
        server.sock.send(pieces.pop(0))
        connection.wire.fill()
        messages += connection.messages(1 << 30)
    if connection.ended is not None:
        check_error(connection.ended)
    return messages, type(connection.ended)


def _check_accepted(response: bytes) -> None:
    """Check that an accepted response has all required headers."""
    head = response.partition(b"\r\n\r\n")[0]
    assert re.match(rb"HTTP/[^ ]* 101( |\r\n|$)", head), head
    for header in (rb"upgrade:.*websocket", rb"connection:.*upgrade", rb"sec-websocket-accept:.*\{accept\}"):
        assert re.search(header, response, re.I), response


def _check_head(response: bytes) -> None:
    answer = HttpResponse.parse(response)
    if answer is None:
        return
    assert 0 <= answer.status <= 999
    wait = answer.retry_after
    assert wait is None or (wait >= 0 and math.isfinite(wait)), wait


def _check_proxy(proxy: Proxy, response: bytes, places: bytes) -> None:
    """Check that any response leads to a tunnel or one error, and that nothing is read beyond the response."""
    response = response.replace(b"{key}", _PASSWORD.encode()).replace(b"{pad}", _PAD, 1)
    with socket_pair() as (client, sock):
        server = FakeServer(sock, lambda request: [])
        server.begin(1e6)
        server.queue([b"", *split_at(response, places)])
        try:
            open_tunnel(proxy, client, "ws.finx.io", 443, server.remaining)
        except ConnectionFailed as error:
            assert type(error) in (ConnectionFailed, ProtocolError)
            check_error(error)
            assert _PASSWORD not in f"{error!r}{error.__dict__}"
            return
        rest = _read_rest(client) + b"".join(server.take_unsent())
    consumed = len(response) - len(rest)
    assert response[consumed:] == rest
    if proxy.scheme == "http":
        assert response[:consumed].endswith(b"\r\n\r\n")
        assert re.match(rb"HTTP/[^ ]* 2\d\d( |\r\n)", response[:consumed]), response
    else:
        # The selected method, possibly its result, and a reply with an address.
        assert response[:1] == b"\x05"
        assert consumed >= 2 + 4 + 1 + 2


def _read_rest(client: object) -> bytes:
    client.setblocking(False)  # type: ignore[attr-defined]
    rest = b""
    with contextlib.suppress(BlockingIOError):
        while data := client.recv(65_536):  # type: ignore[attr-defined]
            rest += data
    return rest


_GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
)
_RESPONSES = (
    b"",
    _GOOD + b"\r\n" + frame("x") + frame("y"),
    _GOOD + b"X: y\r\nSet-Cookie: a=b\r\nSet-Cookie: c)=d\r\n\r\n",
    _GOOD.replace(b"{accept}", b"x") + b"\r\n",
    _GOOD + b" \r\nno header\r\n\r\n",
    _GOOD + b"X: \xff\r\n\r\n",
    _GOOD + b"X: {pad}\r\n\r\n",
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 20\r\n\r\nno such key: {key}",
    b"HTTP/1.1 403 {KEY}\r\n\r\n\x1b[31m{KEY}",
    b"HTTP/1.1 404\r\n\r\n",
    b"HTTP/1.1 500 So\r\n\r\n" + b"so sorry, " * 19 + b"{key}",
    b"{key}HTTP/1.1\r\n\r\n",
    b"HTTP/1.1" + b"x" * 66 + b"{KEY}\r\n\r\n",
    b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n",
    b"HTTP/1.1 503 Later\r\nRetry-After: Wed, 21 Oct 2065 07:28:00 GMT\r\nDate: Wed, 21 Oct 2065 07:27:00 GMT\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/streaming/{key}/BTC:USDC\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n<html>",
    b"HTTP/1.1 101\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 2x0 OK\r\n\r\n",
)
_SOCKS = (
    b"\x05\x00\x05\x00\x00\x01\x7f\0\0\1\0\1behind",
    b"\x05\x02\x01\x00\x05\x00\x00\x03\x04host\0\1",
    b"\x05\x02\x01\x01",
    b"\x05\x00\x05\x05\x00\x01",
    b"\x05\xff",
)
#: Each server response whole and in two pieces, then the responses of proxies.
SEEDS = [
    *(options + response for response in _RESPONSES for options in (b"\x00", b"\x09\x00\x13")),
    *(options + b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbehind" for options in (b"\x04", b"\x05", b"\x0c\x00\x09")),
    *(options + b"HTTP/1.1 407 {key}\r\nRetry-After: 1\r\n\r\n" for options in (b"\x04", b"\x05")),
    *(options + response for response in _SOCKS for options in (b"\x06", b"\x07", b"\x0e\x00\x03")),
]
WORDS = [
    b"HTTP/1.1 ",
    *(str(status).encode() for status in (101, 200, 301, 302, 401, 404, 407, 429, 503)),
    b"\r\n\r\n",
    b"\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: Upgrade\r\n",
    b"Sec-WebSocket-Accept: {accept}\r\n",
    b"Location: http://127.0.0.1:1/\r\n",
    b"Retry-After: ",
    b"Date: ",
    b"Wed, 21 Oct 2065 07:28:00 GMT",
    b"Content-Length: 9\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"{key}",
    b"{KEY}",
    b"{accept}",
    b"\x0b",
    b"\x1c",
    b"\x85",
    b"\xa0",
    b"\x05\x00",
    b"\x05\x02\x01\x00",
    b"\x05\x00\x00\x03",
]

"""The answer to a handshake, of the server or of a proxy before it: any bytes, cut anywhere, and then the end.

An input's first byte says who answers, and how often the rest is cut; two bytes follow for each cut. `{accept}` stands
for what Sec-WebSocket-Accept has to be, `{key}` and `{KEY}` for the API key in the URL and as it is, `{pad}` for 70 KB.
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
from tests.fuzz.near import (
    KEY,
    Far,
    acceptance,
    check_error,
    check_secrecy,
    dialled,
    holds_traces,
    in_pieces,
    socket_pair,
)
from tests.support.peers import frame

_PAD = b"x" * 70_000
_KINDS = {401: AuthenticationError, 403: AuthenticationError, 404: StreamNotFound, 429: RateLimited}
#: What a proxy is told, and must not show.
_PASSWORD = "zass-w0rd"
_WHO = (f"user:{_PASSWORD}@", "")
_PROXIES = [Proxy.parse(f"{scheme}://{who}127.0.0.1:1") for scheme in ("http", "socks5h") for who in _WHO]


class Unexpected(AssertionError):
    """The transport met an exception that it does not know."""


class _Alarm(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@contextlib.contextmanager
def _nothing_unexpected() -> Iterator[None]:
    """What is logged shows no key, and tells of no exception that the transport has no name for."""
    alarm, logger = _Alarm(), logging.getLogger("finx_streamer")
    library, before = logging.getLogger("websocket"), logger.propagate
    logger.addHandler(alarm)
    library.addHandler(alarm)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(alarm)
        library.removeHandler(alarm)
        logger.propagate = before
    for text in alarm.heard:
        check_secrecy(text)
        if text.startswith("unexpected"):
            raise Unexpected(text)


def run(data: bytes) -> None:
    """One input."""
    if holds_traces(data):
        return
    how, data = (data[0] if data else 0), data[1:]
    cuts = (how >> 3) & 0x07
    places, said = data[: 2 * cuts], data[2 * cuts :]
    with _nothing_unexpected():
        if how & 0x04:
            _through(_PROXIES[how & 0x03], said, places)
        else:
            # A key that is from a callable may be asked for again.
            keys = KeySource.from_argument(lambda: KEY) if how & 0x01 else KeySource.from_argument(KEY)
            whole, cut = _outcome(said, b"", keys), _outcome(said, places, keys)
            # A body is shown as far as it has come.
            assert whole == cut or b"{pad}" in said, (whole, cut)


def _outcome(said: bytes, places: bytes, keys: KeySource) -> tuple[object, ...]:
    """What came of it, as far as it must not depend on how it was cut."""

    def answer(request: bytes) -> list[bytes]:
        filled = said.replace(b"{accept}", acceptance(request).encode(), 1).replace(b"{pad}", _PAD, 1)
        filled = filled.replace(b"{key}", quote(KEY, safe="").encode()).replace(b"{KEY}", KEY.encode())
        _check_head(filled)
        return in_pieces(filled, places)

    with dialled(answer, keys) as (outcome, far):
        assert far.request.startswith(f"GET /streaming/{quote(KEY, safe='')}/BTC:USDC HTTP/1.1\r\n".encode())
        if isinstance(outcome, ConnectionFailed):
            # A server that lies of the length can always show a part of what it knows.
            check_error(outcome, b"length" not in said.lower())
            assert "can't be resolved" not in str(outcome), outcome
            kind = _KINDS.get(outcome.status or 0, type(outcome))
            assert type(outcome) is kind, outcome
            return type(outcome), outcome.status, outcome.permanent
        _check_acceptance(said)
        return Connection, _messages(outcome, far)


def _messages(connection: Connection, far: Far) -> tuple[object, ...]:
    """What stood behind the head."""
    messages, pieces = connection.messages(1 << 30), far.left_to_say()
    while connection.ended is None and pieces:
        far.sock.send(pieces.pop(0))
        connection.wire.fill()
        messages += connection.messages(1 << 30)
    if connection.ended is not None:
        check_error(connection.ended)
    return messages, type(connection.ended)


def _check_acceptance(said: bytes) -> None:
    """What was accepted has a head that says so, line by line."""
    head = said.partition(b"\r\n\r\n")[0]
    assert re.match(rb"HTTP/[^ ]* 101( |\r\n|$)", head), head
    for needed in (rb"upgrade:.*websocket", rb"connection:.*upgrade", rb"sec-websocket-accept:.*\{accept\}"):
        assert re.search(needed, said, re.I), said


def _check_head(response: bytes) -> None:
    answer = HttpResponse.parse(response)
    if answer is None:
        return
    assert 0 <= answer.status <= 999
    wait = answer.retry_after
    assert wait is None or (wait >= 0 and math.isfinite(wait)), wait


def _through(proxy: Proxy, said: bytes, places: bytes) -> None:
    """Whatever a proxy says makes a tunnel or one error; and nothing is taken that was for the client behind it."""
    said = said.replace(b"{key}", _PASSWORD.encode()).replace(b"{pad}", _PAD, 1)
    with socket_pair() as (near, sock):
        far = Far(sock, lambda request: [])
        far.begin(1e6)
        far.will_say([b"", *in_pieces(said, places)])
        try:
            open_tunnel(proxy, near, "ws.finx.io", 443, far.remaining)
        except ConnectionFailed as error:
            assert type(error) in (ConnectionFailed, ProtocolError)
            check_error(error)
            assert _PASSWORD not in f"{error!r}{error.__dict__}"
            return
        behind = _rest(near) + b"".join(far.left_to_say())
    taken = len(said) - len(behind)
    assert said[taken:] == behind
    if proxy.scheme == "http":
        assert said[:taken].endswith(b"\r\n\r\n")
        assert re.match(rb"HTTP/[^ ]* 2\d\d( |\r\n)", said[:taken]), said
    else:
        # The choice of a method, perhaps its answer, and a reply with an address.
        assert said[:1] == b"\x05"
        assert taken >= 2 + 4 + 1 + 2


def _rest(near: object) -> bytes:
    near.setblocking(False)  # type: ignore[attr-defined]
    rest = b""
    with contextlib.suppress(BlockingIOError):
        while data := near.recv(65_536):  # type: ignore[attr-defined]
            rest += data
    return rest


_GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
)
_ANSWERS = (
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
#: Each answer whole and cut in two; then those of proxies.
SEEDS = [
    *(how + answer for answer in _ANSWERS for how in (b"\x00", b"\x09\x00\x13")),
    *(how + b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbehind" for how in (b"\x04", b"\x05", b"\x0c\x00\x09")),
    *(how + b"HTTP/1.1 407 {key}\r\nRetry-After: 1\r\n\r\n" for how in (b"\x04", b"\x05")),
    *(how + answer for answer in _SOCKS for how in (b"\x06", b"\x07", b"\x0e\x00\x03")),
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

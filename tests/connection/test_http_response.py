"""Parsing the head of an HTTP response, and removing its cookies."""

from __future__ import annotations

import contextlib
import socket

import pytest
import websocket
from hypothesis import given
from hypothesis import strategies as st
from websocket._http import read_headers

from finx_streamer.connection.http_response import HttpResponse, without_cookies

PIECES = [b"Set-Cookie", b"SET-cookie", "set-coo\u212aie".encode(), b": a=b", b":", b"X: y", b" ", b"\t", b"\x0b"]
PIECES += [b"\r\n", b"\n", b"\r", "\xa0".encode(), b"\xff", b"\0"]


@given(st.lists(st.sampled_from(PIECES)))
def test_the_library_finds_no_cookie(pieces: list[bytes]) -> None:
    """The library's own parser sees no Set-Cookie in the rest, however a server spells it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(without_cookies(b"HTTP/1.1 101 OK\r\n" + b"".join(pieces) + b"\r\n\r\nframes"))
        with contextlib.suppress(websocket.WebSocketException):
            assert "set-cookie" not in read_headers(ours)[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Set-Cookie: a=b", ""),
        ("A: b\r\nset-cookie: a=b\r\nC: d", "A: b\r\nC: d"),
        ("A: b\r\nSet-Cookie: a=b;\r\n Domain=c\r\n\tSecure\r\nC: d\r\n e", "A: b\r\nC: d\r\n e"),
        ("Set-Cookie: a=b\r\nA: b\r\nSet-Cookie: c=d", "A: b"),
        ("A: b\nSet-Cookie: c=d\nC: d", "A: b\r\nC: d"),
        ("A: Set-Cookie: b", "A: Set-Cookie: b"),
        ("Set-Cookies: a", "Set-Cookies: a"),
    ],
)
def test_other_headers_and_the_body_stay(given: str, expected: str) -> None:
    """Only a cookie and its continuation lines are removed."""
    lines = [line for line in ("HTTP/1.1 101 OK", expected) if line]
    response = f"HTTP/1.1 101 OK\r\n{given}\r\n\r\nSet-Cookie: in a frame\r\n".encode()
    assert without_cookies(response) == "\r\n".join([*lines, "", "Set-Cookie: in a frame", ""]).encode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("", None),
        ("Sec-WebSocket-Extensions: \r\nSec-WebSocket-Protocol:\r\n", None),
        ("Sec-WebSocket-Accept: x\r\n", None),
        ("sec-websocket-extensions: x-y\r\n", "Sec-WebSocket-Extensions"),
        ("Sec-WebSocket-Protocol:\r\nSec-WebSocket-Protocol: chat\r\n", "Sec-WebSocket-Protocol"),
    ],
)
def test_finds_an_unrequested_extension_or_subprotocol(headers: str, expected: str | None) -> None:
    """We never offer one."""
    response = HttpResponse.parse(f"HTTP/1.1 101 OK\r\n{headers}\r\n".encode())
    assert response is not None
    assert response.unrequested == expected

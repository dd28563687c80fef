"""The head of an HTTP answer: what is read of it, and what is taken out of it before the library reads it."""

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
    """However a server may write Set-Cookie, the library's own reading of what is left has none."""
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
def test_other_headers_and_what_follows_stay(given: str, expected: str) -> None:
    """A cookie goes with the lines that continue it, and nothing else."""
    lines = [line for line in ("HTTP/1.1 101 OK", expected) if line]
    whole = f"HTTP/1.1 101 OK\r\n{given}\r\n\r\nSet-Cookie: in a frame\r\n".encode()
    assert "\r\n".join([*lines, "", "Set-Cookie: in a frame", ""]).encode() == without_cookies(whole)


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
def test_what_was_not_asked_for_has_a_name(headers: str, expected: str | None) -> None:
    """We offer neither an extension nor a subprotocol, so any is one too many."""
    answer = HttpResponse.parse(f"HTTP/1.1 101 OK\r\n{headers}\r\n".encode())
    assert answer is not None
    assert answer.unrequested == expected

"""One connection over real sockets: the handshake, its refusals, and frames."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import attrs
import pytest
import trustme
from websocket import _handshake
from websocket._cookiejar import SimpleCookieJar

from finx_streamer import AuthenticationError, ConnectionFailed, Endpoint, ProtocolError, RateLimited, StreamNotFound
from finx_streamer.config.api_key import KeySource
from finx_streamer.config.proxy import ProxyChoice
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.connection.attempt import MAX_MESSAGE, Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.connection.websocket import MAX_HEADER, Connection
from finx_streamer.wire.frames import Binary
from tests.support.peers import (
    BINARY,
    CLOSE,
    PAIR,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    Caller,
    Peer,
    Script,
    close_frame,
    frame,
    free_port,
    refuse,
    stay,
    tick,
)
from tests.support.tls import client_context, server_context

CONT = 0x0
ALL = 1 << 30
Dial = Callable[..., Connection]


def config(
    url: str, key: str = "demo", timeout: float = PATIENCE, context: ssl.SSLContext | None = None
) -> ConnectionConfig:
    """The configuration of a stream."""
    return ConnectionConfig(
        Endpoint(url),
        parse_symbol(PAIR),
        KeySource.from_argument(key),
        timeout,
        lambda: context or ssl.create_default_context(),
    )


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Open connections, and close them at the end."""
    with contextlib.ExitStack() as stack:

        def call(peer: Peer, **options: object) -> Connection:
            connection = open_connection(config(peer.url, **options), Attempt())  # type: ignore[arg-type]
            stack.callback(connection.close_socket)
            return connection

        yield call


def read(connection: Connection, count: int = ALL) -> list[bytes | Binary]:
    """Read `count` messages, or all until the end."""
    got = connection.messages(count)
    while len(got) < count and connection.ended is None:
        assert select.select([connection.wire.socket], [], [], PATIENCE)[0], f"only {got}"
        try:
            connection.wire.fill()
        except EOFError:
            break
        got += connection.messages(count - len(got))
    return got


def refused(script: Script, **options: object) -> ConnectionFailed:
    """Return the error of a failed handshake."""
    with Peer(script) as peer, pytest.raises(ConnectionFailed) as caught:
        open_connection(config(peer.url, **options), Attempt())  # type: ignore[arg-type]
    return caught.value


# The handshake.


def test_the_request_has_the_path_of_the_stream(dial: Dial) -> None:
    """It is streaming/[key]/[pair], with a percent-encoded key and an unescaped colon."""
    with Peer(stay()) as peer:
        dial(peer, key="k/e+y%")
        lines = peer.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /streaming/k%2Fe%2By%25/BTC:USDC HTTP/1.1"
    assert f"Host: 127.0.0.1:{peer.port}" in lines
    assert not [line for line in lines if line.lower().startswith("origin")]


def test_reads_frames_behind_the_answer(dial: Dial) -> None:
    """They may be in the same TCP segment as the answer to the handshake."""
    with Peer(stay(frame("one"), frame("two"))) as peer:
        connection = dial(peer)
        assert read(connection, 2) == [b"one", b"two"]


def test_frames_behind_the_answer_have_a_time_of_receipt(dial: Dial) -> None:
    """No later read sets it: these bytes came with the answer to the handshake."""
    before = time.time_ns()
    with Peer(stay(frame("one"))) as peer:
        connection = dial(peer)
        assert before <= connection.wire.received_ns <= time.time_ns()
        assert connection.wire.bytes_received > len(frame("one"))


@pytest.mark.parametrize(
    ("status", "kind", "permanent"),
    [
        ("401 Unauthorized", AuthenticationError, True),
        ("403 Forbidden", AuthenticationError, True),
        ("404 Not Found", StreamNotFound, False),
        ("429 Too Many Requests", RateLimited, False),
        ("500 Internal Server Error", ConnectionFailed, False),
        ("503 Service Unavailable", ConnectionFailed, False),
        ("302 Found", ConnectionFailed, False),
        ("200 OK", ProtocolError, True),
        ("418 I'm a teapot", ConnectionFailed, False),
        ("503", ConnectionFailed, False),
    ],
)
def test_each_http_status_has_its_error(status: str, kind: type, permanent: bool) -> None:
    """The error holds the status and shows the server's text."""
    error = refused(refuse(status, body="so sorry"))
    assert type(error) is kind
    assert int(status.split()[0]) == error.status
    assert error.permanent == permanent
    assert status in str(error)
    assert "so sorry" in str(error)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("401 Unauthorized", "; keys rotate every 24 hours: get a new one"),
        ("403 Forbidden", "; keys rotate every 24 hours: get a new one"),
        ("404 Not Found", "; check the pair, and the endpoint's prefix"),
    ],
)
def test_a_refusal_says_what_to_do(status: str, advice: str) -> None:
    """The advice follows the server's text."""
    assert str(refused(refuse(status, body="so sorry"))).endswith(f"'so sorry'{advice} (no further attempt)")


def test_no_new_key_is_asked_for_if_the_callable_has_one() -> None:
    """The next attempt uses it."""
    keys = itertools.count()
    error = refused(refuse("401 Unauthorized"), key=lambda: f"key-{next(keys)}")
    assert "get a new one" not in str(error)


def test_a_404_for_functions_points_to_the_endpoint() -> None:
    """A connection for calls has neither a pair nor a prefix."""
    with Peer(refuse("404 Not Found")) as peer, pytest.raises(StreamNotFound) as caught:
        open_connection(attrs.evolve(config(peer.url), symbol=None), Attempt())
    expected = "no functions there: the server answered 404 Not Found; check the endpoint (no further attempt)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("body", ["<html><head><title>404</title>", "\n <!DOCTYPE html>"])
@pytest.mark.parametrize("status", ["404 Not Found", "502 Bad Gateway"])
def test_a_page_for_browsers_is_not_shown(status: str, body: str) -> None:
    """It starts with tags, which explain nothing."""
    assert "<" not in str(refused(refuse(status, body=body)))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("Retry-After: 7\r\n", 7.0),
        ("retry-after:  120 \r\n", 120.0),
        ("", None),
        ("Retry-After: soon\r\n", None),
        ("Retry-After: -5\r\n", None),
        ("Retry-After: \r\n", None),
        ("Retry-After: 9999999999999999999\r\n", None),
        ("Date: Sat, 02 Jul 2022 15:30:00 GMT\r\nRetry-After: Sat, 02 Jul 2022 15:31:30 GMT\r\n", 90.0),
        ("Date: Sat, 02 Jul 2022 15:30:00 GMT\r\nRetry-After: Sat, 02 Jul 2022 15:29:00 GMT\r\n", 0.0),
        ("Retry-After: Sat, 02 Jul 2022 15:29:00 GMT\r\n", 0.0),
    ],
)
@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_retry_after_is_read_in_both_forms(status: str, headers: str, expected: float | None) -> None:
    """It is in seconds or an HTTP date, compared to the server's clock if its Date is there."""
    assert refused(refuse(status, headers)).retry_after == expected


def test_retry_after_as_a_date_uses_our_clock_without_the_servers() -> None:
    """Without a Date header there is no other clock."""
    error = refused(refuse("429 Too Many Requests", f"Retry-After: {formatdate(time.time() + 100, usegmt=True)}\r\n"))
    assert error.retry_after is not None
    assert 50 < error.retry_after <= 101


def test_a_redirect_is_not_followed() -> None:
    """The error names the new address, and there is no second connection."""
    with Peer(stay()) as other, Peer(refuse("301 Moved", f"Location: {other.url}\r\n")) as peer:
        with pytest.raises(ConnectionFailed, match=r"redirect to 'ws://127\.0\.0\.1"):
            open_connection(config(peer.url), Attempt())
        assert (peer.accepted, other.accepted) == (1, 0)


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\t", "\x1c", "\x85", "\xa0"])
def test_the_library_reads_a_status_line_like_us(space: str) -> None:
    """It must not follow a redirect in a status line that we take for a 101."""
    with Peer(stay()) as other:
        answer = f"HTTP/1.1{space}101 302 Found\r\nLocation: {other.url}\r\n\r\n".encode("latin-1")
        with Peer(raw(answer)) as peer, pytest.raises(ConnectionFailed, match="redirect to"):
            open_connection(config(peer.url), Attempt())
        assert other.accepted == 0


@pytest.mark.parametrize("header", ["Set-Cookie: c)=d", "\x0bset-cookie : c=d", "SET-COOKIE: a=b; domain=127.0.0.1"])
def test_cookies_are_neither_kept_nor_sent(dial: Dial, header: str) -> None:
    """No later request holds a cookie, of any spelling."""

    def hand_out(caller: Caller) -> None:
        caller.send(caller.acceptance("X-Before: x", header), frame("hello"))
        caller.wait_until_left()

    with Peer(hand_out) as peer:
        for _ in range(2):
            assert read(dial(peer), 1) == [b"hello"]
        assert not [request for request in peer.requests if b"cookie" in request.lower()]


def test_cookies_of_other_users_of_the_library_are_not_sent(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have received one for our host, with another header hidden in it."""
    jar = SimpleCookieJar()
    jar.add(r'a="x\015\012X-Injected: yes\015\012X-B: "; Domain=127.0.0.1')
    monkeypatch.setattr(_handshake, "CookieJar", jar)
    with Peer(stay(frame("hello"))) as peer:
        assert read(dial(peer), 1) == [b"hello"]
        names = [line.split(":")[0] for line in peer.requests[0].decode().split("\r\n")[1:]]
    expected = ["Connection", "Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Upgrade", "User-Agent"]
    assert sorted(names) == expected
    assert "X-Injected" in jar.get("127.0.0.1")


def test_a_cookie_of_the_server_is_not_kept(dial: Dial) -> None:
    """Every later handshake of this process would send it, with the header that is hidden in it."""

    def hand_out(caller: Caller) -> None:
        caller.send(caller.acceptance(r'Set-Cookie: a="x\015\012X-Injected: yes"; Domain=127.0.0.1'), frame("hello"))
        caller.wait_until_left()

    with Peer(hand_out) as peer:
        assert read(dial(peer), 1) == [b"hello"]
    assert _handshake.CookieJar.jar == {}


def test_a_cookie_of_a_proxy_is_not_kept() -> None:
    """It may come with the answer to CONNECT."""

    def connect(caller: Caller) -> None:
        caller.read_request()
        caller.request = b""
        caller.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=127.0.0.1\r\n\r\n")
        stay(frame("hello"))(caller)

    with Peer(connect) as proxy:
        through = attrs.evolve(
            config("ws://127.0.0.1:9/"), proxies=ProxyChoice.from_argument(f"http://127.0.0.1:{proxy.port}")
        )
        connection = open_connection(through, Attempt())
        assert read(connection, 1) == [b"hello"]
        connection.close_socket()
    assert _handshake.CookieJar.jar == {}


@pytest.mark.parametrize(
    "header",
    ["Sec-WebSocket-Extensions: permessage-deflate", "sec-websocket-protocol: \t evil", "SEC-WEBSOCKET-PROTOCOL:x"],
)
def test_refuses_what_was_not_offered(header: str) -> None:
    """RFC 6455, 4.1: an unrequested extension or subprotocol fails the connection."""

    def answer(caller: Caller) -> None:
        caller.send(caller.acceptance(header))
        caller.wait_until_left()

    error = refused(answer)
    assert isinstance(error, ProtocolError)
    assert error.permanent
    assert header.split(":")[0].lower() in str(error).lower()


def test_accepts_an_empty_list_of_extensions(dial: Dial) -> None:
    """An empty header names no extension, so there is nothing to refuse."""

    def answer(caller: Caller) -> None:
        caller.send(caller.acceptance("Sec-WebSocket-Extensions:", "Sec-WebSocket-Protocol: "), frame("hello"))
        caller.wait_until_left()

    with Peer(answer) as peer:
        assert read(dial(peer), 1) == [b"hello"]


def raw(answer: bytes) -> Script:
    """A script that answers the handshake with these bytes, and leaves."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(answer)
        caller.leave()

    return script


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", ProtocolError, "does not speak HTTP"),
        (b"HTTP/1.1 abc def\r\n\r\n", ProtocolError, "status line"),
        (b"HTTP/1.1\r\n\r\n", ProtocolError, "status line"),
        (b"HTTP/1.1 " + b"9" * 5_000 + b" x\r\n\r\n", ProtocolError, "status line"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ProtocolError, "does not complete the websocket handshake"),
        (
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: bm8=\r\n\r\n",
            ProtocolError,
            "does not complete the websocket handshake",
        ),
        (b"HTTP/1.1 101 X\r\nno colon here\r\n\r\n", ProtocolError, "does not complete the websocket handshake"),
        (b"HTTP/1.1 503 X\r\n" + b"a: b\r\n" * 200 + b"\r\n", ConnectionFailed, "503"),
        (b"", ConnectionFailed, "closed the connection"),
        (b"HTTP/1.1 101 Switching", ConnectionFailed, "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (2 * MAX_HEADER), ProtocolError, "header of over 65536 bytes"),
    ],
)
def test_garbage_in_the_handshake_is_an_error(answer: bytes, kind: type, text: str) -> None:
    """Every answer of a server is a `ConnectionFailed` that says what was wrong."""
    error = refused(raw(answer))
    assert type(error) is kind
    assert text in str(error)


def test_a_refused_port_is_an_error() -> None:
    """The system's error is its cause."""
    with pytest.raises(ConnectionFailed, match="connection refused") as caught:
        open_connection(config(f"ws://127.0.0.1:{free_port()}/"), Attempt())
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_an_unknown_name_is_an_error() -> None:
    """The error shows the name."""
    with pytest.raises(ConnectionFailed, match=r"nowhere\.invalid"):
        open_connection(config("wss://nowhere.invalid/"), Attempt())


def test_an_unsupported_address_family_is_skipped(monkeypatch: pytest.MonkeyPatch, dial: Dial) -> None:
    """If the system has no IPv6, the next address is tried."""
    lookup = socket.getaddrinfo
    strange = (44, socket.SOCK_STREAM, 0, "", ("::1", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [strange, *lookup(*arguments)])
    with Peer(stay(frame("one"))) as peer:
        assert read(dial(peer), 1) == [b"one"]


def silence(caller: Caller) -> None:
    """A server that never answers."""
    caller.read_request()
    caller.wait_until_left()


def trickle(caller: Caller) -> None:
    """A server whose answer never ends."""
    caller.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        caller.send(b"X-More: of it\r\n")
        time.sleep(0.01)  # the pace of a hostile server


@pytest.mark.parametrize("script", [silence, trickle])
def test_a_handshake_has_a_deadline(script: Script) -> None:
    """It ends after connect_timeout, even if the server keeps sending."""
    assert "did not answer in time" in str(refused(script, timeout=0.2))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_cancel_ends_a_hanging_handshake(scheme: str) -> None:
    """`Attempt.cancel` works from another thread, in TLS and in HTTP, and the peer sees it."""
    begun, left = threading.Event(), threading.Event()
    outcome: list[object] = []

    def hang(caller: Caller) -> None:
        caller.sock.recv(1)
        begun.set()
        caller.wait_until_left()
        left.set()

    def attempt_it() -> None:
        try:
            open_connection(config(peer.url.replace("ws:", f"{scheme}:"), timeout=3_600.0), attempt)
        except ConnectionFailed as error:
            outcome.append(error)

    attempt = Attempt()
    with Peer(hang) as peer:
        worker = threading.Thread(target=attempt_it)
        worker.start()
        assert begun.wait(PATIENCE)
        attempt.cancel()
        worker.join(PATIENCE)
        assert left.wait(PATIENCE)
    assert [type(error) for error in outcome] == [ConnectionFailed]


def test_a_cancelled_attempt_opens_no_connection() -> None:
    """It was cancelled before it began."""
    attempt = Attempt()
    attempt.cancel()
    with Peer(stay()) as peer:
        with pytest.raises(ConnectionFailed):
            open_connection(config(peer.url), attempt)
        assert peer.accepted == 0


def test_failed_handshakes_close_their_sockets() -> None:
    """No file descriptor is left."""
    with Peer(refuse("401 Unauthorized")) as peer:
        for _ in range(3):
            with pytest.raises(AuthenticationError):
                open_connection(config(peer.url), Attempt())
    before = len(os.listdir("/proc/self/fd"))
    refused(refuse("401 Unauthorized"))
    refused(raw(b"nonsense"))
    assert len(os.listdir("/proc/self/fd")) == before


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def theirs(authority: trustme.CA) -> ssl.SSLContext:
    """A server's TLS context for 127.0.0.1."""
    return server_context(authority.issue_cert("127.0.0.1"))


def test_reads_what_tls_has_read_ahead(authority: trustme.CA, theirs: ssl.SSLContext, dial: Dial) -> None:
    """Frames in the TLS record of the handshake's answer wake no poller."""
    many = [f"{number:0100}".encode() for number in range(100)]
    with Peer(stay(*map(frame, many)), context=theirs) as peer:
        connection = dial(peer, context=client_context(authority))
        got = connection.messages(ALL)
        connection.wire.fill()
        assert got + read(connection, 100 - len(got)) == many


def test_reads_each_tls_record_to_its_end(authority: trustme.CA, theirs: ssl.SSLContext, dial: Dial) -> None:
    """The rest of a record would wake no poller."""
    many = [f"{number:010000}".encode() for number in range(7)]
    sent = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        for payload in many:
            caller.send(frame(payload))
        sent.set()
        caller.wait_until_left()

    with Peer(script, context=theirs) as peer:
        connection = dial(peer, context=client_context(authority))
        assert sent.wait(PATIENCE)
        assert read(connection, len(many)) == many


def test_refuses_a_certificate_of_an_unknown_authority(theirs: ssl.SSLContext) -> None:
    """The error is permanent and names the fault of the certificate."""
    with Peer(stay(), context=theirs) as peer, pytest.raises(ConnectionFailed) as caught:
        open_connection(config(peer.url), Attempt())
    assert caught.value.permanent
    assert "unable to get local issuer certificate" in str(caught.value)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


def test_a_server_without_tls_is_an_error() -> None:
    """The error for wss:// to a plain HTTP server mentions TLS."""

    def plain(caller: Caller) -> None:
        caller.sock.recv(4_096)
        caller.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        caller.wait_until_left()

    with Peer(plain) as peer, pytest.raises(ConnectionFailed, match="TLS with 127"):
        open_connection(config(peer.url.replace("ws:", "wss:")), Attempt())


# Frames.


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_reads_a_message_of_any_size(dial: Dial, size: int) -> None:
    """A frame's length has three formats."""
    with Peer(stay(frame(b"x" * size), frame("next"))) as peer:
        assert read(dial(peer), 2) == [b"x" * size, b"next"]


@pytest.mark.parametrize("payload", ["short", "x" * 130])
def test_a_frame_may_come_in_two_parts(dial: Dial, payload: str) -> None:
    """It is read when the rest has come, wherever it was cut."""
    whole = frame(payload)
    for cut in range(1, len(whole)):
        rest = threading.Event()

        def halves(caller: Caller, cut: int = cut, rest: threading.Event = rest) -> None:
            caller.welcome(frame("before"), whole[:cut])
            rest.wait(PATIENCE)
            caller.send(whole[cut:], frame("after"))
            caller.wait_until_left()

        with Peer(halves) as peer:
            connection = dial(peer)
            assert read(connection, 1) == [b"before"]
            assert connection.messages(ALL) == []
            rest.set()
            assert read(connection, 2) == [payload.encode(), b"after"]
            connection.close_socket()


def test_returns_no_more_messages_than_requested(dial: Dial) -> None:
    """The others stay in order."""
    with Peer(stay(*(frame(str(number)) for number in range(5)))) as peer:
        connection = dial(peer)
        assert read(connection, 2) == [b"0", b"1"]
        assert connection.messages(1) == [b"2"]
        assert connection.messages(ALL) == [b"3", b"4"]


def test_fragments_are_joined_and_pings_between_them_answered(dial: Dial) -> None:
    """The answer to a ping has its payload."""
    answers: list[tuple[int, bytes]] = []
    answered = threading.Event()

    def script(caller: Caller) -> None:
        euro = "€".encode()
        caller.welcome(frame(b"a" + euro[:1], TEXT, fin=False), frame(b"are you there", PING))
        answers.append(caller.read_frame())
        answered.set()
        caller.send(frame(euro[1:2], CONT, fin=False), frame(b"unasked", PONG), frame(euro[2:] + b"b", CONT))
        caller.wait_until_left()

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection, 1) == ["a€b".encode()]
        assert answered.wait(PATIENCE)
    assert answers == [(PONG, b"are you there")]


def test_reads_a_binary_message(dial: Dial) -> None:
    """Its type tells it apart from text."""
    with Peer(stay(frame(b"\xff\x00", BINARY))) as peer:
        assert read(dial(peer), 1) == [Binary(b"\xff\x00")]


VIOLATIONS = {
    "a masked frame": b"\x81\x85\1\2\3\4" + b"x" * 5,
    "rsv1": frame("x", rsv=0b100),
    "rsv3": frame("x", rsv=0b001),
    "opcode 3": frame("x", 0x3),
    "opcode 11": frame("x", 0xB),
    "continuation of nothing": frame("x", CONT),
    "text within fragments": frame("x", TEXT, fin=False) + frame("y", TEXT),
    "ping in fragments": frame("x", PING, fin=False),
    "ping too long": frame(b"x" * 126, PING),
    "close of one byte": frame(b"\x03", CLOSE),
    "close too long": close_frame(1000, b"x" * 124),
    "close code 999": close_frame(999),
    "close code 1005": close_frame(1005),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_protocol_violation_is_answered_with_1002(dial: Dial, violation: bytes) -> None:
    """It ends the connection. Earlier messages are delivered, and the peer gets the close code."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(frame("before"), violation, frame("after"))
        answers.append(caller.read_frame())

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == [b"before"]
        assert type(connection.ended) is ProtocolError
        assert not connection.ended.permanent
        connection.close_socket()
    assert answers == [(CLOSE, (1002).to_bytes(2, "big"))]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"\xff\xfe"), 1007),
        (frame(b"\xc3", TEXT, fin=False) + frame(b"\x28", CONT), 1007),
        (frame(b"\xed\xa0\x80"), 1007),
        (frame(b"start", announced=2**40), 1009),
        (frame(b"start", announced=2**63 - 1), 1009),
        (frame(b"", announced=MAX_MESSAGE + 1), 1009),
        (frame(b"x", TEXT, fin=False) + frame(b"", CONT, announced=MAX_MESSAGE), 1009),
    ],
)
def test_refuses_bad_utf_8_and_large_messages(dial: Dial, sent: bytes, code: int) -> None:
    """The close codes are 1007 and 1009. A size is refused as soon as it is announced."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(frame("before"), sent)
        answers.append(caller.read_frame())

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == [b"before"]
        assert type(connection.ended) is ProtocolError
        connection.close_socket()
    assert answers == [(CLOSE, code.to_bytes(2, "big"))]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_joins_many_fragments_in_linear_time(dial: Dial, opcode: int) -> None:
    """A message of 5 MB isn't copied for each of its 50,000 fragments."""
    body = frame(b"x" * 100, CONT, fin=False) * 50_000
    with Peer(stay(frame(b"<", opcode, fin=False), body, frame(b">", CONT), frame("next"))) as peer:
        whole, following = read(dial(peer), 2)
    expected = b"<" + b"x" * 5_000_000 + b">"
    assert whole == (Binary(expected) if opcode == BINARY else expected)
    assert following == b"next"


def test_refuses_endless_fragments(dial: Dial) -> None:
    """Their sum is limited like a single frame."""

    def script(caller: Caller) -> None:
        caller.welcome(frame(b"x" * 60_000, TEXT, fin=False))
        while True:
            caller.send(frame(b"x" * 60_000, CONT, fin=False))

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == []
        assert "a message of over 16777216 bytes" in str(connection.ended)


@pytest.mark.parametrize(
    ("sent", "kind", "code", "text"),
    [
        (close_frame(1000), ConnectionFailed, 1000, "normally"),
        (close_frame(1001, b"bye"), ConnectionFailed, 1001, "'bye'"),
        (close_frame(1008, b"revoked"), AuthenticationError, 1008, "'revoked'"),
        (close_frame(1011), ConnectionFailed, 1011, "server error"),
        (close_frame(1012), ConnectionFailed, 1012, "restart"),
        (close_frame(1013), ConnectionFailed, 1013, "try again later"),
        (close_frame(4_321, "grüße".encode()), ConnectionFailed, 4_321, "grüße"),
        (close_frame(1000, b"\xff\xfe"), ProtocolError, None, "Invalid close frame"),
        (frame(b"", CLOSE), ConnectionFailed, None, "without a code"),
    ],
)
def test_a_close_frame_ends_the_connection(dial: Dial, sent: bytes, kind: type, code: int | None, text: str) -> None:
    """Earlier messages are delivered, later ones aren't. The error holds code and reason."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(frame("one"), frame("two"), sent, frame("three"))
        answers.append(caller.read_frame())

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == [b"one", b"two"]
        assert connection.ended is not None
        connection.close_socket()
    assert (type(connection.ended), connection.ended.close_code) == (kind, code)
    assert text in str(connection.ended)
    assert [opcode for opcode, _ in answers] == [CLOSE]


@pytest.mark.parametrize(
    ("last", "expected", "code"),
    [
        (frame(b"", PING) + frame("two") + frame(b"", PING) + frame("three"), [b"one", b"two", b"three"], None),
        (close_frame(1008), [b"one"], 1008),
    ],
)
def test_reads_what_was_received_after_the_peer_is_gone(
    dial: Dial, last: bytes, expected: list[bytes], code: int | None
) -> None:
    """A ping or close frame that can't be answered hides nothing."""
    gone = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(frame("one"), last)
        caller.reset()
        gone.set()

    with Peer(script) as peer:
        connection = dial(peer)
        assert gone.wait(PATIENCE)
        assert read(connection) == expected
        assert (connection.ended.close_code if connection.ended else None) == code


def test_gives_up_a_peer_that_does_not_read_our_answers(dial: Dial) -> None:
    """Its endless pings must not fill the memory with pongs."""

    def script(caller: Caller) -> None:
        caller.welcome()
        flood = frame(b"x" * 125, PING) * 500
        while True:
            caller.send(flood)

    with Peer(script, receive_buffer=4_096) as peer:
        connection = dial(peer)
        read(connection)
        assert "does not read" in str(connection.ended)


def test_the_url_is_forgotten_after_the_handshake(dial: Dial) -> None:
    """A connection that lasts for hours doesn't need it."""
    with Peer(stay(tick(1))) as peer:
        connection = dial(peer, key="s3cret/key")
        assert "s3cret" not in connection.url
        assert "s3cret" not in repr(vars(connection))

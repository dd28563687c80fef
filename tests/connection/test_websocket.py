"""One connection over real sockets: the handshake, its refusals, and every way in which frames may come."""

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

CONT = 0x0
ALL = 1 << 30
Dial = Callable[..., Connection]


def target(
    url: str, key: str = "demo", timeout: float = PATIENCE, context: ssl.SSLContext | None = None
) -> ConnectionConfig:
    """Where to, as the listener would say it."""
    return ConnectionConfig(
        Endpoint(url),
        parse_symbol(PAIR),
        KeySource.from_argument(key),
        timeout,
        lambda: context or ssl.create_default_context(),
    )


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Opens connections, and closes all of them at the end."""
    with contextlib.ExitStack() as stack:

        def call(peer: Peer, **options: object) -> Connection:
            connection = open_connection(target(peer.url, **options), Attempt())  # type: ignore[arg-type]
            stack.callback(connection.close_socket)
            return connection

        yield call


def read(connection: Connection, count: int = ALL) -> list[bytes | Binary]:
    """So many messages, or all there are until the end."""
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
    """The error of a handshake that fails."""
    with Peer(script) as peer, pytest.raises(ConnectionFailed) as caught:
        open_connection(target(peer.url, **options), Attempt())  # type: ignore[arg-type]
    return caught.value


# The handshake.


def test_the_request_asks_for_the_stream_by_its_path(dial: Dial) -> None:
    """The path is streaming/[key]/[pair] with the key percent-encoded and the colon as it is."""
    with Peer(stay()) as peer:
        dial(peer, key="k/e+y%")
        lines = peer.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /streaming/k%2Fe%2By%25/BTC:USDC HTTP/1.1"
    assert f"Host: 127.0.0.1:{peer.port}" in lines
    assert not [line for line in lines if line.lower().startswith("origin")]


def test_frames_glued_to_the_answer_are_read(dial: Dial) -> None:
    """Frames in the same TCP segment as the answer to the handshake are messages like any other."""
    with Peer(stay(frame("one"), frame("two"))) as peer:
        connection = dial(peer)
        assert read(connection, 2) == [b"one", b"two"]


def test_frames_glued_to_the_answer_have_a_time_of_receipt(dial: Dial) -> None:
    """Bytes that came with the handshake's answer were received when they came, and not in 1970."""
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
def test_an_http_status_has_its_error(status: str, kind: type, permanent: bool) -> None:
    """Each refusal is an error of its own type, which holds the status and shows the server's words."""
    error = refused(refuse(status, body="so sorry"))
    assert kind is type(error)
    assert int(status.split()[0]) == error.status
    assert permanent == error.permanent
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
    """Behind the server's words."""
    assert str(refused(refuse(status, body="so sorry"))).endswith(f"'so sorry'{advice} (no further attempt)")


def test_a_key_that_may_be_followed_by_another_is_not_asked_for() -> None:
    """The next attempt uses it."""
    keys = itertools.count()
    error = refused(refuse("401 Unauthorized"), key=lambda: f"key-{next(keys)}")
    assert "get a new one" not in str(error)


def test_where_no_functions_are_the_endpoint_is_to_blame() -> None:
    """A connection for calls has neither a pair nor a prefix that could be set."""
    with Peer(refuse("404 Not Found")) as peer, pytest.raises(StreamNotFound) as caught:
        open_connection(attrs.evolve(target(peer.url), symbol=None), Attempt())
    expected = "no functions there: the server answered 404 Not Found; check the endpoint (no further attempt)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("body", ["<html><head><title>404</title>", "\n <!DOCTYPE html>"])
@pytest.mark.parametrize("status", ["404 Not Found", "502 Bad Gateway"])
def test_a_page_for_browsers_is_not_shown(status: str, body: str) -> None:
    """It begins with what tells nobody anything."""
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
    """Retry-After is seconds or an HTTP date, told by the server's own clock where it shows one; else nothing."""
    assert refused(refuse(status, headers)).retry_after == expected


def test_retry_after_as_a_date_without_the_servers_clock_is_told_by_ours() -> None:
    """An HTTP date is a moment: without a Date header it is compared to our own clock."""
    error = refused(refuse("429 Too Many Requests", f"Retry-After: {formatdate(time.time() + 100, usegmt=True)}\r\n"))
    assert error.retry_after is not None
    assert 50 < error.retry_after <= 101


def test_a_redirect_is_not_followed() -> None:
    """A redirect is an error that says where to, and no second connection is made."""
    with Peer(stay()) as other, Peer(refuse("301 Moved", f"Location: {other.url}\r\n")) as peer:
        with pytest.raises(ConnectionFailed, match=r"redirect to 'ws://127\.0\.0\.1"):
            open_connection(target(peer.url), Attempt())
        assert (peer.accepted, other.accepted) == (1, 0)


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\t", "\x1c", "\x85", "\xa0"])
def test_a_status_line_is_not_read_in_two_ways(space: str) -> None:
    """What passes for a switch of protocols here is not a redirect for the library, which would follow it."""
    with Peer(stay()) as other:
        answer = f"HTTP/1.1{space}101 302 Found\r\nLocation: {other.url}\r\n\r\n".encode("latin-1")
        with Peer(raw(answer)) as peer, pytest.raises(ConnectionFailed, match="redirect to"):
            open_connection(target(peer.url), Attempt())
        assert other.accepted == 0


@pytest.mark.parametrize("header", ["Set-Cookie: c)=d", "\x0bset-cookie : c=d", "SET-COOKIE: a=b; domain=127.0.0.1"])
def test_cookies_are_neither_kept_nor_sent(dial: Dial, header: str) -> None:
    """Whatever they are, and whichever is the last header: no later request tells of them."""

    def hand_out(caller: Caller) -> None:
        caller.send(caller.acceptance("X-Before: x", header), frame("hello"))
        caller.wait_until_left()

    with Peer(hand_out) as peer:
        for _ in range(2):
            assert read(dial(peer), 1) == [b"hello"]
        assert not [request for request in peer.requests if b"cookie" in request.lower()]


def test_no_cookie_of_others_is_sent(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who else uses the library in this process may have got one for our host, with a header of its own in it."""
    jar = SimpleCookieJar()
    jar.add(r'a="x\015\012X-Injected: yes\015\012X-B: "; Domain=127.0.0.1')
    monkeypatch.setattr(_handshake, "CookieJar", jar)
    with Peer(stay(frame("hello"))) as peer:
        assert read(dial(peer), 1) == [b"hello"]
        names = [line.split(":")[0] for line in peer.requests[0].decode().split("\r\n")[1:]]
    expected = ["Connection", "Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Upgrade", "User-Agent"]
    assert sorted(names) == expected
    assert "X-Injected" in jar.get("127.0.0.1")


def test_no_cookie_of_a_servers_is_kept(dial: Dial) -> None:
    """It would go out with every later handshake of this process, and with it the header that is hidden in it."""

    def hand_out(caller: Caller) -> None:
        caller.send(caller.acceptance(r'Set-Cookie: a="x\015\012X-Injected: yes"; Domain=127.0.0.1'), frame("hello"))
        caller.wait_until_left()

    with Peer(hand_out) as peer:
        assert read(dial(peer), 1) == [b"hello"]
    assert _handshake.CookieJar.jar == {}


def test_no_cookie_of_a_proxys_is_kept() -> None:
    """Nor one that comes with the answer to CONNECT."""

    def connect(caller: Caller) -> None:
        caller.read_request()
        caller.request = b""
        caller.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=127.0.0.1\r\n\r\n")
        stay(frame("hello"))(caller)

    with Peer(connect) as proxy:
        through = attrs.evolve(
            target("ws://127.0.0.1:9/"), proxies=ProxyChoice.from_argument(f"http://127.0.0.1:{proxy.port}")
        )
        connection = open_connection(through, Attempt())
        assert read(connection, 1) == [b"hello"]
        connection.close_socket()
    assert _handshake.CookieJar.jar == {}


@pytest.mark.parametrize(
    "header",
    ["Sec-WebSocket-Extensions: permessage-deflate", "sec-websocket-protocol: \t evil", "SEC-WEBSOCKET-PROTOCOL:x"],
)
def test_what_was_not_offered_is_refused(header: str) -> None:
    """RFC 6455, 4.1: an extension or a subprotocol that we did not ask for fails the connection."""

    def answer(caller: Caller) -> None:
        caller.send(caller.acceptance(header))
        caller.wait_until_left()

    error = refused(answer)
    assert isinstance(error, ProtocolError)
    assert error.permanent
    assert header.split(":")[0].lower() in str(error).lower()


def test_no_extension_is_none(dial: Dial) -> None:
    """An empty list of them is like no list."""

    def answer(caller: Caller) -> None:
        caller.send(caller.acceptance("Sec-WebSocket-Extensions:", "Sec-WebSocket-Protocol: "), frame("hello"))
        caller.wait_until_left()

    with Peer(answer) as peer:
        assert read(dial(peer), 1) == [b"hello"]


def raw(answer: bytes) -> Script:
    """A script that answers the handshake with just these bytes, and leaves."""

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
    """Whatever a server answers, it is one `ConnectionFailed` that says what was wrong."""
    error = refused(raw(answer))
    assert kind is type(error)
    assert text in str(error)


def test_a_refused_port_is_an_error() -> None:
    """A port at which nobody listens is a connection refused, with the system's error as the cause."""
    with pytest.raises(ConnectionFailed, match="connection refused") as caught:
        open_connection(target(f"ws://127.0.0.1:{free_port()}/"), Attempt())
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_an_unknown_name_is_an_error() -> None:
    """A name that does not exist is an error that names it."""
    with pytest.raises(ConnectionFailed, match=r"nowhere\.invalid"):
        open_connection(target("wss://nowhere.invalid/"), Attempt())


def test_an_address_of_a_kind_that_the_system_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch, dial: Dial) -> None:
    """Where no socket can be made for the first address (no IPv6), the next one is tried."""
    lookup = socket.getaddrinfo
    strange = (44, socket.SOCK_STREAM, 0, "", ("::1", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [strange, *lookup(*arguments)])
    with Peer(stay(frame("one"))) as peer:
        assert read(dial(peer), 1) == [b"one"]


def silence(caller: Caller) -> None:
    """A server that takes the request and says nothing."""
    caller.read_request()
    caller.wait_until_left()


def trickle(caller: Caller) -> None:
    """A server whose answer never ends."""
    caller.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        caller.send(b"X-More: of it\r\n")
        time.sleep(0.01)  # the pace of a hostile server, and no waiting for anything


@pytest.mark.parametrize("script", [silence, trickle])
def test_a_handshake_has_a_deadline(script: Script) -> None:
    """A handshake that is never completed ends after connect_timeout, however busy the server looks."""
    assert "did not answer in time" in str(refused(script, timeout=0.2))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_cancel_ends_a_handshake_that_hangs(scheme: str) -> None:
    """`Attempt.cancel` from another thread ends a blocked handshake, in TLS and in HTTP, and the peer sees it."""
    begun, left = threading.Event(), threading.Event()
    outcome: list[object] = []

    def hang(caller: Caller) -> None:
        caller.sock.recv(1)
        begun.set()
        caller.wait_until_left()
        left.set()

    def attempt_it() -> None:
        try:
            open_connection(target(peer.url.replace("ws:", f"{scheme}:"), timeout=3_600.0), attempt)
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


def test_a_cancelled_attempt_connects_to_nobody() -> None:
    """An attempt that was cancelled before it began opens no connection."""
    attempt = Attempt()
    attempt.cancel()
    with Peer(stay()) as peer:
        with pytest.raises(ConnectionFailed):
            open_connection(target(peer.url), attempt)
        assert peer.accepted == 0


def test_nothing_stays_open_after_failures() -> None:
    """Handshakes that fail close their sockets."""
    with Peer(refuse("401 Unauthorized")) as peer:
        for _ in range(3):
            with pytest.raises(AuthenticationError):
                open_connection(target(peer.url), Attempt())
    before = len(os.listdir("/proc/self/fd"))
    refused(refuse("401 Unauthorized"))
    refused(raw(b"nonsense"))
    assert before == len(os.listdir("/proc/self/fd"))


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """A server's TLS context for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_what_tls_has_read_ahead_is_found(authority: trustme.CA, server_context: ssl.SSLContext, dial: Dial) -> None:
    """Frames in one TLS record with the handshake's answer are read, though they wake no selector."""
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    many = [f"{number:0100}".encode() for number in range(100)]
    with Peer(stay(*map(frame, many)), context=server_context) as peer:
        connection = dial(peer, context=client_context)
        got = connection.messages(ALL)
        connection.wire.fill()
        assert many == got + read(connection, 100 - len(got))


def test_no_part_of_a_tls_record_is_left_behind(
    authority: trustme.CA, server_context: ssl.SSLContext, dial: Dial
) -> None:
    """Records that do not add up to a read's size are read to their end: what is left of one wakes no poller."""
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    many = [f"{number:010000}".encode() for number in range(7)]
    sent = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        for payload in many:
            caller.send(frame(payload))
        sent.set()
        caller.wait_until_left()

    with Peer(script, context=server_context) as peer:
        connection = dial(peer, context=client_context)
        assert sent.wait(PATIENCE)
        assert many == read(connection, len(many))


def test_a_certificate_that_nobody_vouches_for_is_refused(server_context: ssl.SSLContext) -> None:
    """The default context verifies: the error is permanent and names what is wrong with the certificate."""
    with Peer(stay(), context=server_context) as peer, pytest.raises(ConnectionFailed) as caught:
        open_connection(target(peer.url), Attempt())
    assert caught.value.permanent
    assert "unable to get local issuer certificate" in str(caught.value)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


def test_a_server_without_tls_is_an_error() -> None:
    """wss:// to a server that speaks plain HTTP fails with an error that speaks of TLS."""

    def plain(caller: Caller) -> None:
        caller.sock.recv(4_096)
        caller.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        caller.wait_until_left()

    with Peer(plain) as peer, pytest.raises(ConnectionFailed, match="TLS with 127"):
        open_connection(target(peer.url.replace("ws:", "wss:")), Attempt())


# Frames.


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_message_of_any_size_is_read(dial: Dial, size: int) -> None:
    """All three forms of a frame's length are read."""
    with Peer(stay(frame(b"x" * size), frame("next"))) as peer:
        assert read(dial(peer), 2) == [b"x" * size, b"next"]


@pytest.mark.parametrize("payload", ["short", "x" * 130])
def test_a_frame_may_come_in_two_parts(dial: Dial, payload: str) -> None:
    """Wherever a frame is cut, within its head too, it is read when the rest has come."""
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
            assert [payload.encode(), b"after"] == read(connection, 2)
            connection.close_socket()


def test_no_more_messages_than_asked_for(dial: Dial) -> None:
    """What is beyond the limit stays where it is, in order."""
    with Peer(stay(*(frame(str(number)) for number in range(5)))) as peer:
        connection = dial(peer)
        assert read(connection, 2) == [b"0", b"1"]
        assert connection.messages(1) == [b"2"]
        assert connection.messages(ALL) == [b"3", b"4"]


def test_fragments_are_joined_and_pings_between_them_answered(dial: Dial) -> None:
    """A message in fragments is one message; a ping in their midst is answered with its payload."""
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
        assert ["a€b".encode()] == read(connection, 1)
        assert answered.wait(PATIENCE)
    assert answers == [(PONG, b"are you there")]


def test_a_binary_message_is_told_apart(dial: Dial) -> None:
    """A binary message is handed on as such."""
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
def test_a_broken_protocol_is_answered_with_1002(dial: Dial, violation: bytes) -> None:
    """What RFC 6455 forbids ends the connection; what came before it is delivered, and the peer is told why."""
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
    assert [(CLOSE, (1002).to_bytes(2, "big"))] == answers


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
def test_what_can_not_be_text_is_refused(dial: Dial, sent: bytes, code: int) -> None:
    """Text that is not UTF-8 is refused with 1007, a message too large with 1009, as soon as it announces itself."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(frame("before"), sent)
        answers.append(caller.read_frame())

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == [b"before"]
        assert type(connection.ended) is ProtocolError
        connection.close_socket()
    assert [(CLOSE, code.to_bytes(2, "big"))] == answers


@pytest.mark.timeout(30)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_many_fragments_cost_time_in_proportion(dial: Dial, opcode: int) -> None:
    """A message of 5 MB in 50,000 fragments is joined at once: it isn't copied anew for each of them."""
    body = frame(b"x" * 100, CONT, fin=False) * 50_000
    with Peer(stay(frame(b"<", opcode, fin=False), body, frame(b">", CONT), frame("next"))) as peer:
        whole, following = read(dial(peer), 2)
    expected = b"<" + b"x" * 5_000_000 + b">"
    assert (Binary(expected) if opcode == BINARY else expected) == whole
    assert following == b"next"


def test_fragments_without_end_are_refused(dial: Dial) -> None:
    """A message that grows by small fragments is refused as well when it has grown too large."""

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
    """All messages before a close frame are delivered, none behind it; the error holds code and reason."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(frame("one"), frame("two"), sent, frame("three"))
        answers.append(caller.read_frame())

    with Peer(script) as peer:
        connection = dial(peer)
        assert read(connection) == [b"one", b"two"]
        assert connection.ended is not None
        connection.close_socket()
    assert (kind, code) == (type(connection.ended), connection.ended.close_code)
    assert text in str(connection.ended)
    assert [opcode for opcode, _ in answers] == [CLOSE]


@pytest.mark.parametrize(
    ("last", "expected", "code"),
    [
        (frame(b"", PING) + frame("two") + frame(b"", PING) + frame("three"), [b"one", b"two", b"three"], None),
        (close_frame(1008), [b"one"], 1008),
    ],
)
def test_what_was_received_is_read_though_nothing_can_be_sent(
    dial: Dial, last: bytes, expected: list[bytes], code: int | None
) -> None:
    """A ping or close frame that can't be answered any more, for the peer is gone, hides nothing behind it."""
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
        assert code == (connection.ended.close_code if connection.ended else None)


def test_a_peer_that_does_not_read_our_answers_is_given_up(dial: Dial) -> None:
    """Pings without end from a peer that reads no pongs cost bounded memory."""

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
    """A connection that lasts for hours does not hold the key in a URL."""
    with Peer(stay(tick(1))) as peer:
        connection = dial(peer, key="s3cret/key")
        assert "s3cret" not in connection.url
        assert "s3cret" not in repr(vars(connection))

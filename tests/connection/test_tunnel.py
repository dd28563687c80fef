"""Tunnels through proxies, over real sockets: our own test proxy, and real programs where they are installed."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConnectionFailed, Endpoint, FunctionClient, ProtocolError, ReconnectPolicy
from finx_streamer.config.api_key import KeySource
from finx_streamer.config.proxy import Proxy, ProxyChoice
from finx_streamer.config.reconnect import is_fatal
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.connection.attempt import Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.connection.tunnel import MAX_ANSWER, open_tunnel
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Script, Seen, free_port, refuse, stay, tick, watched
from tests.support.program import program_command
from tests.support.proxying import HTTP_OK, LOGIN, NAME, USERINFO, Proxying, assert_no_secret
from tests.support.tls import client_context, server_context

pytestmark = pytest.mark.usefixtures("no_proxy_variables")

NEVER_AGAIN = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
RAW_TICK = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55Z", "exchange": "BINANCE", "price": "1"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def theirs(authority: trustme.CA) -> ssl.SSLContext:
    """The server's TLS context."""
    return server_context(authority.issue_cert("127.0.0.1", "localhost", NAME))


@pytest.fixture(scope="module")
def ours(authority: trustme.CA) -> ssl.SSLContext:
    """A context that trusts the server."""
    return client_context(authority)


def at(peer: Peer, scheme: str = "http", userinfo: str = "") -> str:
    """The URL of a proxy."""
    return f"{scheme}://{userinfo}127.0.0.1:{peer.port}"


def config(
    url: str, proxy: str | None, timeout: float = PATIENCE, context: ssl.SSLContext | None = None
) -> ConnectionConfig:
    """The configuration of a stream."""
    return ConnectionConfig(
        Endpoint(url),
        parse_symbol(PAIR),
        KeySource.from_argument("demo"),
        timeout,
        lambda: context or ssl.create_default_context(),
        proxies=ProxyChoice.from_argument(proxy),
    )


def failure(script: Script, scheme: str = "http", userinfo: str = "", timeout: float = PATIENCE) -> ConnectionFailed:
    """The error of an attempt through a proxy that follows this script."""
    with Peer(script) as proxy, pytest.raises(ConnectionFailed) as caught:
        open_connection(config("wss://server.example/", at(proxy, scheme, userinfo), timeout), Attempt())
    assert f"127.0.0.1:{proxy.port}" in str(caught.value)
    assert "p@ss" not in str(caught.value)
    return caught.value


# Tunnels.


@pytest.mark.parametrize("userinfo", ["", USERINFO], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_ticks_come_through_a_proxy(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str, userinfo: str, secure: bool
) -> None:
    """Every kind of proxy works. With TLS, which is end to end, the proxy doesn't see the key."""
    proxying = Proxying(LOGIN if userinfo else None)
    with (
        Peer(stay(tick(1)), context=theirs if secure else None) as peer,
        Peer(proxying) as proxy,
        seen.listener(peer.url, api_key="s3cret-key", proxy=at(proxy, scheme, userinfo), ssl_context=ours),
    ):
        seen.wait_ticks(1)
    assert seen.errors == []
    assert proxying.asked == [f"127.0.0.1:{peer.port}"]
    assert (b"s3cret" not in proxying.seen) == secure
    assert peer.accepted == 1


def test_function_calls_go_through_the_proxy() -> None:
    """`FunctionClient` takes the same argument."""
    proxying = Proxying()
    with (
        LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}) as server,
        Peer(proxying) as proxy,
        FunctionClient("demo", server.url, proxy=at(proxy, "socks5h")) as client,
    ):
        assert client.authenticate()
    assert proxying.asked == [f"127.0.0.1:{server.port}"]


def test_a_gap_is_filled_through_the_proxy(seen: Seen) -> None:
    """A listener's requests for tick history take the way of its streams."""
    proxying = Proxying()
    with (
        LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}, resumable=False) as server,
        Peer(proxying) as proxy,
        seen.listener(server.url, proxy=at(proxy), backfill=True),
    ):
        seen.wait_ticks(1)
        server.drop_connections()
        seen.wait_for(lambda: seen.gaps)
    # Two streams and one connection for history.
    assert len(proxying.asked) >= 3
    assert set(proxying.asked) == {f"127.0.0.1:{server.port}"}


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_the_proxy_resolves_names(seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str) -> None:
    """CONNECT and socks5h send the server's name, and the certificate is checked against that name."""
    with Peer(stay(tick(1)), context=theirs) as peer:
        proxying = Proxying(hosts={NAME: peer.port})
        with Peer(proxying) as proxy, seen.listener(f"wss://{NAME}/", proxy=at(proxy, scheme), ssl_context=ours):
            seen.wait_ticks(1)
    assert proxying.asked == [f"{NAME}:443"]


def test_socks5_sends_each_address_in_turn(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """With socks5 we resolve the name. If the proxy can't reach one address, the next one is tried."""
    lookup = socket.getaddrinfo

    def both_kinds(host: str, *arguments: Any) -> Any:
        if host != NAME:
            return lookup(host, *arguments)
        return [*lookup("::1", *arguments), *lookup("127.0.0.1", *arguments)]

    monkeypatch.setattr(socket, "getaddrinfo", both_kinds)
    proxying = Proxying()
    with (
        Peer(stay(tick(1))) as peer,
        Peer(proxying) as proxy,
        seen.listener(f"ws://{NAME}:{peer.port}/", proxy=at(proxy, "socks5"), allow_insecure=True),
    ):
        seen.wait_ticks(1)
    assert proxying.asked == [f"::1:{peer.port}", f"127.0.0.1:{peer.port}"]
    assert seen.errors == []


def test_an_unknown_name_with_socks5_is_an_error() -> None:
    """The error names the server: the proxy was never asked."""
    with Peer(Proxying()) as proxy, pytest.raises(ConnectionFailed, match=r"nowhere\.invalid.* can't be resolved"):
        open_connection(config("wss://nowhere.invalid/", at(proxy, "socks5")), Attempt())
    assert proxy.accepted == 0


# The environment.


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "socks5h://127.0.0.1:{}/"])
def test_the_environment_names_a_proxy(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    """Without proxy=, the usual variables are used."""
    with Peer(stay(tick(1)), context=theirs) as peer, Peer(Proxying(hosts={NAME: peer.port})) as proxy:
        monkeypatch.setenv(variable, form.format(proxy.port))
        with seen.listener(f"wss://{NAME}/", ssl_context=ours):
            seen.wait_ticks(1)
        assert proxy.accepted == 1


def test_the_environment_is_read_at_every_attempt(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is set or changed while a listener tries to connect is used at the next attempt."""
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{free_port()}")
    with (
        Peer(stay(tick(1)), context=theirs) as peer,
        Peer(Proxying(hosts={NAME: peer.port})) as proxy,
        seen.listener(f"wss://{NAME}/", ssl_context=ours),
    ):
        seen.wait_errors(1)
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        seen.wait_ticks(1)
    assert "the proxy 127.0.0.1:" in str(seen.errors[0])


@pytest.mark.parametrize(("proxy", "no_proxy"), [("", ""), (None, NAME), (None, "*")])
def test_the_proxy_of_the_environment_can_be_avoided(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, proxy: str | None, no_proxy: str
) -> None:
    """With proxy='' or no_proxy the server is contacted directly: here, a name that only the proxy knows."""
    with Peer(Proxying()) as unused:
        monkeypatch.setenv("HTTPS_PROXY", at(unused))
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with seen.listener(f"wss://{NAME}/", proxy=proxy, reconnect=NEVER_AGAIN):
            seen.wait_errors(1)
        assert unused.accepted == 0
    assert f"the name of {NAME}:443 can't be resolved" in str(seen.errors[0])


def test_loopback_is_never_proxied_by_the_environment(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server is contacted directly even if the environment names a proxy for everything."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert seen.errors == []


# Refusals.


@pytest.mark.parametrize(
    ("status", "fatal", "text"),
    [
        ("407 Proxy Authentication Required", True, r"407 Proxy Authentication Required: it wants a user and password"),
        ("403 Filtered", True, "403 Forbidden"),
        ("302 Found", True, "302 Found"),
        ("400 Bad Request", True, "400"),
        ("405 No", True, "405 Method Not Allowed"),
        ("429 Slow down", False, "429"),
        ("500 Unable to connect", False, "500"),
        ("502 Bad Gateway", False, "502 Bad Gateway"),
        ("503 DNS", False, "503"),
        ("504 Late", False, "504 Gateway Timeout"),
        ("599 \x1b[31mred", False, "599 "),
        ("101 Switching Protocols", True, "101"),
    ],
)
def test_a_refusal_by_http_is_an_error(status: str, fatal: bool, text: str) -> None:
    """The error holds the status and names the proxy. A request that the proxy forbids is not retried."""
    error = failure(refuse(status))
    assert type(error) is ConnectionFailed
    assert is_fatal(error) == fatal
    assert error.status == int(status[:3])
    assert text in str(error)
    assert "\x1b" not in str(error)


def test_a_proxys_retry_after_is_kept() -> None:
    """A proxy may ask for a wait, like a server."""
    assert failure(refuse("429 No", "Retry-After: 7\r\n")).retry_after == 7.0


@pytest.mark.parametrize(
    ("scheme", "userinfo", "text"),
    [
        ("http", "trader:p@ss@", "407 .*refused the user and password"),
        ("http", "", "407 .*wants a user and password"),
        ("socks5h", "trader:p@ss@", "refused the user or password"),
        ("socks5h", "", "wants a user and password"),
    ],
)
def test_a_wrong_password_ends_the_listener(seen: Seen, scheme: str, userinfo: str, text: str) -> None:
    """There is one attempt, because more might lock the account. The error names the proxy, not the password."""
    with Peer(Proxying(LOGIN)) as proxy:
        listener = seen.listener("wss://server.example/", proxy=at(proxy, scheme, userinfo)).start()
        with pytest.raises(ConnectionFailed, match=text) as caught:
            listener.join(PATIENCE)
        assert proxy.accepted == 1
    assert f"the proxy 127.0.0.1:{proxy.port}" in str(caught.value)
    assert_no_secret(caught.value, "p@ss", base64.b64encode(b"trader:p@ss").decode())


@pytest.mark.parametrize(
    ("reply", "fatal", "text"),
    [
        (1, False, "general failure"),
        (2, True, "not allowed by its rules"),
        (3, False, "network unreachable"),
        (4, False, "host unreachable"),
        (5, False, "connection refused"),
        (6, False, "TTL expired"),
        (7, True, "doesn't support CONNECT"),
        (8, True, "this kind of address"),
        (9, False, "doesn't define (9)"),
    ],
)
def test_a_refusal_by_socks_is_an_error(reply: int, fatal: bool, text: str) -> None:
    """The error explains each reply code of RFC 1928."""

    def script(caller: Caller) -> None:
        caller.sock.recv(3)
        caller.send(b"\x05\x00")
        caller.sock.recv(100)
        caller.send(bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]))

    error = failure(script, "socks5h")
    assert is_fatal(error) == fatal
    assert text in str(error)


def answers(*answers: bytes, leave: bool = True) -> Script:
    """A script that answers each message with the next of these, and leaves."""

    def script(caller: Caller) -> None:
        for answer in answers:
            caller.sock.recv(65_536)
            caller.send(answer)
        if leave:
            caller.leave()
        else:
            caller.wait_until_left()

    return script


@pytest.mark.parametrize(
    ("scheme", "script", "kind", "text"),
    [
        ("http", answers(b""), ConnectionFailed, "closed the connection before it answered"),
        ("http", answers(b"HTTP/1.1 200 OK\r\n"), ConnectionFailed, "closed the connection"),
        ("http", answers(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError, "something other than HTTP"),
        ("http", answers(b"\x05\xff", leave=False), ProtocolError, "something other than HTTP"),
        ("http", answers(b"HTTP/1.1 OK\r\n\r\n"), ProtocolError, "no HTTP status line"),
        ("http", answers(b"HTTP/1.1 2000 OK\r\n\r\n"), ProtocolError, "no HTTP status line"),
        ("http", answers(b"HTTP/1.1 200 OK\r\n" + b"x" * (2 << 20)), ProtocolError, f"over {MAX_ANSWER} bytes"),
        ("socks5h", answers(b""), ConnectionFailed, "closed the connection"),
        ("socks5h", answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError, "something other than SOCKS5"),
        ("socks5h", answers(b"\x05\x07"), ProtocolError, "something other than SOCKS5"),
        ("socks5h", answers(b"\x05\x02"), ProtocolError, "something other than SOCKS5"),
        ("socks5h", answers(b"\x05\x00", b""), ConnectionFailed, "closed the connection"),
        ("socks5h", answers(b"\x05\x00", b"\x04\x00\x00\x01"), ProtocolError, "something other than SOCKS5"),
        ("socks5h", answers(b"\x05\x00", b"\x05\x00\x00\x07"), ProtocolError, "something other than SOCKS5"),
        ("socks5h", answers(b"\x05\x00", b"\x05\x00\x00\x03\xffabc"), ConnectionFailed, "closed the connection"),
    ],
)
def test_nonsense_from_a_proxy_is_an_error(scheme: str, script: Script, kind: type, text: str) -> None:
    """The error names the proxy and says what it did."""
    error = failure(script, scheme)
    assert type(error) is kind
    assert text in str(error)
    assert error.permanent == (kind is ProtocolError)


def test_an_unreachable_proxy_is_retried() -> None:
    """The error names the proxy."""
    port = free_port()
    for url, text in {
        f"http://u:s3cret@127.0.0.1:{port}": f"the proxy 127.0.0.1:{port}: connection refused",
        "socks5h://u:s3cret@nowhere.invalid": r"the name of the proxy nowhere.invalid:1080 can't be resolved",
    }.items():
        with pytest.raises(ConnectionFailed, match=text) as caught:
            open_connection(config("wss://server.example/", url), Attempt())
        assert not is_fatal(caught.value)
        assert_no_secret(caught.value, "s3cret")


def dribble(data: bytes) -> Script:
    """A script that answers a byte at a time, for a long time."""

    def script(caller: Caller) -> None:
        for byte in data * 1_000:
            caller.send(bytes([byte]))
            time.sleep(0.01)  # the pace of a hostile proxy

    return script


def mute(caller: Caller) -> None:
    """A proxy that never answers."""
    caller.wait_until_left()


def deaf_tunnel(caller: Caller) -> None:
    """A proxy whose tunnel is never answered."""
    caller.read_request()
    caller.send(HTTP_OK)
    caller.wait_until_left()


@pytest.mark.parametrize(
    ("scheme", "script"),
    [
        ("http", mute),
        ("socks5", mute),
        ("socks5h", mute),
        ("http", deaf_tunnel),
        ("http", dribble(b"HTTP/1.1 200 OK\r\nx: y\r\n")),
        ("socks5h", dribble(b"\x05\x00\x05\x00\x00\x03\xff")),
    ],
)
def test_proxy_and_server_share_one_deadline(scheme: str, script: Script) -> None:
    """connect_timeout bounds everything, and the error names the proxy."""
    with Peer(script) as proxy, pytest.raises(ConnectionFailed, match=f"proxy 127.0.0.1:{proxy.port}") as caught:
        open_connection(config("wss://127.0.0.1/", at(proxy, scheme), timeout=0.3), Attempt())
    assert "in time" in str(caught.value) or "before it answered" in str(caught.value)
    assert not is_fatal(caught.value)


@pytest.mark.parametrize("script", [mute, deaf_tunnel, dribble(b"HTTP/1.1 200 OK\r\nx: y\r\n")])
def test_stop_interrupts_a_hanging_proxy(seen: Seen, script: Script) -> None:
    """stop() returns quickly, the proxy sees the client leave, and there is no further connection."""
    noting, begun, left = watched(script)
    with Peer(noting) as proxy:
        listener = seen.listener("wss://server.example/", proxy=at(proxy), connect_timeout=3_600.0).start()
        assert begun.wait(PATIENCE)
        assert listener.stop()
        assert left.wait(PATIENCE)
        assert proxy.accepted == 1
    assert seen.errors == []


def test_a_refused_certificate_behind_a_proxy_names_both(theirs: ssl.SSLContext) -> None:
    """A proxy that intercepts TLS shows its own certificate: the error names the server, the fault and the proxy."""
    with Peer(stay(), context=theirs) as peer, Peer(Proxying()) as proxy, pytest.raises(ConnectionFailed) as caught:
        open_connection(config(peer.url, at(proxy)), Attempt())
    assert f"the certificate of 127.0.0.1:{peer.port} (through the proxy 127.0.0.1:{proxy.port}) is refused" in str(
        caught.value
    )


def test_every_failure_closes_its_sockets() -> None:
    """No file descriptor is left."""
    scripts = [
        ("http", refuse("407 No")),
        ("http", answers(b"SSH")),
        ("socks5h", answers(b"\x05\xff")),
        ("socks5", answers(b"\x05\x00", b"\x05\x05\x00\x01")),
    ]
    for _ in range(2):
        before = len(os.listdir("/proc/self/fd"))
        for scheme, script in scripts:
            with Peer(script) as proxy, pytest.raises(ConnectionFailed):
                open_connection(config("wss://127.0.0.1/", at(proxy, scheme)), Attempt())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_logs_and_errors_do_not_show_the_password(seen: Seen, scheme: str) -> None:
    """Neither the password nor its Base64 appears, even at DEBUG and with a proxy that quotes it."""
    log = io.StringIO()
    handler, root = logging.StreamHandler(log), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with Peer(answers(b""), Proxying("another:login")) as proxy:
            listener = seen.listener("wss://server.example/", proxy=at(proxy, scheme, "trader:s3cret-pass@")).start()
            with pytest.raises(ConnectionFailed) as caught:
                listener.join(PATIENCE)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    secrets = ("s3cret", "trader", base64.b64encode(b"trader:s3cret-pass").decode())
    assert len(seen.errors) == 2
    for error in (*seen.errors, caught.value):
        assert_no_secret(error, *secrets)
    shown = log.getvalue() + repr(listener) + repr(vars(listener)) + repr(listener.stats)
    assert not [secret for secret in secrets if secret in shown]


# Bytes.


def converse(proxy: Proxy, answer: bytes, *, ends: bool) -> tuple[BaseException | None, bytes]:
    """Open a tunnel with an answer that is there from the start. Return the error, and what is left to read."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(answer)
        if ends:
            there.shutdown(socket.SHUT_WR)
        try:
            open_tunnel(proxy, here, "server.example", 443, lambda: PATIENCE)
        except Exception as error:
            return error, b""
        here.setblocking(False)
        return None, here.recv(65_536) if answer else b""


GREETED = b"\x05\x00"
TUNNELS = {
    "http": HTTP_OK,
    "http, bare": b"HTTP/1.0 200\r\n\r\n",
    "http, long": b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 400 + b"\r\n",
    "http, with a length": b"HTTP/1.1 204 OK\r\nContent-Length: 5\r\n\r\n",
    "socks5h, IPv4": GREETED + b"\x05\x00\x00\x01" + bytes(6),
    "socks5h, IPv6": GREETED + b"\x05\x00\x00\x04" + bytes(18),
    "socks5h, name": GREETED + b"\x05\x00\x00\x03\x05proxy" + bytes(2),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_nothing_is_read_beyond_the_proxys_answer(name: str) -> None:
    """The bytes that follow in the same segment are the server's."""
    proxy = Proxy(name.partition(",")[0], "proxy.example", 1)
    assert converse(proxy, TUNNELS[name] + b"\x16\x03\r\n\r\nrest", ends=False) == (None, b"\x16\x03\r\n\r\nrest")


@given(
    scheme=st.sampled_from(["http", "socks5h"]),
    start=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", GREETED, b"\x05\x02\x01\x00", GREETED + b"\x05"]),
    rest=st.binary(max_size=300),
)
def test_any_answer_is_a_tunnel_or_one_error(scheme: str, start: bytes, rest: bytes) -> None:
    """No other error is raised for anything that a proxy sends."""
    proxy = Proxy.parse(f"{scheme}://u:p@proxy.example:1")
    error, _ = converse(proxy, start + rest + b"!", ends=True)
    assert error is None or isinstance(error, ConnectionFailed)


# The command line.


def run(server: LocalServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "finx_streamer", *arguments, "--endpoint", server.url],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"FINX_API_KEY": "demo"},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("listen", PAIR, "--limit", "1"),
        ("snap", PAIR),
        ("history", PAIR, "--start", "2022-07-02", "--end", "2022-07-03"),
    ],
)
def test_commands_go_through_a_proxy(arguments: tuple[str, ...]) -> None:
    """`listen`, `snap` and `history` take `--proxy`."""
    pytest.importorskip("typer")
    proxying = Proxying()
    with LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}) as server, Peer(proxying) as proxy:
        result = run(server, *arguments, "--proxy", at(proxy))
    assert proxying.asked == [f"127.0.0.1:{server.port}"], result.stderr


def test_commands_refuse_a_password_as_an_argument() -> None:
    """Others on the machine could see it. The error is one line without the password, with exit code 2."""
    pytest.importorskip("typer")
    with LocalServer(Tape([RAW_TICK]), keys={"demo"}) as server:
        result = run(server, "listen", PAIR, "--proxy", "http://trader:s3cret@127.0.0.1:3128")
    assert result.returncode == 2
    assert "set the environment variable https_proxy instead" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


# Real proxies.


#: Its main program expects an event loop, which newer versions of Python and uvloop don't create by themselves.
@contextlib.contextmanager
def running(port: int, *command: str, cwd: Path) -> Iterator[None]:
    """Run a proxy in its own process, and wait until it listens."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(int(PATIENCE / 0.02)):
                assert process.poll() is None, process.stdout and process.stdout.read().decode()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)  # it has no signal for being ready
            yield
        finally:
            process.kill()


def stream_through(seen: Seen, url: str, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    """Receive ticks through a proxy, over ws and over wss."""
    for context in (None, theirs):
        seen.ticks.clear()
        with Peer(stay(tick(1)), context=context) as peer, seen.listener(peer.url, proxy=url, ssl_context=ours):
            seen.wait_ticks(1)
    assert seen.errors == []


def fails_through(seen: Seen, url: str, text: str) -> ConnectionFailed:
    """Return the error of a stream that a proxy doesn't connect."""
    with seen.listener(f"wss://127.0.0.1:{free_port()}/", proxy=url, reconnect=NEVER_AGAIN):
        seen.wait_errors(1)
    error = seen.of_type(ConnectionFailed)[0]
    assert text in str(error)
    assert_no_secret(error, "s3cret")
    return error  # type: ignore[no-any-return]


def installed(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"no {name} on this machine: apt-get install tinyproxy dante-server")
    return found


@pytest.mark.parametrize("userinfo", ["", "trader:s3cret@"], ids=["open", "password"])
def test_tinyproxy(seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, userinfo: str) -> None:
    """Debian's tinyproxy connects streams, and its refusals are reported."""
    program, port = installed("tinyproxy"), free_port()
    login = "BasicAuth trader s3cret\n" if userinfo else ""
    (tmp_path / "conf").write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\n{login}")
    with running(port, program, "-d", "-c", "conf", cwd=tmp_path):
        stream_through(seen, f"http://{userinfo}127.0.0.1:{port}", theirs, ours)
        # Nothing listens on that port.
        assert not is_fatal(fails_through(Seen(), f"http://{userinfo}127.0.0.1:{port}", f"127.0.0.1:{port} answered 5"))
        if userinfo:
            error = fails_through(Seen(), f"http://trader:s3cret2@127.0.0.1:{port}", "")
            assert error.status in (401, 407)
            assert is_fatal(error)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_dante(seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str) -> None:
    """Debian's dante connects streams, and its refusals are reported."""
    program, port = installed("danted"), free_port()
    (tmp_path / "conf").write_text(
        f"logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\nclientmethod: none\n"
        "socksmethod: none\nclient pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\n"
        "socks pass { from: 127.0.0.0/8 to: 127.0.0.1/32 }\nsocks block { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    with running(port, program, "-f", "conf", "-p", "pid", cwd=tmp_path):
        stream_through(seen, f"{scheme}://127.0.0.1:{port}", theirs, ours)
        assert not is_fatal(fails_through(Seen(), f"{scheme}://127.0.0.1:{port}", "connection refused (5)"))
        refused = Seen()
        with refused.listener("wss://192.0.2.1/", proxy=f"{scheme}://127.0.0.1:{port}"):
            refused.wait_errors(1)
        assert "not allowed by its rules (2)" in str(refused.errors[0])
        # It wants no password, and ignores an offered one.
        stream_through(Seen(), f"{scheme}://trader:s3cret@127.0.0.1:{port}", theirs, ours)


@pytest.mark.parametrize("userinfo", ["", "trader:s3cret@"], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
def test_pproxy(
    seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str, userinfo: str
) -> None:
    """A proxy from PyPI connects streams by both protocols, with and without a password."""
    pytest.importorskip("pproxy", reason="no pproxy: pip install pproxy")
    port = free_port()
    listen = f"http+socks5://127.0.0.1:{port}" + (f"#{userinfo.rstrip('@')}" if userinfo else "")
    with running(port, *program_command("run_pproxy", "-l", listen), cwd=tmp_path):
        stream_through(seen, f"{scheme}://{userinfo}127.0.0.1:{port}", theirs, ours)

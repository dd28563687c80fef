"""Ways through a proxy, over real sockets: through a proxy of the tests' own, and through real ones where they are."""

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
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import (
    ConfigurationError,
    ConnectionFailed,
    Endpoint,
    FunctionClient,
    ProtocolError,
    ReconnectPolicy,
    StreamListener,
)
from finx_streamer.config.api_key import KeySource
from finx_streamer.config.proxy import MAX_ANSWER, Proxy, ProxyChoice, from_environment
from finx_streamer.config.reconnect import is_fatal
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.connection.attempt import Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Script, Seen, free_port, refuse, stay, tick, watched
from tests.support.proxying import HTTP_OK, Proxying

LOGIN = "trader:p@ss:w/rd%"
#: As it is written in a URL.
USERINFO = "trader:p%40ss:w%2Frd%25@"
#: A name that no resolver knows.
NAME = "ticks.example"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "wss_proxy", "ws_proxy")
NEVER_AGAIN = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
RAW_TICK = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55Z", "exchange": "BINANCE", "price": "1"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy the machine itself has is none of the tests' business."""
    for name in (*VARIABLES, *map(str.upper, VARIABLES), "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def theirs(authority: trustme.CA) -> ssl.SSLContext:
    """The server's TLS context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", NAME).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ours(authority: trustme.CA) -> ssl.SSLContext:
    """A context that trusts the server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def at(peer: Peer, scheme: str = "http", userinfo: str = "") -> str:
    """The URL of a proxy."""
    return f"{scheme}://{userinfo}127.0.0.1:{peer.port}"


def target(
    url: str, proxy: str | None, timeout: float = PATIENCE, context: ssl.SSLContext | None = None
) -> ConnectionConfig:
    """Where to and how, as the listener would say it."""
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
        open_connection(target("wss://server.example/", at(proxy, scheme, userinfo), timeout), Attempt())
    assert f"127.0.0.1:{proxy.port}" in str(caught.value)
    assert "p@ss" not in str(caught.value)
    return caught.value


# It works.


@pytest.mark.parametrize("userinfo", ["", USERINFO], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_ticks_come_through_a_proxy(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str, userinfo: str, secure: bool
) -> None:
    """A stream goes through every kind of proxy; TLS goes from end to end, and so the proxy does not see the key."""
    proxying = Proxying(LOGIN if userinfo else None)
    with (
        Peer(stay(tick(1)), context=theirs if secure else None) as peer,
        Peer(proxying) as proxy,
        seen.listener(peer.url, api_key="s3cret-key", proxy=at(proxy, scheme, userinfo), ssl_context=ours),
    ):
        seen.wait_ticks(1)
    assert seen.errors == []
    assert [f"127.0.0.1:{peer.port}"] == proxying.asked
    assert secure == (b"s3cret" not in proxying.seen)
    assert peer.accepted == 1


def test_functions_and_history_go_through_the_proxy_too() -> None:
    """`FunctionClient` takes the same argument."""
    proxying = Proxying()
    with (
        LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}) as server,
        Peer(proxying) as proxy,
        FunctionClient("demo", server.url, proxy=at(proxy, "socks5h")) as client,
    ):
        assert client.authenticate()
    assert [f"127.0.0.1:{server.port}"] == proxying.asked


def test_a_gap_is_filled_through_the_proxy(seen: Seen) -> None:
    """What a listener asks of tick history goes the way of its streams."""
    proxying = Proxying()
    with (
        LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}) as server,
        Peer(proxying) as proxy,
        seen.listener(server.url, proxy=at(proxy), backfill=True),
    ):
        seen.wait_ticks(1)
        server.drop_connections()
        seen.wait_for(lambda: seen.gaps)
    # Two streams and one connection for history.
    assert len(proxying.asked) >= 3
    assert {f"127.0.0.1:{server.port}"} == set(proxying.asked)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_names_are_the_proxys_to_resolve(seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str) -> None:
    """CONNECT and socks5h give the proxy the server's name, and the certificate is checked against that name."""
    with Peer(stay(tick(1)), context=theirs) as peer:
        proxying = Proxying(hosts={NAME: peer.port})
        with Peer(proxying) as proxy, seen.listener(f"wss://{NAME}/", proxy=at(proxy, scheme), ssl_context=ours):
            seen.wait_ticks(1)
    assert [f"{NAME}:443"] == proxying.asked


def test_socks5_is_given_addresses_one_after_the_other(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """With socks5 names are resolved here, and where the proxy can't reach one address the next one is tried."""
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
    assert [f"::1:{peer.port}", f"127.0.0.1:{peer.port}"] == proxying.asked
    assert seen.errors == []


def test_a_name_that_socks5_can_not_resolve_here_is_an_error() -> None:
    """It is the server's name that is told, for the proxy was never asked."""
    with Peer(Proxying()) as proxy, pytest.raises(ConnectionFailed, match=r"nowhere\.invalid.* can't be resolved"):
        open_connection(target("wss://nowhere.invalid/", at(proxy, "socks5")), Attempt())
    assert proxy.accepted == 0


# The environment.


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "socks5h://127.0.0.1:{}/"])
def test_the_environment_names_a_proxy(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    """Without proxy= the customary variables are used."""
    with Peer(stay(tick(1)), context=theirs) as peer, Peer(Proxying(hosts={NAME: peer.port})) as proxy:
        monkeypatch.setenv(variable, form.format(proxy.port))
        with seen.listener(f"wss://{NAME}/", ssl_context=ours):
            seen.wait_ticks(1)
        assert proxy.accepted == 1


def test_the_environment_is_read_at_every_attempt(
    seen: Seen, theirs: ssl.SSLContext, ours: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is set, or mended, while a listener tries to connect is used at the next attempt."""
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
def test_the_environment_can_be_overruled(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, proxy: str | None, no_proxy: str
) -> None:
    """proxy='' and no_proxy go straight to the server: here, to a name that only the proxy would know."""
    with Peer(Proxying()) as unused:
        monkeypatch.setenv("HTTPS_PROXY", at(unused))
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with seen.listener(f"wss://{NAME}/", proxy=proxy, reconnect=NEVER_AGAIN):
            seen.wait_errors(1)
        assert unused.accepted == 0
    assert f"the name of {NAME}:443 can't be resolved" in str(seen.errors[0])


def test_loopback_is_never_proxied_by_the_environment(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server is found though the environment names a proxy for everything."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert seen.errors == []


def test_a_wrong_variable_ends_the_listener(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not passed over: whoever set a proxy does not want to go without. The error names the variable alone."""
    monkeypatch.setenv("HTTPS_PROXY", f"https://{USERINFO}proxy.example:3128")
    listener = seen.listener(f"wss://{NAME}/").start()
    with pytest.raises(ConnectionFailed, match=r"HTTPS_PROXY.*scheme 'https'.*expected http://") as caught:
        listener.join(PATIENCE)
    assert caught.value.permanent
    assert "p%40ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        ("wss://x.example/", {}, None),
        ("wss://x.example/", {"https_proxy": "a:1"}, "a:1"),
        ("wss://x.example/", {"https_proxy": "a:1", "HTTPS_PROXY": "b:2", "all_proxy": "c:3"}, "a:1"),
        ("wss://x.example/", {"https_proxy": "", "HTTPS_PROXY": "b:2"}, "b:2"),
        ("wss://x.example/", {"http_proxy": "a:1"}, None),
        ("wss://x.example/", {"http_proxy": "a:1", "ALL_PROXY": "socks5://c"}, "c:1080"),
        ("wss://x.example/", {"https_proxy": "http://a"}, "a:80"),
        ("wss://x.example/", {"https_proxy": " http://[::1]:8080/ "}, "[::1]:8080"),
        ("ws://x.example/", {"https_proxy": "a:1"}, None),
        ("ws://x.example/", {"http_proxy": "a:1", "HTTP_PROXY": "b:2"}, "a:1"),
        ("ws://x.example/", {"HTTP_PROXY": "b:2"}, "b:2"),
        ("ws://x.example/", {"HTTP_PROXY": "b:2", "REQUEST_METHOD": "GET"}, None),
        ("wss://x.example/", {"HTTPS_PROXY": "b:2", "REQUEST_METHOD": "GET"}, "b:2"),
        ("wss://localhost/", {"https_proxy": "a:1"}, None),
        ("wss://127.8.9.1/", {"https_proxy": "a:1"}, None),
        ("wss://[::1]/", {"all_proxy": "a:1"}, None),
    ],
)
def test_which_variable_counts(endpoint: str, environment: dict[str, str], expected: str | None) -> None:
    """The scheme's own before all_proxy, lower case before upper, empty is absent, and nothing for loopback."""
    proxy = from_environment(Endpoint(endpoint), environment)
    assert expected == (proxy and proxy.where)


@pytest.mark.parametrize(
    ("listed", "host", "exempt"),
    [
        ("*", "ws.finx.io", True),
        ("", "ws.finx.io", False),
        ("ws.finx.io", "ws.finx.io", True),
        ("WS.FinX.io", "ws.finx.io", True),
        ("finx.io", "ws.finx.io", True),
        (".finx.io", "ws.finx.io", True),
        ("*.finx.io", "ws.finx.io", True),
        (".finx.io", "finx.io", True),
        ("nx.io", "ws.finx.io", False),
        ("finx.io.example", "ws.finx.io", False),
        ("a.example, finx.io ,b.example", "ws.finx.io", True),
        ("a.example finx.io", "ws.finx.io", True),
        ("finx.io:443", "ws.finx.io", True),
        ("finx.io:8443", "ws.finx.io", False),
        ("finx.io.", "ws.finx.io", True),
        (",,", "ws.finx.io", False),
        (".", "ws.finx.io", False),
        (":443", "ws.finx.io", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7:443", "192.0.2.7", True),
        ("192.0.2.7:80", "192.0.2.7", False),
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.3.0/24", "192.0.2.7", False),
        ("192.0.2.0/99", "192.0.2.7", False),
        ("2.7", "192.0.2.7", False),
        ("2001:db8::/32", "[2001:db8::7]", True),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("[2001:db8::7]:443", "[2001:db8::7]", True),
        ("[2001:db8::7]:80", "[2001:db8::7]", False),
        ("192.0.2.0/24", "[2001:db8::7]", False),
        ("example:99999999999999999999", "ws.finx.io", False),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_lists_exceptions(name: str, listed: str, host: str, exempt: bool) -> None:
    """Names and what is below them, with or without a leading dot, addresses, networks, ports, and `*` for all."""
    environment = {"https_proxy": "proxy.example:3128", name: listed}
    assert exempt == (from_environment(Endpoint(f"wss://{host}/"), environment) is None)


@given(st.text(), st.sampled_from(["ws.finx.io", "192.0.2.7", "[2001:db8::7]"]))
def test_any_no_proxy_is_survived(listed: str, host: str) -> None:
    """Nonsense in no_proxy exempts, or does not, and raises nothing."""
    from_environment(Endpoint(f"wss://{host}/"), {"https_proxy": "a:1", "no_proxy": listed})


# URLs.


@pytest.mark.parametrize(
    ("url", "where", "login"),
    [
        ("http://proxy.example", "proxy.example:80", None),
        ("HTTP://Proxy.Example:3128/", "proxy.example:3128", None),
        ("socks5://[2001:db8::1]", "[2001:db8::1]:1080", None),
        ("socks5h://u@h:1", "h:1", ("u", "")),
        ("http://u:@h:1", "h:1", ("u", "")),
        (f"http://{USERINFO}h:1", "h:1", tuple(LOGIN.split(":", 1))),
        ("socks5://a%3Ab:%C3%A4%00@h", "h:1080", ("a:b", "\xc3\xa4\x00")),
    ],
)
def test_a_proxy_is_given_as_a_url(url: str, where: str, login: tuple[str, str] | None) -> None:
    """With default ports, and user and password percent-decoded; neither is ever shown."""
    proxy = Proxy.parse(url)
    assert where == proxy.where
    assert login == (proxy.credentials and tuple(part.reveal() for part in proxy.credentials))
    assert "redential" not in repr(proxy)
    assert "ApiKey" not in repr(proxy)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("proxy.example:3128", "no scheme"),
        ("u:s3cret@h:1", "no scheme"),
        ("https://u:s3cret@h:1", "scheme 'https'"),
        ("socks4://u:s3cret@h:1", "scheme 'socks4'"),
        ("http://u:s3cret@", "no host"),
        ("http://u:s3cret@h:0", "port 0"),
        ("http://u:s3cret@h:port", "host or port"),
        ("http://u:s3cret@h:70000", "host or port"),
        ("http://u:s3cret#4@h:1", "host or port"),
        ("http://u:s3cret/x@h:1", "host or port"),
        ("http://h:1/s3cret", "behind the port"),
        ("http://h:1/?s3cret", "behind the port"),
        ("http://[u:s3cret@h:1", "host or port"),
        ("http://u:s3cret @h:1", "white space"),
        ("http://u:s3crät@h:1", "non-ASCII"),
        ("http://u:s3cret\r\nX: y@h:1", "control"),
        ("http://:s3cret@h:1", "an empty user"),
        (f"socks5://{'u' * 256}:s3cret@h:1", "over 255 bytes"),
        (f"socks5://u:s3cret{'%41' * 255}@h:1", "over 255 bytes"),
        ("http://a%3Ab:s3cret@h:1", "a colon in the user"),
    ],
)
@pytest.mark.parametrize("kind", [StreamListener, FunctionClient])
def test_a_wrong_proxy_is_refused_without_its_password(kind: Callable[..., object], url: str, fault: str) -> None:
    """The error says what is wrong, and nothing that could be a password: not in the locals of our frames either."""
    with pytest.raises(ConfigurationError, match=fault) as caught:
        kind(api_key="demo", proxy=url)
    assert str(caught.value).startswith("proxy: the URL has ")
    assert_no_secret(caught.value, "s3cr")


@pytest.mark.parametrize("kind", [StreamListener, FunctionClient])
def test_a_later_fault_does_not_show_the_password_either(kind: Callable[..., object]) -> None:
    """Another argument's error passes a frame that had the URL."""
    with pytest.raises(ConfigurationError, match="name") as caught:
        kind(api_key="demo", proxy="http://u:s3cret@h:1", name=7)
    assert_no_secret(caught.value, "s3cr")


@given(st.text() | st.builds("http://{}:{}@{}:{}/{}".format, *[st.text(max_size=5)] * 5))
def test_any_text_is_a_proxy_or_a_configuration_error(url: str) -> None:
    """Nothing else is raised, whatever is given."""
    with contextlib.suppress(ConfigurationError):
        Proxy.parse(url)


def assert_no_secret(error: BaseException, *secrets: str) -> None:
    """The text, the causes and the locals of this package's frames do not show it."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if "finx_streamer" in frame.filename and "tests" not in frame.filename]
    texts = [str([frame.locals for frame in ours]), str(error), repr(error), repr(vars(error)), repr(error.__cause__)]
    for secret in secrets:
        assert secret not in "\n".join(texts)
    for further in (error.__cause__, error.__context__):
        if further is not None:
            assert_no_secret(further, *secrets)


def test_the_key_is_not_given_to_a_proxy_in_clear() -> None:
    """ws:// is for loopback, and a proxy elsewhere is not: it would read the key."""
    with pytest.raises(ConfigurationError, match=r"proxy\.example:3128 would get the API key in clear text"):
        StreamListener(PAIR, api_key="demo", endpoint="ws://127.0.0.1:9/", proxy="http://proxy.example:3128")
    StreamListener(PAIR, api_key="demo", endpoint="wss://127.0.0.1:9/", proxy="http://proxy.example:3128")
    StreamListener(PAIR, api_key="demo", endpoint="ws://127.0.0.1:9/", proxy="socks5://[::1]:3128")
    insecure = {"endpoint": "ws://127.0.0.1:9/", "proxy": "http://proxy.example:3128", "allow_insecure": True}
    StreamListener(PAIR, api_key="demo", **insecure)  # type: ignore[arg-type]


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
def test_a_proxy_that_refuses_connect(status: str, fatal: bool, text: str) -> None:
    """The error holds the status and says whose it is; what the proxy itself forbids is not tried again."""
    error = failure(refuse(status))
    assert ConnectionFailed is type(error)
    assert fatal == is_fatal(error)
    assert int(status[:3]) == error.status
    assert text in str(error)
    assert "\x1b" not in str(error)


def test_a_proxys_retry_after_is_kept() -> None:
    """A proxy may ask for patience as a server may."""
    assert failure(refuse("429 No", "Retry-After: 7\r\n")).retry_after == 7.0


@pytest.mark.parametrize(
    ("scheme", "userinfo", "text"),
    [
        ("http", "trader:p@ss@", "407 .*did not accept the user and password"),
        ("http", "", "407 .*wants a user and password"),
        ("socks5h", "trader:p@ss@", "refused the user or password"),
        ("socks5h", "", "wants a user and password"),
    ],
)
def test_a_wrong_password_ends_the_listener(seen: Seen, scheme: str, userinfo: str, text: str) -> None:
    """One attempt, and an error that names the proxy without the password: trying again might lock the account."""
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
        (7, True, "no CONNECT"),
        (8, True, "no such kind of address"),
        (9, False, "does not know (9)"),
    ],
)
def test_a_socks_proxy_that_does_not_connect(reply: int, fatal: bool, text: str) -> None:
    """Each reply of RFC 1928 is told in words."""

    def script(caller: Caller) -> None:
        caller.sock.recv(3)
        caller.send(b"\x05\x00")
        caller.sock.recv(100)
        caller.send(bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]))

    error = failure(script, "socks5h")
    assert fatal == is_fatal(error)
    assert text in str(error)


def answers(*answers: bytes, leave: bool = True) -> Script:
    """A script that answers each thing that is said with these, one after another, and leaves."""

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
        ("http", answers(b""), ConnectionFailed, "closed the connection before it had answered"),
        ("http", answers(b"HTTP/1.1 200 OK\r\n"), ConnectionFailed, "closed the connection"),
        ("http", answers(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError, "something else than HTTP"),
        ("http", answers(b"\x05\xff", leave=False), ProtocolError, "something else than HTTP"),
        ("http", answers(b"HTTP/1.1 OK\r\n\r\n"), ProtocolError, "no HTTP status line"),
        ("http", answers(b"HTTP/1.1 2000 OK\r\n\r\n"), ProtocolError, "no HTTP status line"),
        ("http", answers(b"HTTP/1.1 200 OK\r\n" + b"x" * (2 << 20)), ProtocolError, f"over {MAX_ANSWER} bytes"),
        ("socks5h", answers(b""), ConnectionFailed, "closed the connection"),
        ("socks5h", answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError, "not of SOCKS5"),
        ("socks5h", answers(b"\x05\x07"), ProtocolError, "not offered"),
        ("socks5h", answers(b"\x05\x02"), ProtocolError, "not offered"),
        ("socks5h", answers(b"\x05\x00", b""), ConnectionFailed, "closed the connection"),
        ("socks5h", answers(b"\x05\x00", b"\x04\x00\x00\x01"), ProtocolError, "not of SOCKS5"),
        ("socks5h", answers(b"\x05\x00", b"\x05\x00\x00\x07"), ProtocolError, "no known kind"),
        ("socks5h", answers(b"\x05\x00", b"\x05\x00\x00\x03\xffabc"), ConnectionFailed, "closed the connection"),
    ],
)
def test_a_proxy_that_talks_nonsense(scheme: str, script: Script, kind: type, text: str) -> None:
    """It is one error that names the proxy and what it did."""
    error = failure(script, scheme)
    assert kind is type(error)
    assert text in str(error)
    assert (kind is ProtocolError) == error.permanent


def test_a_proxy_that_is_not_there() -> None:
    """Refused and unknown proxies are named, and tried again."""
    port = free_port()
    for url, text in {
        f"http://u:s3cret@127.0.0.1:{port}": f"the proxy 127.0.0.1:{port}: connection refused",
        "socks5h://u:s3cret@nowhere.invalid": r"the name of the proxy nowhere.invalid:1080 can't be resolved",
    }.items():
        with pytest.raises(ConnectionFailed, match=text) as caught:
            open_connection(target("wss://server.example/", url), Attempt())
        assert not is_fatal(caught.value)
        assert_no_secret(caught.value, "s3cret")


def dribble(data: bytes) -> Script:
    """A script that answers a byte at a time, for longer than anybody would wait."""

    def script(caller: Caller) -> None:
        for byte in data * 1_000:
            caller.send(bytes([byte]))
            time.sleep(0.01)  # the pace of a hostile proxy, and no waiting for anything

    return script


def mute(caller: Caller) -> None:
    """A proxy that says nothing."""
    caller.wait_until_left()


def deaf_tunnel(caller: Caller) -> None:
    """A proxy whose tunnel leads nowhere."""
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
    """All that a proxy may take is within connect_timeout, and it is named."""
    with Peer(script) as proxy, pytest.raises(ConnectionFailed, match=f"proxy 127.0.0.1:{proxy.port}") as caught:
        open_connection(target("wss://127.0.0.1/", at(proxy, scheme), timeout=0.3), Attempt())
    assert "in time" in str(caught.value) or "before it had answered" in str(caught.value)
    assert not is_fatal(caught.value)


@pytest.mark.parametrize("script", [mute, deaf_tunnel, dribble(b"HTTP/1.1 200 OK\r\nx: y\r\n")])
def test_stop_interrupts_a_proxy_that_hangs(seen: Seen, script: Script) -> None:
    """stop() is quick, the proxy sees the client leave, and nothing connects afterwards."""
    noting, begun, left = watched(script)
    with Peer(noting) as proxy:
        listener = seen.listener("wss://server.example/", proxy=at(proxy), connect_timeout=3_600.0).start()
        assert begun.wait(PATIENCE)
        assert listener.stop()
        assert left.wait(PATIENCE)
        assert proxy.accepted == 1
    assert seen.errors == []


def test_a_certificate_that_is_refused_behind_a_proxy(theirs: ssl.SSLContext) -> None:
    """A proxy that looks into TLS shows a certificate of its own: the error names server, fault and proxy."""
    with Peer(stay(), context=theirs) as peer, Peer(Proxying()) as proxy, pytest.raises(ConnectionFailed) as caught:
        open_connection(target(peer.url, at(proxy)), Attempt())
    assert f"the certificate of 127.0.0.1:{peer.port} (through the proxy 127.0.0.1:{proxy.port}) is refused" in str(
        caught.value
    )


def test_nothing_stays_open_after_failures() -> None:
    """Every way of failing closes its sockets."""
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
                open_connection(target("wss://127.0.0.1/", at(proxy, scheme)), Attempt())
    assert before == len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_logs_and_errors_do_not_show_the_password(seen: Seen, scheme: str) -> None:
    """At DEBUG, with a proxy that quotes it, a whole life of failures shows neither password nor its Base64."""
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


# The conversation, byte by byte.


def converse(proxy: Proxy, answer: bytes, *, ends: bool) -> tuple[BaseException | None, bytes]:
    """What becomes of an answer that is all there from the first: the error, and what is left to read."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(answer)
        if ends:
            there.shutdown(socket.SHUT_WR)
        try:
            proxy.open_tunnel(here, "server.example", 443, lambda: PATIENCE)
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
    """What follows in the same segment is the server's, to the byte."""
    proxy = Proxy(name.partition(",")[0], "proxy.example", 1)
    assert converse(proxy, TUNNELS[name] + b"\x16\x03\r\n\r\nrest", ends=False) == (None, b"\x16\x03\r\n\r\nrest")


@given(
    scheme=st.sampled_from(["http", "socks5h"]),
    start=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", GREETED, b"\x05\x02\x01\x00", GREETED + b"\x05"]),
    rest=st.binary(max_size=300),
)
def test_any_answer_is_a_tunnel_or_one_error(scheme: str, start: bytes, rest: bytes) -> None:
    """Whatever a proxy says, it is a tunnel or a `ConnectionFailed`."""
    proxy = Proxy.parse(f"{scheme}://u:p@proxy.example:1")
    error, _ = converse(proxy, start + rest + b"!", ends=True)
    assert error is None or isinstance(error, ConnectionFailed)


# The command line.


def run(server: LocalServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
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
    """`--proxy` is the proxy of listen, snap and history."""
    pytest.importorskip("typer")
    proxying = Proxying()
    with LocalServer(Tape([RAW_TICK], speed=None), keys={"demo"}) as server, Peer(proxying) as proxy:
        result = run(server, *arguments, "--proxy", at(proxy))
    assert [f"127.0.0.1:{server.port}"] == proxying.asked, result.stderr


def test_a_password_is_no_argument_of_a_command() -> None:
    """Others on the machine could see it: one line, exit code 2, and the password is not repeated."""
    pytest.importorskip("typer")
    with LocalServer(Tape([RAW_TICK]), keys={"demo"}) as server:
        result = run(server, "listen", PAIR, "--proxy", "http://trader:s3cret@127.0.0.1:3128")
    assert result.returncode == 2
    assert "set the environment variable https_proxy instead" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


# Real proxies.


#: Its own main program expects an event loop that newer versions of Python and of uvloop do not have ready.
PPROXY = (
    "import asyncio, sys; sys.modules['uvloop'] = None; asyncio.set_event_loop(asyncio.new_event_loop());"
    "from pproxy.server import main; main()"
)


@contextlib.contextmanager
def running(port: int, *command: str, cwd: Path) -> Iterator[None]:
    """A proxy in a process of its own, listening."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(int(PATIENCE / 0.02)):
                assert process.poll() is None, process.stdout and process.stdout.read().decode()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)  # it tells nobody when it is ready
            yield
        finally:
            process.kill()


def stream_through(seen: Seen, url: str, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    """Ticks over ws and over wss, through a proxy."""
    for context in (None, theirs):
        seen.ticks.clear()
        with Peer(stay(tick(1)), context=context) as peer, seen.listener(peer.url, proxy=url, ssl_context=ours):
            seen.wait_ticks(1)
    assert seen.errors == []


def fails_through(seen: Seen, url: str, text: str) -> ConnectionFailed:
    """The error of a stream through a proxy that does not let it pass."""
    with seen.listener(f"wss://127.0.0.1:{free_port()}/", proxy=url, reconnect=NEVER_AGAIN):
        seen.wait_errors(1)
    error = seen.of_type(ConnectionFailed)[0]
    assert text in str(error)
    assert_no_secret(error, "s3cret")
    return error  # type: ignore[no-any-return]


def installed(name: str) -> str:
    """The path of a program; skips the test where it is absent."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"no {name} on this machine: apt-get install tinyproxy dante-server")
    return found


@pytest.mark.parametrize("userinfo", ["", "trader:s3cret@"], ids=["open", "password"])
def test_tinyproxy(seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, userinfo: str) -> None:
    """Debian's tinyproxy lets streams pass, and its refusals are told."""
    program, port = installed("tinyproxy"), free_port()
    login = "BasicAuth trader s3cret\n" if userinfo else ""
    (tmp_path / "conf").write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\n{login}")
    with running(port, program, "-d", "-c", "conf", cwd=tmp_path):
        stream_through(seen, f"http://{userinfo}127.0.0.1:{port}", theirs, ours)
        # Nobody is at that port, and tinyproxy says so.
        assert not is_fatal(fails_through(Seen(), f"http://{userinfo}127.0.0.1:{port}", f"127.0.0.1:{port} answered 5"))
        if userinfo:
            error = fails_through(Seen(), f"http://trader:s3cret2@127.0.0.1:{port}", "")
            assert error.status in (401, 407)
            assert is_fatal(error)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_dante(seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str) -> None:
    """Debian's dante lets streams pass, and its refusals are told."""
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
        # It wants no password, and one that is offered does not disturb it.
        stream_through(Seen(), f"{scheme}://trader:s3cret@127.0.0.1:{port}", theirs, ours)


@pytest.mark.parametrize("userinfo", ["", "trader:s3cret@"], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
def test_pproxy(
    seen: Seen, tmp_path: Path, theirs: ssl.SSLContext, ours: ssl.SSLContext, scheme: str, userinfo: str
) -> None:
    """A proxy from PyPI lets streams pass by both protocols, with and without a password."""
    pytest.importorskip("pproxy", reason="no pproxy: pip install pproxy")
    port = free_port()
    listen = f"http+socks5://127.0.0.1:{port}" + (f"#{userinfo.rstrip('@')}" if userinfo else "")
    with running(port, sys.executable, "-c", PPROXY, "-l", listen, cwd=tmp_path):
        stream_through(seen, f"{scheme}://{userinfo}127.0.0.1:{port}", theirs, ours)

"""Endpoints: base URLs that are accepted or refused, and the URLs of streams."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.config.api_key import ApiKey, KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.symbols import Option, Pair
from finx_streamer.errors import ConfigurationError

PAIR = Pair("BTC", "USDC")


def test_names_stand_for_hosts_of_finx() -> None:
    """The URLs are those of FinX's first description."""
    assert Endpoint.of("production") == Endpoint.PRODUCTION == Endpoint("wss://ws.finx.io/")
    assert Endpoint.of("beta") == Endpoint.BETA == Endpoint("wss://beta.finx.io/")


def test_accepts_an_endpoint() -> None:
    """It keeps its prefix."""
    endpoint = Endpoint("ws://127.0.0.1:8765/", prefix="streamer")
    assert endpoint is Endpoint.of(endpoint)


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("wss://ws.finx.io", "wss://ws.finx.io/"),
        ("WSS://WS.FinX.io/", "wss://ws.finx.io/"),
        ("ws://127.0.0.1:8765", "ws://127.0.0.1:8765/"),
        ("wss://host/Some/Path//", "wss://host/Some/Path/"),
        ("ws://[::1]:8765/", "ws://[::1]:8765/"),
    ],
)
def test_a_url_is_normalized(url: str, normalized: str) -> None:
    """Scheme and host are in lower case, one slash is at the end, and the path stays."""
    assert Endpoint.of(url).url == normalized


@pytest.mark.parametrize(
    ("url", "host", "port", "secure"),
    [
        ("wss://ws.finx.io/", "ws.finx.io", 443, True),
        ("ws://localhost/", "localhost", 80, False),
        ("ws://127.0.0.1:8765/", "127.0.0.1", 8765, False),
        ("wss://[::1]:9/", "::1", 9, True),
    ],
)
def test_host_port_and_security_are_those_of_the_url(url: str, host: str, port: int, secure: bool) -> None:
    """The default port depends on the scheme."""
    endpoint = Endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.secure) == (host, port, secure)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("prod", "'production', 'beta', 'demo' or a URL"),
        ("", "'production', 'beta', 'demo' or a URL"),
        ("http://ws.finx.io/", "use ws://"),
        ("https://ws.finx.io/", "use wss://"),
        ("ftp://ws.finx.io/", "expected wss or ws"),
        ("wss://", "no host"),
        ("wss://:443/", "no host"),
        ("wss://host:port/", "is not a URL"),
        ("wss://host:70000/", "is not a URL"),
        ("wss://host:0/", "port 0"),
        ("wss://[::1/", "is not a URL"),
        ("wss://host/?a=b", "query or fragment"),
        ("wss://host/#part", "query or fragment"),
        ("wss://ho st/", "white space"),
        ("wss://host/\n", "white space"),
        ("wss://host\t/", "white space"),
        ("wss://höst/", "non-ASCII"),
    ],
)
def test_refuses_a_wrong_url(url: str, says: str) -> None:
    """The error names the argument, and says what is wrong or expected."""
    with pytest.raises(ConfigurationError, match=r"^endpoint: ") as caught:
        Endpoint.of(url)
    assert says in str(caught.value)


def test_the_demo_has_one_wire() -> None:
    """The error says how to try the other one without FinX."""
    with pytest.raises(ConfigurationError, match=r"LocalServer or `finx-streamer serve`, and use its URL"):
        Endpoint("demo", wire="subscribe")


@pytest.mark.parametrize("value", [None, 5, b"wss://ws.finx.io/"])
def test_refuses_an_endpoint_of_another_type(value: object) -> None:
    """The error names the type."""
    with pytest.raises(ConfigurationError, match=f"not {type(value).__name__}"):
        Endpoint.of(value)
    with pytest.raises(ConfigurationError, match=f"not {type(value).__name__}"):
        Endpoint(value)  # type: ignore[arg-type]


def test_refuses_a_password_without_showing_it() -> None:
    """The error doesn't show the URL."""
    with pytest.raises(ConfigurationError, match="user name or password") as caught:
        Endpoint.of("wss://me:sekret@ws.finx.io/")
    assert "sekret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://ws.finx.io/streaming/endpoint-Key-1/",
        "wss://ws.finx.io:x/streaming/endpoint-Key-1/",
        "wss://ws.finx.io:endpoint-Key-1/",
        "wss://endpoint-Key-1/?a",
        "wss://ws.finx.io/streaming/endpoint-Key-1/?a",
        "wss://ws.finx.io/streaming/endpoint-Key-1/ü",
        "endpoint-Key-1",
        "wss:///endpoint-Key-1",
    ],
)
def test_no_error_shows_a_known_key(url: str) -> None:
    """A key that was pasted into the URL is masked."""
    KeySource.from_argument("endpoint-Key-1")
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.of(url)
    assert "endpoint-Key-1" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["streaming", "streamer", "v2_live-x"])
def test_the_prefix_is_part_of_the_url(prefix: str) -> None:
    """It may be FinX's later name, or any other path segment."""
    endpoint = Endpoint("wss://host/", prefix=prefix)
    assert endpoint.stream_url(PAIR, ApiKey("key")) == f"wss://host/{prefix}/key/BTC:USDC"


@pytest.mark.parametrize(("wire", "prefix"), [("url", "streaming"), ("subscribe", "streamer")])
def test_the_wire_has_a_default_prefix(wire: Any, prefix: str) -> None:
    """FinX's own for each wire. Another one can be given."""
    assert Endpoint("ws://127.0.0.1:9/", wire=wire).prefix == prefix
    assert Endpoint("ws://127.0.0.1:9/", "other", wire).prefix == "other"


def test_the_second_wire_has_one_url_for_all_streams() -> None:
    """The key is its last segment."""
    key = ApiKey("a/b")
    assert Endpoint("ws://127.0.0.1:9/", wire="subscribe").shared_url(key) == "ws://127.0.0.1:9/streamer/a%2Fb"


@pytest.mark.parametrize("wire", ["", "URL", "both", None, 5, ["url"]])
def test_refuses_an_unknown_wire(wire: Any) -> None:
    """The error names the two that exist."""
    with pytest.raises(ConfigurationError, match=r"wire: .*expected 'url' or 'subscribe'"):
        Endpoint("ws://127.0.0.1:9/", wire=wire)


@pytest.mark.parametrize("prefix", ["", "/", "a/b", "a b", "ströming", "..", "a?", 5])
def test_refuses_a_prefix_that_is_not_one_path_segment(prefix: object) -> None:
    """The error shows the value and what was expected."""
    with pytest.raises(ConfigurationError, match="one path segment") as caught:
        Endpoint("wss://host/", prefix=prefix)  # type: ignore[arg-type]
    assert repr(prefix) in str(caught.value)


def test_the_url_of_a_pair() -> None:
    """`streaming/[API key]/[pair]`, with an unescaped colon."""
    assert Endpoint.PRODUCTION.stream_url(PAIR, ApiKey("key")) == "wss://ws.finx.io/streaming/key/BTC:USDC"


@pytest.mark.parametrize(
    ("pair", "path"),
    [
        (Pair("USDC.E", "USDT"), "USDC.E:USDT"),
        (Pair("$TRUMP", "USDC"), "%24TRUMP:USDC"),
        (Pair("币安人生", "USDT"), "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9F:USDT"),
        (Pair("1INCH", "USDC"), "1INCH:USDC"),
        (Pair("A&B", "C+D"), "A%26B:C%2BD"),
    ],
)
def test_a_pair_is_percent_encoded_by_utf8(pair: Pair, path: str) -> None:
    """The colon stays as it is."""
    assert Endpoint.PRODUCTION.stream_url(pair, ApiKey("key")) == f"wss://ws.finx.io/streaming/key/{path}"


def test_the_url_of_an_option() -> None:
    """`streaming/greeks/[API key]/[option]`."""
    option = Option("BTC", "N2", 2022, 7)
    assert Endpoint.PRODUCTION.stream_url(option, ApiKey("key")) == "wss://ws.finx.io/streaming/greeks/key/BTCN2202207"


@given(st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=24))
def test_a_key_stays_within_its_segment(key: str) -> None:
    """For any key, the path has three segments, no query and no fragment."""
    url = Endpoint.BETA.stream_url(PAIR, ApiKey(key))
    path = url.removeprefix("wss://beta.finx.io/")
    assert path.count("/") == 2
    assert not set("?#\\ \"'") & set(path)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("ws://localhost:1/", True),
        ("ws://demo.localhost/", True),
        ("ws://127.0.0.1/", True),
        ("ws://127.9.9.9/", True),
        ("ws://[::1]/", True),
        ("ws://ws.finx.io/", False),
        ("ws://localhost.example.com/", False),
        ("ws://notlocalhost/", False),
        ("ws://10.0.0.1/", False),
        ("ws://0.0.0.0/", False),
        ("ws://127.0.0.1.example.com/", False),
    ],
)
def test_sends_a_key_in_clear_text_only_to_loopback(url: str, loopback: bool) -> None:
    """`ws://` beyond loopback is refused without allow_insecure=True."""
    endpoint = Endpoint(url)
    assert endpoint.is_loopback == loopback
    if loopback:
        endpoint.check_secrecy(allow_insecure=False)
    else:
        with pytest.raises(ConfigurationError, match="allow_insecure=True"):
            endpoint.check_secrecy(allow_insecure=False)
    endpoint.check_secrecy(allow_insecure=True)


def test_tls_is_allowed_for_any_host() -> None:
    """`wss://` protects the key."""
    Endpoint("wss://ws.finx.io/").check_secrecy(allow_insecure=False)

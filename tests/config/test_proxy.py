"""Reading a proxy's URL, and choosing the proxy of the argument or of the environment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConfigurationError, ConnectionFailed, Endpoint, FunctionClient, StreamListener
from finx_streamer.config.proxy import Credentials, Proxy, ProxyChoice, from_environment
from tests.support.peers import PAIR, PATIENCE, Seen
from tests.support.proxying import LOGIN, NAME, USERINFO, assert_no_secret

# URLs.


@pytest.mark.parametrize(
    ("url", "where", "credentials"),
    [
        ("http://proxy.example", "proxy.example:80", None),
        ("HTTP://Proxy.Example:3128/", "proxy.example:3128", None),
        ("socks5://[2001:db8::1]", "[2001:db8::1]:1080", None),
        ("http://u@h:1", "h:1", Credentials("u", "")),
        ("http://u:@h:1", "h:1", Credentials("u", "")),
        (f"http://{USERINFO}h:1", "h:1", Credentials(*LOGIN.split(":", 1))),
        ("http://a:%C3%A4%00@h", "h:80", Credentials("a", "\xc3\xa4\x00")),
        ("socks5://a%3Ab:c%00@h", "h:1080", Credentials("a:b", "c\x00")),
    ],
)
def test_reads_a_url(url: str, where: str, credentials: Credentials | None) -> None:
    """Ports have defaults, and user and password are percent-decoded."""
    proxy = Proxy.parse(url)
    assert proxy.where == where
    assert proxy.credentials == credentials


def test_the_repr_shows_no_password() -> None:
    """Neither that of a proxy nor that of its credentials."""
    proxy = Proxy.parse("http://trader:s3cret@h:1")
    assert repr(proxy) == "Proxy(scheme='http', host='h', port=1)"
    assert repr(proxy.credentials) == "Credentials()"


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
        ("socks5h://s3cret@h:1", "no password"),
        ("socks5h://u:s3cr%C3%A4t@h:1", "isn't ASCII"),
    ],
)
@pytest.mark.parametrize("kind", [StreamListener, FunctionClient])
def test_refuses_a_wrong_url_without_its_password(kind: Callable[..., object], url: str, fault: str) -> None:
    """The error says what is wrong. Neither its text nor the local variables of our frames hold the password."""
    with pytest.raises(ConfigurationError, match=fault) as caught:
        kind(api_key="some-key", proxy=url)
    assert str(caught.value).startswith("proxy: the URL has ")
    assert_no_secret(caught.value, "s3cr")


@pytest.mark.parametrize("kind", [StreamListener, FunctionClient])
def test_the_error_of_another_argument_does_not_show_the_password(kind: Callable[..., object]) -> None:
    """It passes a frame that had the URL."""
    with pytest.raises(ConfigurationError, match="name") as caught:
        kind(api_key="some-key", proxy="http://u:s3cret@h:1", name=7)
    assert_no_secret(caught.value, "s3cr")


@given(st.text() | st.builds("http://{}:{}@{}:{}/{}".format, *[st.text(max_size=5)] * 5))
def test_any_text_is_a_proxy_or_a_configuration_error(url: str) -> None:
    """No other error is raised."""
    with contextlib.suppress(ConfigurationError):
        Proxy.parse(url)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_without_its_package_is_refused_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        StreamListener(PAIR, api_key="demo", proxy=f"{scheme}://trader:s3cret@127.0.0.1")
    expected = f"proxy: {scheme}:// needs the package python-socks: pip install 'finx-streamer[proxy]'"
    assert str(caught.value) == expected
    assert Proxy.parse("http://127.0.0.1").where == "127.0.0.1:80"


def test_refuses_to_show_the_key_to_a_proxy() -> None:
    """A proxy on another machine could read the key of ws://."""
    with pytest.raises(ConfigurationError, match=r"proxy\.example:3128 would get the API key in clear text"):
        StreamListener(PAIR, api_key="demo", endpoint="ws://127.0.0.1:9/", proxy="http://proxy.example:3128")
    StreamListener(PAIR, api_key="demo", endpoint="wss://127.0.0.1:9/", proxy="http://proxy.example:3128")
    StreamListener(PAIR, api_key="demo", endpoint="ws://127.0.0.1:9/", proxy="socks5://[::1]:3128")
    insecure = {"endpoint": "ws://127.0.0.1:9/", "proxy": "http://proxy.example:3128", "allow_insecure": True}
    StreamListener(PAIR, api_key="demo", **insecure)  # type: ignore[arg-type]


# The environment.


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """Set these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        ("wss://x.example/", {}, None),
        ("wss://x.example/", {"https_proxy": "a:1"}, "a:1"),
        ("wss://x.example/", {"https_proxy": "a:1", "HTTPS_PROXY": "b:2", "all_proxy": "c:3"}, "a:1"),
        ("wss://x.example/", {"https_proxy": "", "HTTPS_PROXY": "b:2"}, None),
        ("wss://x.example/", {"https_proxy": "", "all_proxy": "c:3"}, "c:3"),
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
@pytest.mark.usefixtures("no_proxy_variables")
def test_chooses_a_variable_like_urllib(
    endpoint: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheme's own variable wins over all_proxy and lower case over upper; loopback has no proxy."""
    set_environment(monkeypatch, environment)
    proxy = from_environment(Endpoint(endpoint))
    assert (proxy and proxy.where) == expected


@pytest.mark.parametrize(
    ("listed", "host", "exempt"),
    [
        ("*", "ws.finx.io", True),
        ("", "ws.finx.io", False),
        ("ws.finx.io", "ws.finx.io", True),
        ("WS.FinX.io", "ws.finx.io", True),
        ("finx.io", "ws.finx.io", True),
        (".finx.io", "ws.finx.io", True),
        (".finx.io", "finx.io", True),
        ("nx.io", "ws.finx.io", False),
        ("finx.io.example", "ws.finx.io", False),
        ("a.example, finx.io ,b.example", "ws.finx.io", True),
        ("finx.io:443", "ws.finx.io", True),
        ("finx.io:8443", "ws.finx.io", False),
        (",,", "ws.finx.io", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7:443", "192.0.2.7", True),
        ("192.0.2.7:80", "192.0.2.7", False),
        ("[2001:db8::7]", "[2001:db8::7]", True),
        ("[2001:db8::7]:443", "[2001:db8::7]", True),
        ("[2001:db8::7]:80", "[2001:db8::7]", False),
        # What urllib doesn't support.
        ("192.0.2.0/24", "192.0.2.7", False),
        ("*.finx.io", "ws.finx.io", False),
        ("a.example finx.io", "ws.finx.io", False),
        ("*,a.example", "ws.finx.io", False),
        ("2001:db8::7", "[2001:db8::7]", False),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.usefixtures("no_proxy_variables")
def test_no_proxy_lists_exceptions_like_urllib(
    name: str, listed: str, host: str, exempt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names with everything below them, addresses, ports, and `*` for all."""
    set_environment(monkeypatch, {"https_proxy": "proxy.example:3128", name: listed})
    assert (from_environment(Endpoint(f"wss://{host}/")) is None) == exempt


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@pytest.mark.usefixtures("no_proxy_variables")
def test_any_no_proxy_raises_nothing(listed: str) -> None:
    """Nonsense in no_proxy exempts hosts or doesn't."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, {"https_proxy": "a:1", "no_proxy": listed})
        for host in ("ws.finx.io", "192.0.2.7", "[2001:db8::7]"):
            from_environment(Endpoint(f"wss://{host}/"))


@pytest.mark.usefixtures("no_proxy_variables")
def test_a_wrong_variable_ends_the_listener(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is set must not be skipped. The error names the variable, not the password."""
    monkeypatch.setenv("HTTPS_PROXY", f"https://{USERINFO}proxy.example:3128")
    listener = seen.listener(f"wss://{NAME}/").start()
    with pytest.raises(ConnectionFailed, match=r"HTTPS_PROXY.*scheme 'https'.*expected http://") as caught:
        listener.join(PATIENCE)
    assert caught.value.permanent
    assert_no_secret(caught.value, "p%40ss")


@pytest.mark.usefixtures("no_proxy_variables")
def test_socks_in_the_environment_without_its_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is permanent, and names the variable and the extra to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1")
    with pytest.raises(ConnectionFailed, match=r"ALL_PROXY: socks5h:// needs .*finx-streamer\[proxy\]") as caught:
        ProxyChoice.from_argument(None).choose(Endpoint("wss://ws.finx.io/"))
    assert caught.value.permanent


@pytest.mark.usefixtures("no_proxy_variables")
def test_an_argument_overrules_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is used for every endpoint, and an empty text means no proxy."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert os.environ["HTTPS_PROXY"]
    for url in ("wss://ws.finx.io/", "wss://127.0.0.1/"):
        chosen = ProxyChoice.from_argument("http://another.example").choose(Endpoint(url))
        assert chosen == Proxy("http", "another.example", 80)
        assert ProxyChoice.from_argument("").choose(Endpoint(url)) is None
